"""Bytes of a tenant's segments in the object store: live, dead and waiting."""

from dataclasses import dataclass

from django.db.models import Q, Sum

from catalog.models import Segment


@dataclass(frozen=True)
class Occupancy:
    """Bytes of segments' objects.

    `live_bytes`: blocks that the index names, as counted last, and segments being written.
    `dead_bytes`: the rest of live segments. `waiting_bytes`: segments that no entry names any more,
    kept for readers that looked blocks up before.
    """

    live_bytes: int = 0
    dead_bytes: int = 0
    waiting_bytes: int = 0

    @property
    def stored_bytes(self) -> int:
        return self.live_bytes + self.dead_bytes + self.waiting_bytes


def occupancy(tenant_id: int) -> Occupancy:
    return occupancies([tenant_id])[tenant_id]


def occupancies(tenant_ids: list[int]) -> dict[int, Occupancy]:
    """By tenant, for each of `tenant_ids`. One query."""
    state = Segment.State
    rows = Segment.unscoped.filter(tenant_id__in=tenant_ids).order_by().values("tenant_id")
    sums = rows.annotate(
        live=Sum("live_bytes", filter=Q(state=state.LIVE), default=0),
        size=Sum("size_bytes", filter=Q(state=state.LIVE), default=0),
        uploading=Sum("size_bytes", filter=Q(state=state.UPLOADING), default=0),
        waiting=Sum("size_bytes", filter=Q(state=state.DELETING), default=0),
    )
    found = {
        row["tenant_id"]: Occupancy(
            row["live"] + row["uploading"], max(row["size"] - row["live"], 0), row["waiting"]
        )
        for row in sums
    }
    return {id_: found.get(id_, Occupancy()) for id_ in tenant_ids}
