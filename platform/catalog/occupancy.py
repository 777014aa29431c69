"""Bytes of a tenant's segments in the object store: live, dead and waiting."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from django.db.models import Q, Sum

from catalog.models import Segment, SegmentCopy


@dataclass(frozen=True)
class Occupancy:
    """Bytes of segments' objects.

    `live_bytes`: blocks that the index names, as counted last, and segments being written.
    `dead_bytes`: the rest of live segments. `waiting_bytes`: segments that no entry names any more,
    kept for readers that looked blocks up before, and old places of moved ones. `copy_bytes`:
    copies in other stores that are kept or arrive.
    """

    live_bytes: int = 0
    dead_bytes: int = 0
    waiting_bytes: int = 0
    copy_bytes: int = 0

    @property
    def kept_bytes(self) -> int:
        """Without what waits for deletion."""
        return self.live_bytes + self.dead_bytes + self.copy_bytes

    @property
    def stored_bytes(self) -> int:
        return self.kept_bytes + self.waiting_bytes


def occupancy(tenant_id: int) -> Occupancy:
    return occupancies([tenant_id])[tenant_id]


def occupancies(tenant_ids: list[int]) -> dict[int, Occupancy]:
    """By tenant, for each of `tenant_ids`. Two queries."""
    state = Segment.State
    rows = Segment.unscoped.filter(tenant_id__in=tenant_ids).order_by().values("tenant_id")
    sums = rows.annotate(
        live=Sum("live_bytes", filter=Q(state=state.LIVE), default=0),
        size=Sum("size_bytes", filter=Q(state=state.LIVE), default=0),
        uploading=Sum("size_bytes", filter=Q(state=state.UPLOADING), default=0),
        waiting=Sum("size_bytes", filter=Q(state=state.DELETING), default=0),
    )
    stays = Q(state__in=(SegmentCopy.State.KEPT, SegmentCopy.State.ARRIVING))
    copies = SegmentCopy.unscoped.filter(tenant_id__in=tenant_ids).order_by().values("tenant_id")
    of_copies = copies.annotate(
        kept=Sum("size_bytes", filter=stays, default=0),
        leaving=Sum("size_bytes", filter=~stays, default=0),
    )
    segments = {row["tenant_id"]: row for row in sums}
    others = {row["tenant_id"]: row for row in of_copies}
    return {id_: _of(segments.get(id_), others.get(id_)) for id_ in tenant_ids}


def _of(segments: Mapping[str, Any] | None, copies: Mapping[str, Any] | None) -> Occupancy:
    row = segments or dict.fromkeys(("live", "size", "uploading", "waiting"), 0)
    other = copies or dict.fromkeys(("kept", "leaving"), 0)
    return Occupancy(
        row["live"] + row["uploading"],
        max(row["size"] - row["live"], 0),
        row["waiting"] + other["leaving"],
        other["kept"],
    )
