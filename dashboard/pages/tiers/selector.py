"""What segments take in S3, and how the KV of spaces is divided."""

from dataclasses import dataclass

from django.db.models import Count, Sum

from catalog.models import Segment, Space
from catalog.occupancy import occupancies
from dashboard.kv_groups import GroupRow, group_rows, prefix_bytes
from dashboard.usage import Tenants
from neve.planner.parts import PrefixBytes
from tenants.principal import rows_of


@dataclass(frozen=True)
class SegmentTotals:
    """`segments`, `blocks` and `size_bytes` leave out segments that are being deleted.

    `live_ratio`: the share of live bytes in `size_bytes`; None without segments.
    """

    segments: int
    blocks: int
    size_bytes: int
    live_ratio: float | None
    live_bytes: int
    dead_bytes: int
    waiting_bytes: int


def segment_totals(tenants: Tenants) -> SegmentTotals:
    sums = (
        rows_of(Segment, tenants)
        .exclude(state=Segment.State.DELETING)
        .aggregate(
            segments=Count("pk"),
            blocks=Sum("blocks", default=0),
            size=Sum("size_bytes", default=0),
            live=Sum("live_bytes", default=0),
        )
    )
    taken = occupancies([tenant.pk for tenant in tenants]).values()
    return SegmentTotals(
        segments=sums["segments"],
        blocks=sums["blocks"],
        size_bytes=sums["size"],
        live_ratio=sums["live"] / sums["size"] if sums["size"] else None,
        live_bytes=sum(each.live_bytes for each in taken),
        dead_bytes=sum(each.dead_bytes for each in taken),
        waiting_bytes=sum(each.waiting_bytes for each in taken),
    )


@dataclass(frozen=True)
class SpaceRow:
    """`loads`: what a request loads of a prefix; None if a chunk is one block."""

    space: Space
    groups: list[GroupRow]
    loads: PrefixBytes | None


def space_rows(tenants: Tenants, most: int) -> tuple[list[SpaceRow], int]:
    """The newest `most` spaces, and how many there are."""
    found = rows_of(Space, tenants).select_related("tenant")
    rows = [SpaceRow(each, group_rows(each), prefix_bytes(each)) for each in found[:most]]
    return rows, found.count() if len(rows) == most else len(rows)
