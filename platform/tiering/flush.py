"""Flush: dirty blocks of the hot tier become segments in S3.

    lease → read and verify ┬ the parts go out meanwhile ┬ footer read back → live → `flushed`

A crash at any point loses nothing: before `flushed` the blocks stay dirty and their lease lapses;
reconcile removes segment rows that never became live, with their objects. Two workers never have
the same lease, and `flushed` may be repeated.

Memory: `memory_bytes()` on top of the process's own, however large the backlog.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby

from valkey.exceptions import ValkeyError

from catalog.models import Space
from neve.errors import Unavailable
from neve.formats.segment import SegmentRow
from neve.index.tier import DirtyBlock, FlushOutcome, HotTier, Tier, Usage
from storage.hot import hot_tier
from tenants.scope import tenant_scope
from tiering import hot_reading, read_ahead, recovery, segments, upload
from tiering.batches import cut_evenly
from tiering.chains import order_along_chains
from tiering.compaction.room import make_room_to_flush
from tiering.encoding import encoder_of
from tiering.hot_reading import HotReader, LinkedBlock
from tiering.segments import StoredBlock, write_segment

# Leased at once: enough for several segments, so that each of many spaces fills one.
LEASE_BYTES, LEASE_BLOCKS = 1 << 30, 4096
LEASE_S = 60  # renewed while the flush goes on; a killed worker's blocks wait so long
GATHER_S = 5.0  # a due block waits so long for others at most
DIRTY_SHARE = 0.25  # of the hot quota; dirty blocks cannot be evicted, so more make room scarce
PASS_S = 30.0  # then the task ends and the next one goes on
BLOCK_BYTES = 600  # of Python objects for a leased block


@dataclass
class FlushReport:
    """Counts of one pass.

    `refused_blocks`: the cold quota had no room for them. `evicted_blocks`: left the cold tier to
    make room. `waiting_blocks`: stay dirty until compaction has freed space in the object store.
    """

    segments: int = 0
    blocks: int = 0
    bytes: int = 0
    refused_blocks: int = 0
    refused_bytes: int = 0
    evicted_blocks: int = 0
    evicted_bytes: int = 0
    unreadable_blocks: int = 0
    waiting_blocks: int = 0


class Flusher:
    """Flushes one tenant. Not for threads; many may run at once, in any processes."""

    def __init__(self, tenant_id: int) -> None:
        self.tenant_id = tenant_id
        self.report = FlushReport()
        self._tier = hot_tier(tenant_id)

    def lease(self) -> "Leases | None":
        """Leases due blocks, up to LEASE_BYTES; None if none is due or other workers have them."""
        blocks = self._tier.lease_dirty(
            lease_s=LEASE_S, most_blocks=LEASE_BLOCKS, most_bytes=LEASE_BYTES
        )
        return Leases(self._tier, blocks) if blocks else None

    def run(
        self,
        leases: "Leases | None" = None,
        *,
        progress: Callable[[FlushReport], object] = lambda report: None,
    ) -> FlushReport:
        """Flushes `leases`, then other due blocks, for PASS_S at most; `progress` per segment.

        Raises the errors of S3, Valkey and the database, and `Unavailable` when the index is not
        whole: Valkey may restart at any time.
        """
        end = time.monotonic() + PASS_S
        reader = HotReader(self.tenant_id, self._tier)
        try:
            with tenant_scope(self.tenant_id):
                leases = leases or self.lease()
                while leases:
                    with leases:
                        self._flush(leases, reader, end, progress)
                    is_over = time.monotonic() >= end or self.report.waiting_blocks > 0
                    leases = None if is_over else self.lease()
        finally:
            reader.close()
        return self.report

    def _flush(
        self,
        leases: "Leases",
        reader: HotReader,
        end: float,
        progress: Callable[[FlushReport], object],
    ) -> None:
        by_space = sorted(leases.blocks, key=lambda dirty: dirty.space_id)
        for space_id, blocks in groupby(by_space, key=lambda dirty: dirty.space_id):
            space = Space.objects.filter(pk=space_id).first()
            if space is None:  # deleted: nobody can ask for these blocks any more
                ids = [dirty.id for dirty in blocks]
                self.report.unreadable_blocks += self._tier.forget(Tier.HOT, ids)
                continue
            ordered = order_along_chains(reader.link(list(blocks)))
            quota_bytes = self._tier.usage().quota_cold_bytes
            for piece in cut_evenly(ordered, segments.most_bytes(quota_bytes)):
                if time.monotonic() >= end:
                    return
                if not make_room_to_flush(self._tier, sum(block.size_bytes for block in piece)):
                    self.report.waiting_blocks += len(piece)
                    continue
                self._flush_segment(space, piece, reader, leases)
                progress(self.report)

    def _flush_segment(
        self, space: Space, blocks: list[LinkedBlock], reader: HotReader, leases: "Leases"
    ) -> None:
        _require_whole_index(self.tenant_id)
        admission = self._tier.admit([(block.id, block.size_bytes) for block in blocks])
        self.report.evicted_blocks += admission.evicted_blocks
        self.report.evicted_bytes += admission.evicted_bytes
        fitting = []
        for block, fits in zip(blocks, admission.fits, strict=True):
            if fits:
                fitting.append(block)
            else:
                self._count_refused(block.size_bytes)
        if not fitting:
            return
        unreadable_before = reader.unreadable_blocks
        encoder = encoder_of(space)
        blocks_read = leases.kept_during(reader.read(space, fitting))
        written = write_segment(
            self._tier,
            space,
            self._in_a_whole_index(blocks_read),
            expected_bytes=sum(block.size_bytes for block in fitting),
            encode=encoder.encode if encoder else None,
        )
        self.report.unreadable_blocks += reader.unreadable_blocks - unreadable_before
        if written is None:
            return
        row, places = written
        outcomes = self._tier.flushed(
            row.pk, [(place.id, segments.place_of(place)) for place in places]
        )
        live: list[SegmentRow] = []
        dead: list[SegmentRow] = []
        for place, outcome in zip(places, outcomes, strict=True):
            (live if outcome is FlushOutcome.FLUSHED else dead).append(place)
            if outcome is FlushOutcome.COLD_FULL:
                self._count_refused(place.length)
        segments.settle(row, [place.id for place in dead])
        segments.count_live_bytes(self._tier, [row.pk])
        segments.find_links(self._tier, row, places)
        self.report.segments += 1
        self.report.blocks += len(live)
        self.report.bytes += sum(place.stored_length for place in live)

    def _count_refused(self, size_bytes: int) -> None:
        self.report.refused_blocks += 1
        self.report.refused_bytes += size_bytes

    def _in_a_whole_index(self, blocks: Iterator[StoredBlock]) -> Iterator[StoredBlock]:
        """Checks the index when `write_segment` takes the first block.

        The segment is open by then: if Valkey restarts later, the segment is not open in the new
        index, and `flushed` adds no block of it.
        """
        _require_whole_index(self.tenant_id)
        yield from blocks


@dataclass
class Leases:
    """A context manager with leases on `blocks`; its end gives up the leases of dirty blocks."""

    tier: HotTier
    blocks: Sequence[DirtyBlock]
    renew_at: float = field(default_factory=lambda: time.monotonic() + LEASE_S / 3)

    def kept_during(self, blocks: Iterator[StoredBlock]) -> Iterator[StoredBlock]:
        """The same blocks; renews the leases when it is time."""
        for block in blocks:
            yield block
            if time.monotonic() >= self.renew_at:
                self.tier.renew_leases([dirty.id for dirty in self.blocks], LEASE_S)
                self.renew_at = time.monotonic() + LEASE_S / 3

    def __enter__(self) -> "Leases":
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(ValkeyError):  # then they lapse
            self.tier.renew_leases([dirty.id for dirty in self.blocks], 0)


def _require_whole_index(tenant_id: int) -> None:
    """An index that lost the latest flushes counts free room that is not there."""
    if not recovery.index_is_whole(tenant_id):
        raise Unavailable("valkey was started again, and its index is not whole yet")


def memory_bytes() -> int:
    """The most memory that a flush takes on top of the process's own."""
    read = read_ahead.BATCH_BYTES * hot_reading.BATCHES_HELD
    return upload.memory_bytes() + read + LEASE_BLOCKS * BLOCK_BYTES


def is_worth_a_segment(usage: Usage, now_s: float) -> bool:
    """Whether to flush now: a segment is full, a block waited long enough, or room is scarce.

    Flushing each block at once would leave S3 with a segment a second.
    """
    if usage.oldest_due_s is None or usage.oldest_due_s > now_s:
        return False
    return (
        usage.dirty_bytes >= segments.least_bytes(usage.quota_cold_bytes)
        or usage.oldest_due_s <= now_s - GATHER_S
        or usage.dirty_bytes >= usage.quota_hot_bytes * DIRTY_SHARE
    )
