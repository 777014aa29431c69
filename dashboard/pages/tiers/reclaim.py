"""Bytes in S3 that nothing reads any more: how many, and what frees them when."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db.models import BigIntegerField, Count, F, Max, Min, Q, Sum
from django.db.models.functions import Cast

from catalog.kinds import COMPACT, SWEEP
from catalog.models import Job, Segment
from catalog.occupancy import Occupancy
from dashboard.usage import Tenants
from neve.formats.segment import block_bytes
from tenants.principal import rows_of
from tiering.compaction.plan import Policy
from tiering.compaction.sweep import GRACE

HISTORY = timedelta(hours=24)
MERGE_SHARE = Policy().dead_share


@dataclass(frozen=True)
class Work:
    """What one kind of job did in the last HISTORY. `bytes`: merge: copied; sweep: deleted."""

    jobs: int
    failed: int
    bytes: int
    last_at: datetime | None


@dataclass(frozen=True)
class Reclaim:
    """`due_bytes`: the dead bytes of segments that are merged next, as MERGE_SHARE or more of each
    is dead. `next_deletion_at`: when readers of the oldest waiting segment have had their time.
    """

    taken: Occupancy
    segments: int
    blocks: int
    due_segments: int
    due_bytes: int
    waiting_segments: int
    next_deletion_at: datetime | None
    merges: Work
    deletions: Work

    @property
    def rest_bytes(self) -> int:
        """Dead bytes that stay until more of their segments is dead."""
        return max(self.taken.dead_bytes - self.due_bytes, 0)


def is_due() -> Q:
    """Live segments that are merged next, as `tiering.compaction.plan` decides."""
    written = block_bytes(F("size_bytes"), F("blocks"))
    most = Cast(written * (1 - MERGE_SHARE), BigIntegerField())
    return Q(state=Segment.State.LIVE, live_bytes__lte=most)


def reclaim(tenants: Tenants, taken: dict[int, Occupancy], now: datetime) -> Reclaim:
    state = Segment.State
    dead = F("size_bytes") - F("live_bytes")
    sums = rows_of(Segment, tenants).aggregate(
        segments=Count("pk", filter=~Q(state=state.DELETING)),
        due_segments=Count("pk", filter=is_due()),
        due_bytes=Sum(dead, filter=is_due(), default=0),
        waiting_segments=Count("pk", filter=Q(state=state.DELETING)),
        oldest=Min("unreferenced_at", filter=Q(state=state.DELETING)),
        # Last: it hides the column of its name.
        blocks=Sum("blocks", filter=~Q(state=state.DELETING), default=0),
    )
    oldest = sums.pop("oldest")
    return Reclaim(
        taken=_sum(taken.values()),
        next_deletion_at=None if oldest is None else max(oldest + GRACE, now),
        merges=_work(tenants, COMPACT.name, now),
        deletions=_work(tenants, SWEEP.name, now),
        **sums,
    )


def _work(tenants: Tenants, kind: str, now: datetime) -> Work:
    rows = rows_of(Job, tenants).filter(kind=kind, created_at__gte=now - HISTORY)
    done = Q(state=Job.State.DONE)
    sums = rows.aggregate(
        jobs=Count("pk", filter=done),
        failed=Count("pk", filter=Q(state=Job.State.FAILED)),
        size=Sum("bytes", filter=done, default=0),
        last_at=Max("finished_at", filter=done),
    )
    return Work(sums["jobs"], sums["failed"], sums["size"], sums["last_at"])


def _sum(taken: Collection[Occupancy]) -> Occupancy:
    return Occupancy(
        sum(each.live_bytes for each in taken),
        sum(each.dead_bytes for each in taken),
        sum(each.waiting_bytes for each in taken),
    )
