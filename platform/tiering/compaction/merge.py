"""Carries a planned merge out.

    footers → blocks that the index still names there → along their chains → write → relocate

A crash at any point loses nothing: old segments stay until no entry names them, and a new segment
whose blocks were not relocated has dead bytes only. A block that is damaged in S3 (read twice) is
not copied; the index forgets that copy. Encoded blocks are copied as they stand, and plain ones
encoded where the policy says so. Memory: `memory_bytes()` on top of the process's own.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from botocore.exceptions import ClientError
from django.utils import timezone

from base import log_events
from catalog.models import Segment, Space
from catalog.stores import Stores, objects_of
from neve.errors import Corrupt, Unavailable
from neve.formats.block import PLAIN
from neve.formats.segment import SegmentFooter, SegmentRow
from neve.index.tier import FlushOutcome, HotTier, Location, MovedBlock
from storage.s3 import Object
from tiering import read_ahead, segments, upload
from tiering.batches import cut_evenly
from tiering.chains import order_along_chains
from tiering.compaction.plan import Merge, Policy
from tiering.compaction.source import BATCHES_HELD, ColdCopy, ColdSource
from tiering.encoding import encoder_of
from tiering.objects import footer_of_segment, is_missing
from tiering.segments import StoredBlock, write_segment

FOOTERS_AT_ONCE = 8
BLOCK_BYTES = 1024  # of Python objects for a block that is merged


@dataclass
class CompactReport:
    """Counts of a pass. `dead_bytes`: of the old segments, free once they are deleted."""

    merges: dict[str, int] = field(default_factory=dict)  # reason → how many
    old_segments: int = 0
    new_segments: int = 0
    blocks: int = 0
    bytes: int = 0
    dead_bytes: int = 0
    corrupt_blocks: int = 0
    moved_meanwhile: int = 0  # blocks that were removed or moved while they were copied


def memory_bytes(policy: Policy) -> int:
    """The most memory that a merge takes on top of the process's own."""
    read = read_ahead.BATCH_BYTES * BATCHES_HELD
    return upload.memory_bytes() + read + policy.most_blocks * BLOCK_BYTES


def carry_out(
    tier: HotTier,
    space: Space,
    merge: Merge,
    report: CompactReport,
    *,
    most_bytes: int = segments.MOST_BYTES,
    renew: Callable[[], None] = lambda: None,
) -> None:
    """Merges claimed segments into new ones of about `most_bytes`, in the same store. In the
    tenant's scope.

    Calls `renew` often. Raises the errors of S3, Valkey and the database, and `Corrupt` if a
    segment is missing.
    """
    rows = list(Segment.objects.filter(pk__in=merge.segments).order_by("pk"))
    stores = Stores()
    objects = objects_of(rows, stores)
    copies = list(live_copies(tier, rows, _footers(rows, objects)))
    source = ColdSource(objects)
    try:
        for part in cut_evenly(order_along_chains(copies), most_bytes):
            _write(tier, space, merge, part, source, rows[0].store_id, report, renew)
    finally:
        source.close()
    segments.count_live_bytes(tier, merge.segments)
    report.merges[merge.reason] = report.merges.get(merge.reason, 0) + 1
    report.old_segments += len(rows)
    report.dead_bytes += sum(row.size_bytes for row in rows) - sum(c.size_bytes for c in copies)


def _footers(rows: Sequence[Segment], objects: Mapping[int, Object]) -> list[SegmentFooter]:
    """Raises Corrupt and marks segments without a good footer: only reconcile clears the mark."""
    with ThreadPoolExecutor(FOOTERS_AT_ONCE, thread_name_prefix="footer") as pool:
        opened = list(pool.map(lambda row: _footer(row, objects.get(row.pk)), rows))
    bad = {
        row.pk: each for row, each in zip(rows, opened, strict=True) if isinstance(each, Corrupt)
    }
    if bad:
        Segment.objects.filter(pk__in=bad, damaged_at=None).update(damaged_at=timezone.now())
        raise next(iter(bad.values()))
    return [each for each in opened if isinstance(each, SegmentFooter)]


def _footer(row: Segment, object_: Object | None) -> SegmentFooter | Corrupt:
    if object_ is None:
        raise Unavailable(f"{row.object_key}: the keys of its store cannot be read")
    try:
        return footer_of_segment(row, object_)
    except Corrupt as error:
        return error
    except ClientError as error:
        if is_missing(error):
            return Corrupt(f"{row.object_key} is missing")
        raise


def live_copies(
    tier: HotTier, rows: Sequence[Segment], footers: Sequence[SegmentFooter]
) -> Iterator[ColdCopy]:
    """Blocks whose cold copy, by the index, stands at its place in these segments."""
    for row, footer in zip(rows, footers, strict=True):
        answers = tier.match([each.id for each in footer.rows])
        for each, answer in zip(footer.rows, answers, strict=True):
            if isinstance(answer, Location) and (
                (answer.segment, answer.offset) == (row.pk, each.offset)
            ):
                stored_s = each.stored_s or int(row.created_at.timestamp())
                yield ColdCopy(row.pk, replace(each, stored_s=stored_s))


def _write(
    tier: HotTier,
    space: Space,
    merge: Merge,
    copies: Sequence[ColdCopy],
    source: ColdSource,
    store_id: int | None,
    report: CompactReport,
    renew: Callable[[], None],
) -> None:
    blocks = _renewing(source.read(copies), renew)
    encoder = encoder_of(space)
    written = write_segment(
        tier,
        space,
        blocks,
        expected_bytes=sum(copy.size_bytes for copy in copies),
        generation=merge.generation,
        store_id=store_id,
        encode=encoder.encode if encoder else None,
        are_encoded=any(copy.row.codec != PLAIN for copy in copies),
    )
    bad, source.bad = source.bad, []
    if bad:
        for copy in bad:
            log_events.BLOCK_CORRUPT.log(segment=copy.segment, id=copy.id.hex())
        gone = [MovedBlock(copy.id, copy.segment, copy.row.offset, 0) for copy in bad]
        report.corrupt_blocks += tier.relocate(0, gone).count(FlushOutcome.FLUSHED)
    if written is None:
        return
    row, places = written
    old = {copy.id: copy for copy in copies}
    outcomes = tier.relocate(row.pk, [_moved(old[place.id], place) for place in places])
    answered = zip(places, outcomes, strict=True)
    segments.settle(row, [place.id for place, what in answered if what is FlushOutcome.DEAD])
    segments.count_live_bytes(tier, [row.pk])
    segments.find_links(tier, row, places)
    report.new_segments += 1
    report.blocks += len(places)
    report.bytes += row.size_bytes
    report.moved_meanwhile += outcomes.count(FlushOutcome.DEAD)


def _moved(old: ColdCopy, new: SegmentRow) -> MovedBlock:
    return MovedBlock(old.id, old.segment, old.row.offset, segments.place_of(new))


def _renewing(blocks: Iterator[StoredBlock], renew: Callable[[], None]) -> Iterator[StoredBlock]:
    for block in blocks:
        yield block
        renew()
