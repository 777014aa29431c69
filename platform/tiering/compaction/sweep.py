"""Deletes segments that no entry of the index names, found so twice with a grace time between.

The first look finds a segment without live bytes. The index closes it, so that no block enters it
again, and its row becomes `deleting`. Readers that looked blocks up before can still read them. The
second look comes when the readers' addresses have expired. It looks up each block of the segment:
if the index names none there, it deletes the object and the row.

An index that is not whole proves nothing: each look happens between two calls that find the same
whole index.
"""

from dataclasses import dataclass
from datetime import timedelta

from botocore.exceptions import BotoCoreError, ClientError
from django.db.models import Q, QuerySet
from django.utils import timezone

from base import log_events
from catalog.models import Segment
from catalog.stores import Stores, everywhere
from neve.errors import Corrupt, Unavailable
from neve.index.tier import HotTier
from storage import s3
from tenants.scope import tenant_scope
from tiering import recovery, segments
from tiering.compaction import claims
from tiering.compaction.merge import live_copies
from tiering.elapsed import is_past
from tiering.objects import footer_of_segment, is_missing

# A segment is live before its blocks are in the index: leave its writer time for that.
SETTLED = timedelta(minutes=10)
GRACE = timedelta(seconds=s3.PRESIGNED_S) + timedelta(minutes=10)
# Where room is scarce (tiering.compaction.room): longer than any load takes after its look-up. A
# later reader misses the block (404, "evicted"); the next look-up names the new place.
PRESSED_GRACE = timedelta(seconds=30)
SWEEP_MOST = 500  # segments a pass


@dataclass
class SweepReport:
    """`bytes`: of the objects deleted."""

    deleted_segments: int = 0
    bytes: int = 0


def sweep(tier: HotTier, tenant_id: int, *, is_pressed: bool = False) -> SweepReport:
    """Both looks, at most SWEEP_MOST segments each. Returns what was deleted."""
    with tenant_scope(tenant_id):
        close_empty(tier)
        return delete_closed(tier, is_pressed=is_pressed)


def has_work(tenant_id: int, *, is_pressed: bool = False) -> bool:
    """Whether a look would find a segment to close or to delete."""
    with tenant_scope(tenant_id):
        return _empty().exists() or _closed(is_pressed).exists()


def close_empty(tier: HotTier) -> int:
    """The first look. Returns how many segments it closed. In the tenant's scope."""
    run = recovery.whole_run(tier.tenant_id)
    if run is None:
        return 0
    numbers = list(_empty().order_by("pk").values_list("pk", flat=True)[:SWEEP_MOST])
    counted = segments.count_live_bytes(tier, numbers)
    numbers = [number for number, bytes_ in counted.items() if bytes_ == 0]
    found = zip(numbers, tier.close_segments(numbers), strict=True)
    closed = [number for number, bytes_ in found if bytes_ == 0]
    if recovery.whole_run(tier.tenant_id) != run:
        return 0
    return Segment.objects.filter(pk__in=closed, state=Segment.State.LIVE).update(
        state=Segment.State.DELETING, unreferenced_at=timezone.now()
    )


def delete_closed(tier: HotTier, *, is_pressed: bool = False) -> SweepReport:
    """The second look. In the tenant's scope. Segments in a store that is away wait for it."""
    report, stores = SweepReport(), Stores()
    for row in _closed(is_pressed).order_by("pk")[:SWEEP_MOST]:
        run = recovery.whole_run(tier.tenant_id)
        try:
            objects = everywhere(row, stores)
            named = _is_named(tier, row, stores)
        except (BotoCoreError, Unavailable) as error:
            if row.store_id is None:
                raise
            log_events.STORE_FAILED.log(store=stores.name(row.store_id), error=error)
            continue
        if run is None or recovery.whole_run(tier.tenant_id) != run:
            break
        if named:
            log_events.SEGMENT_NAMED_AGAIN.log(segment=row.pk, object=row.object_key)
            tier.open_segment(row.pk)
            row.state, row.unreferenced_at = Segment.State.LIVE, None
            row.save(update_fields=["state", "unreferenced_at"])
        else:
            for object_ in objects:
                object_.delete()
            report.deleted_segments += row.delete()[0]
            report.bytes += row.size_bytes
    return report


def _empty() -> QuerySet[Segment]:
    is_told = Q(indexed_at__isnull=False) | is_past("created_at", SETTLED)
    return Segment.objects.filter(is_told, claims.is_free(), state=Segment.State.LIVE, live_bytes=0)


def _closed(is_pressed: bool) -> QuerySet[Segment]:
    grace = min(GRACE, PRESSED_GRACE) if is_pressed else GRACE
    return Segment.objects.filter(is_past("unreferenced_at", grace), state=Segment.State.DELETING)


def _is_named(tier: HotTier, row: Segment, stores: Stores) -> bool:
    try:
        footer = footer_of_segment(row, stores.object(row))
    except Corrupt as error:
        log_events.SEGMENT_LOST.log(object=row.object_key, reason=error)
        return False
    except ClientError as error:
        if is_missing(error):  # deleted by a worker that was killed before the row went
            return False
        raise
    return any(True for _ in live_copies(tier, [row], [footer]))
