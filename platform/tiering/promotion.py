"""Copies a context's cold blocks into the hot tier, for pins of the tier `hot`.

Nodes promote what they read twice (`neve_promote`); here nobody reads yet. A copy is stored as a
node stores it: the value first, then `neve_commit`, which charges the hot quota or refuses.
"""

from collections.abc import Callable
from dataclasses import dataclass

from django.conf import settings

from catalog.models import Context, Segment
from catalog.stores import objects_of
from contexts.parts import Parts
from neve.formats import block
from neve.formats.keys import BucketKeys, bucket_of
from neve.formats.segment import SegmentRow
from neve.index.tier import CommitOutcome, Location, Tier
from storage import hot, hot_servers
from tenants.scope import tenant_scope
from tiering.compaction.source import ColdCopy, ColdSource
from tiering.segments import StoredBlock

MOST_BYTES = block.HEADER_BYTES + block.MAX_PAYLOAD_BYTES


@dataclass
class PromotionReport:
    """Blocks: `promoted` ones are hot now; `refused` ones found no room in the hot quota. `bad`
    ones are damaged in S3, or their segment has left."""

    promoted: int = 0
    bytes: int = 0
    refused: int = 0
    bad: int = 0


def promote(
    tenant_id: int, context_id: str, progress: Callable[[PromotionReport], object]
) -> PromotionReport:
    """May be repeated: hot blocks are left out. Ends early once the hot quota refuses a block.

    Raises the errors of S3, Valkey and the database, `Corrupt` if a segment is missing in S3.
    """
    report, tier = PromotionReport(), hot.hot_tier(tenant_id)
    with tenant_scope(tenant_id):
        context = Context.objects.select_related("space").filter(pk=context_id).first()
        if context is None or not context.is_pinned:
            return report
        ids = Parts(context.space).of(context.ids())
        cold = {
            id_: found
            for id_, found in zip(ids, tier.match(ids), strict=True)
            if isinstance(found, Location) and found.tier is Tier.COLD
        }
        numbers = {found.segment for found in cold.values()}
        objects = objects_of(list(Segment.objects.filter(pk__in=numbers)))
    # Nodes can write their tenant's index: only its own segments are read, and no giant blocks.
    copies = [
        ColdCopy(found.segment, _row(id_, found), is_decoded=True)
        for id_, found in cold.items()
        if found.segment in objects and found.size_bytes <= MOST_BYTES
    ]
    report.bad = len(cold) - len(copies)
    source = ColdSource(objects)
    try:
        for stored in source.read(copies):
            outcome = _store(tenant_id, context.space_id, stored)
            if outcome is CommitOutcome.REFUSED:
                report.refused = len(cold) - report.promoted - report.bad
                break
            report.promoted += 1
            report.bytes += len(stored.raw)
            progress(report)
    finally:
        source.close()
    report.bad += len(source.bad)
    return report


def _row(id_: bytes, found: Location) -> SegmentRow:
    encoded = found.encoded_bytes + block.HEADER_BYTES if found.encoded_bytes else 0
    return SegmentRow(
        *(id_, b"", found.offset, found.size_bytes),
        tokens=0,
        checksum=0,
        encoded_length=encoded,
        codec=found.codec,
    )


def _store(tenant_id: int, space_id: int, stored: StoredBlock) -> CommitOutcome:
    id_, size = stored.header.id, len(stored.raw)
    keys = BucketKeys(tenant_id, bucket_of(id_, settings.ENV.hot_buckets))
    value = bytes(stored.raw)
    hot_servers.admin().set(keys.block(space_id, id_), value, nx=True, px=block.UNCOMMITTED_MS)
    tier = hot.hot_tier(tenant_id)
    (outcome,) = tier.commit(space_id, [(id_, size, stored.header.tokens)])
    return outcome
