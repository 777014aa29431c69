"""Recovery: the index of an emptied Valkey, rebuilt from the footers of the segments in S3.

Repeating it is safe, and it runs beside live traffic: a footer adds blocks that the index does not
know, and never restores a block that the index records as gone. Segments that are not settled come
last, and only as far as the cold quota has room: their blocks never counted as durable. Decisions
are applied again from the database: an expired context stays expired, a pin stays a pin, and each
block gets the terms of today's policy, rules and contexts, counted from when it was stored.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, partial
from itertools import chain

from botocore.exceptions import BotoCoreError, ClientError
from django.utils import timezone

from base import log_events
from catalog.models import Context, Segment, SegmentCopy
from catalog.stores import Stores
from contexts import pins, stored
from contexts.parts import parts_by_space
from neve.errors import Corrupt, Unavailable
from neve.formats.segment import SegmentFooter, SegmentRow
from storage.hot import hot_tier
from tenants.scope import tenant_scope
from tiering.objects import footer_of_segment, is_missing
from tiering.overlap import overlapped

FOOTERS_AT_ONCE = 16


@dataclass
class RebuildReport:
    """`lost_segments`: rows without their whole object; their blocks are misses."""

    segments: int = 0
    blocks: int = 0
    lost_segments: int = 0

    def add(self, other: "RebuildReport") -> None:
        self.segments += other.segments
        self.blocks += other.blocks
        self.lost_segments += other.lost_segments

    @property
    def looked_at(self) -> int:
        return self.segments + self.lost_segments


@dataclass(frozen=True)
class Start:
    """Where a rebuild goes on: segments up to number `after` are done since `begun_at`."""

    begun_at: datetime
    after: int = 0


class Restorer:
    """Restores blocks of segments in one tenant's index, with today's terms. For one worker."""

    def __init__(self, tenant_id: int) -> None:
        self.tier = hot_tier(tenant_id)
        self._tenant_id = tenant_id

    @cached_property
    def _standing(self) -> stored.StandingTerms:
        return stored.StandingTerms(self._tenant_id)

    @cached_property
    def _expired_at(self) -> dict[bytes, datetime]:
        """When each block of an expired context was expired last. Blocks of other contexts are left
        out: expiry spares them."""
        parts = parts_by_space(self._tenant_id)
        with tenant_scope(self._tenant_id):
            rows = Context.objects.exclude(expired_at=None).order_by("expired_at")
            expired = {
                id_: context.expired_at
                for context in rows
                if context.expired_at is not None
                for id_ in parts[context.space_id].of(context.ids())
            }
            others = Context.objects.filter(
                expired_at=None, root__in=rows.order_by().values("root")
            )
            for context in others.iterator(chunk_size=100):
                for id_ in parts[context.space_id].of(context.ids()):
                    expired.pop(id_, None)
        return expired

    def restore(
        self, segment: Segment, rows: Iterable[SegmentRow], *, within_quota: bool = False
    ) -> int:
        """Returns how many of the blocks the index took. Raises valkey's errors.

        `within_quota`: only the first ones that the cold quota has room for.
        """
        # A block that was stored again after its context expired lives; an older one does not.
        expired = self._expired_at
        refused = set(map(bytes.fromhex, segment.refused))
        own = [
            r
            for r in rows
            if r.is_readable
            and r.id not in refused
            and (r.id not in expired or expired[r.id] < segment.created_at)
        ]
        if within_quota:
            usage = self.tier.usage()
            own = list(_fitting(own, usage.quota_cold_bytes - usage.cold_bytes))
        terms = self._standing.of([r.id for r in own], [segment.space_id] * len(own))
        segment_s = int(segment.created_at.timestamp())
        blocks = [
            stored.restored(r, each, segment_s=segment_s)
            for r, each in zip(own, terms, strict=True)
        ]
        return self.tier.restore(segment.pk, segment.space_id, blocks)


def rebuild_tenant(
    tenant_id: int,
    *,
    start: Start | None = None,
    progress: Callable[[RebuildReport, int, int], None] = lambda report, total, number: None,
) -> RebuildReport:
    """Restores one tenant's index, segment by segment in the order of their numbers.

    `progress` gets the report so far, how many segments there are in all, and the number of the
    one that was done. Raises valkey's errors.
    """
    start = start or Start(timezone.now())
    report, restorer = RebuildReport(), Restorer(tenant_id)
    with tenant_scope(tenant_id):
        rows = Segment.objects.filter(state=Segment.State.LIVE).order_by("pk")
        live = rows.prefetch_related("copies")  # `_footer` runs in threads, without the database
        settled = live.filter(indexed_at__isnull=False, pk__gt=start.after)
        others = live.filter(indexed_at=None)
        total, number = settled.count() + others.count(), start.after
        in_turn = chain(settled.iterator(chunk_size=1000), others.iterator(chunk_size=1000))
        read = partial(_footer, Stores())
        for row, footer in overlapped(read, in_turn, at_once=FOOTERS_AT_ONCE):
            is_settled = row.indexed_at is not None
            if footer is None:
                report.lost_segments += 1
                if row.store_id is None:  # else its store may only be away
                    Segment.objects.filter(pk=row.pk, damaged_at=None).update(
                        damaged_at=timezone.now()
                    )
            else:
                report.blocks += restorer.restore(row, footer.rows, within_quota=not is_settled)
                report.segments += 1
            number = row.pk if is_settled else number
            progress(report, total, number)
        stored.settle_since(tenant_id, start.begun_at)
        pins.restore(tenant_id)
    return report


def _fitting(rows: Iterable[SegmentRow], room_bytes: int) -> Iterable[SegmentRow]:
    for row in rows:
        room_bytes -= row.stored_length
        if room_bytes < 0:
            return
        yield row


def _footer(stores: Stores, row: Segment) -> SegmentFooter | None:
    """From the segment's place, or from a copy. None: lost, or all its stores are away.

    Trouble of the default store is raised if no copy helps.
    """
    copies = [copy.store_id for copy in row.copies.all() if copy.state in SegmentCopy.READABLE]
    trouble: Exception | None = None
    for store_id in (row.store_id, *copies):
        try:
            return footer_of_segment(row, stores.bucket(store_id).object(row.object_key))
        except Corrupt as error:
            log_events.SEGMENT_LOST.log(object=row.object_key, reason=error)
        except (BotoCoreError, ClientError, Unavailable) as error:
            if isinstance(error, ClientError) and is_missing(error):
                log_events.SEGMENT_LOST.log(object=row.object_key, reason="missing")
                continue
            log_events.STORE_FAILED.log(store=stores.name(store_id), error=error)
            if store_id is None:
                trouble = error
    if trouble is not None:
        raise trouble
    return None
