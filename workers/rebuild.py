"""Recovery: the index of an emptied Valkey, rebuilt from the footers of the segments in S3.

Repeating it is safe, and it runs beside live traffic: a footer adds blocks that the index does not
know, and never brings back what the index knows as gone. What people decided is applied again from
the database: an expired context stays expired, a pin stays a pin, and each block gets the
terms that policy, rules and contexts give it now, counted from when it was stored.
"""

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime

from botocore.exceptions import ClientError
from django.utils import timezone

from catalog import contexts
from catalog.models import Context, Segment
from controlplane.hot import hot_tier
from neve.errors import Corrupt
from neve.segment import SegmentFooter
from retention import stored
from tenants.scope import tenant_scope
from workers.objects import footer_of, is_missing

log = logging.getLogger("neve.rebuild")

FOOTERS_AT_ONCE = 8


@dataclass
class RebuildReport:
    """`lost_segments`: rows whose object is missing, cut or foreign. Their blocks are misses."""

    segments: int = 0
    blocks: int = 0
    lost_segments: int = 0


def rebuild_tenant(
    tenant_id: int, *, progress: Callable[[int, int], None] = lambda done, total: None
) -> RebuildReport:
    """Restores one tenant's index. `progress` gets (segments done, all). Raises valkey's errors."""
    report, started = RebuildReport(), timezone.now()
    tier, standing = hot_tier(tenant_id), stored.StandingTerms(tenant_id)
    with tenant_scope(tenant_id):
        segments = list(Segment.objects.filter(state=Segment.State.LIVE).order_by("pk"))
        expired = _expired_at()
        for row, footer in _footers(segments):
            if footer is None:
                report.lost_segments += 1
            else:
                # What was stored again after its context expired lives; what is older doesn't.
                rows = [
                    r for r in footer.rows if r.id not in expired or expired[r.id] < row.created_at
                ]
                terms = standing.of([r.id for r in rows], [row.space_id] * len(rows))
                segment_s = int(row.created_at.timestamp())
                blocks = [
                    stored.restored(r, own, segment_s=segment_s)
                    for r, own in zip(rows, terms, strict=True)
                ]
                report.blocks += tier.restore(row.pk, row.space_id, blocks)
                report.segments += 1
            progress(report.segments + report.lost_segments, len(segments))
        stored.settle_since(tenant_id, started)
        contexts.restore_pins(tenant_id)
    return report


def _expired_at() -> dict[bytes, datetime]:
    """When each block of an expired context was expired last."""
    rows = Context.objects.exclude(expired_at=None).order_by("expired_at")
    return {id_: context.expired_at for context in rows for id_ in context.ids()}


def _footers(segments: list[Segment]) -> Iterator[tuple[Segment, SegmentFooter | None]]:
    """Footers in the order of `segments`, fetched several at a time."""
    with ThreadPoolExecutor(FOOTERS_AT_ONCE, thread_name_prefix="footer") as pool:
        yield from zip(segments, pool.map(_footer, segments), strict=True)


def _footer(row: Segment) -> SegmentFooter | None:
    try:
        footer = footer_of(row.object_key)
        if footer.header.uuid != row.uuid or footer.header.tenant_id != row.tenant_id:
            raise Corrupt(f"is segment {footer.header.uuid} of tenant {footer.header.tenant_id}")
    except Corrupt as error:
        log.warning("segment_lost key=%s reason=%s", row.object_key, error)
        return None
    except ClientError as error:
        if not is_missing(error):
            raise
        log.warning("segment_lost key=%s reason=missing", row.object_key)
        return None
    return footer
