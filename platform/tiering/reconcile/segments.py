"""Checks rows of segments: whether S3 has the object, and the index its blocks.

A segment that looks damaged is checked again after GRACE. Only then do blocks lose their places: S3
may have answered wrong once. `readable_bytes` is what is left of the object: the walk through the
index (`tiering.reconcile.blocks`) finds blocks beyond it; blocks before it are still read.
"""

from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from itertools import groupby

from botocore.exceptions import BotoCoreError, ClientError
from django.db.models import Q
from django.utils import timezone

from base import log_events
from catalog.models import Segment, SegmentCopy
from catalog.stores import Stores
from neve.errors import Corrupt, MissReason, Unavailable
from neve.formats.segment import SegmentFooter
from neve.index.tier import Location
from tenants.scope import tenant_scope
from tiering import recovery
from tiering.moving.places import take_copy
from tiering.objects import footer_of_segment, is_missing, tail_of
from tiering.overlap import overlapped
from tiering.rebuild import Restorer
from tiering.reconcile.report import Report
from tiering.segments import count_live_bytes, settle

RUN_SEGMENTS = 2000
RUN_COPIES = 200
BATCH = 100
FOOTERS_AT_ONCE = 8
GRACE = timedelta(hours=1)
# The miss reason of a block that was not taken from the cold tier.
_NEVER_COLD = (
    *(MissReason.NEVER_STORED, MissReason.QUOTA, MissReason.EVICTED, MissReason.IDLE),
    MissReason.UNFLUSHED,
)


def look_at_segments(tenants: Sequence[int], report: Report, most: int = RUN_SEGMENTS) -> None:
    """Checks segments checked longest ago, and those that looked damaged. Raises S3's errors.

    One tenant's trouble is noted in the report.
    """
    stores = Stores()
    answering = _answering(stores)
    in_them = Q(store__in=[each for each in answering if each is not None])
    live = Segment.unscoped.filter(
        in_them | Q(store=None), state=Segment.State.LIVE, tenant_id__in=tenants
    )
    is_due = Q(damaged_at__lt=timezone.now() - GRACE, readable_bytes=None)
    rows = [*live.filter(is_due).order_by("damaged_at")[:most], *live.order_by("checked_at")[:most]]
    unique = {row.pk: row for row in rows}
    for tenant_id, group in groupby(
        sorted(unique.values(), key=lambda row: row.tenant_id), key=lambda row: row.tenant_id
    ):
        with report.apart(f"segments of tenant {tenant_id}"), tenant_scope(tenant_id):
            _look_at_all(tenant_id, list(group), stores, report)


def _answering(stores: Stores) -> list[int | None]:
    """Stores whose bucket answers: in another one every segment would be missing.

    Raises the errors of the default S3.
    """
    found: list[int | None] = []
    for store_id in stores.rows:
        try:
            bucket = stores.bucket(store_id)
            bucket.client.head_bucket(**bucket.where)
            found.append(store_id)
        except (BotoCoreError, ClientError, Unavailable) as error:
            if store_id is None:
                raise
            log_events.STORE_FAILED.log(store=stores.name(store_id), error=error)
    return found


def look_at_copies(tenants: Sequence[int], report: Report, most: int = RUN_COPIES) -> None:
    """Forgets kept copies without their whole object, some by chance in each run: readers would
    miss what the segment's own place has. What is left of an object is a stray."""
    stores = Stores()
    if not stores.are_several:
        return
    kept = SegmentCopy.unscoped.filter(state=SegmentCopy.State.KEPT, tenant_id__in=tenants)
    for copy in kept.select_related("segment").order_by("?")[:most]:
        if report.is_late:
            return
        try:
            footer_of_segment(
                copy.segment, stores.bucket(copy.store_id).object(copy.segment.object_key)
            )
        except Corrupt:
            report.found("lost_copies", _forget(copy))
        except ClientError as error:
            if is_missing(error):
                report.found("lost_copies", _forget(copy))
        except (BotoCoreError, Unavailable):  # its store is away
            continue


def _forget(copy: SegmentCopy) -> int:
    mine = SegmentCopy.unscoped.filter(pk=copy.pk, state=SegmentCopy.State.KEPT)
    return int(mine.delete()[0])


def _look_at_all(tenant_id: int, rows: Sequence[Segment], stores: Stores, report: Report) -> None:
    restorer = Restorer(tenant_id)
    for first in range(0, len(rows), BATCH):
        if report.is_late:
            return
        _look(restorer, rows[first : first + BATCH], stores, report)


def _look(restorer: Restorer, rows: Sequence[Segment], stores: Stores, report: Report) -> None:
    run = recovery.whole_run(rows[0].tenant_id)
    read = partial(_state_of, stores)
    for row, (footer, readable_bytes) in overlapped(read, rows, at_once=FOOTERS_AT_ONCE):
        if readable_bytes is not None and take_copy(row, stores):
            report.found("segments_from_copy")
            continue
        _judge(row, readable_bytes, report)
        if footer is not None and run is not None:
            report.found("data_without_index", _index(restorer, row, footer))
        report.looked_at["segments"] += 1
    count_live_bytes(restorer.tier, [row.pk for row in rows])


def _state_of(stores: Stores, row: Segment) -> tuple[SegmentFooter | None, int | None]:
    """The footer, or the most bytes of the segment that can be left."""
    size_bytes = 0
    try:
        tail = tail_of(stores.object(row))
        size_bytes = tail.size_bytes
        footer = tail.footer()
    except ClientError as error:
        if is_missing(error):
            return None, 0
        raise
    except Corrupt:
        return None, min(size_bytes, row.size_bytes)
    is_it = (footer.header.uuid, footer.header.tenant_id) == (row.uuid, row.tenant_id)
    return (footer, None) if is_it else (None, 0)


def _judge(row: Segment, readable_bytes: int | None, report: Report) -> None:
    """Updates the row unless it changed since it was read."""
    now = timezone.now()
    damaged_at, confirmed = None, None
    if readable_bytes is not None:
        damaged_at = row.damaged_at or now
        is_second = damaged_at < now - GRACE or damaged_at > now + GRACE  # the clock was set back
        confirmed = readable_bytes if is_second else row.readable_bytes
    if confirmed is not None and row.readable_bytes is None:
        log_events.SEGMENT_DAMAGED.log(object=row.object_key, left_bytes=confirmed)
        report.found("segments_without_object" if confirmed == 0 else "damaged_segments")
    Segment.objects.filter(pk=row.pk).update(
        checked_at=now, damaged_at=damaged_at, readable_bytes=confirmed
    )


def _index(restorer: Restorer, row: Segment, footer: SegmentFooter) -> int:
    """Restores blocks that the index does not know, as far as the cold quota has room.

    Not blocks that have expired by the footer's terms: the index may not know them because they
    expired long ago.
    """
    now_s = timezone.now().timestamp()
    answers = restorer.tier.match([each.id for each in footer.rows])
    unknown = [
        each
        for each, answer in zip(footer.rows, answers, strict=True)
        if answer in _NEVER_COLD and not 0 < each.expires_s <= now_s
    ]
    if unknown:
        return restorer.restore(row, unknown, within_quota=True)
    if row.indexed_at is None and row.created_at < timezone.now() - GRACE:  # its writer died
        named = (isinstance(each, Location) and each.segment == row.pk for each in answers)
        settle(
            row, [each.id for each, is_here in zip(footer.rows, named, strict=True) if not is_here]
        )
    return 0
