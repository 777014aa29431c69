"""Loads blocks into the caller's buffers: hot ones from Valkey, cold ones from S3.

A block counts as filled only after its id, length and checksum were verified. A bad copy is
forgotten; when the same block also stands in S3, it is read from there.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from neve.block import HEADER_BYTES, verify
from neve.breaker import Breaker
from neve.cold import ColdBlock, ColdReader, plan_ranges
from neve.errors import Closed, Corrupt, MissReason
from neve.hot import Location, Tier
from neve.hotpath import HotPath, reason_of
from neve.stats import Stats
from neve.transfer import Job, JobPool, Transfer, Urgency
from neve.transport import Get

# One job keeps one connection busy: large enough to hide a round trip, small enough that loads
# which come later need not wait long.
PART_BYTES: Final = 32 << 20
LEAST_PART_BYTES: Final = 1 << 20
PART_BLOCKS: Final = 256

Promote = Callable[[Sequence[ColdBlock]], None]


def split_parts(sizes: Sequence[int], lanes: int) -> list[range]:
    """Cuts a batch into runs of neighbours, so that each lane gets about the same bytes."""
    fair_bytes = -(-sum(sizes) // lanes)
    most = min(max(fair_bytes, LEAST_PART_BYTES), PART_BYTES)
    parts, first, held = [], 0, 0
    for i, size in enumerate(sizes):
        if i > first and (held + size > most or i - first == PART_BLOCKS):
            parts.append(range(first, i))
            first, held = i, 0
        held += size
    if first < len(sizes):
        parts.append(range(first, len(sizes)))
    return parts


@dataclass(frozen=True)
class _Load:
    """One `get_many`. `served` says from which tier each block came, once it did."""

    ids: Sequence[bytes]
    payloads: Sequence[memoryview]
    locations: Sequence[Location]
    transfer: Transfer
    served: list[Tier | None]
    started: float


class Loader:
    """For any thread. `promote` is given cold blocks that were read and verified."""

    def __init__(
        self,
        path: HotPath,
        cold: ColdReader,
        *,
        hot_pool: JobPool,
        cold_pool: JobPool,
        lanes: int,
        stats: Stats,
        promote: Promote | None,
    ) -> None:
        self.cold_breaker = Breaker()
        self._path = path
        self._cold = cold
        self._hot_pool = hot_pool
        self._cold_pool = cold_pool
        self._lanes = lanes
        self._stats = stats
        self._promote = promote

    def load(
        self,
        ids: Sequence[bytes],
        payloads: Sequence[memoryview],
        locations: Sequence[Location],
        *,
        deadline_s: float,
    ) -> Transfer:
        started = time.monotonic()
        transfer = Transfer(len(ids), started + deadline_s)
        load = _Load(ids, payloads, locations, transfer, [None] * len(ids), started)
        transfer.before_done(lambda outcomes: self._count(load, outcomes))
        hot, cold = [], []
        for i, (location, payload) in enumerate(zip(locations, payloads, strict=True)):
            if location.size_bytes != HEADER_BYTES + len(payload):
                transfer.settle(i, MissReason.CORRUPT)
            elif location.tier is Tier.HOT:
                hot.append(i)
            else:
                cold.append(i)
        parts = split_parts([locations[i].size_bytes for i in hot], self._lanes)
        jobs = [Job(self._hot_job(load, [hot[k] for k in part]), transfer) for part in parts]
        with suppress(Closed):  # then the jobs were given up: misses
            self._hot_pool.submit(jobs, Urgency.LOAD)
            self._submit_cold(load, cold)
        transfer.end_job()
        return transfer

    def _hot_job(self, load: _Load, indices: Sequence[int]) -> Callable[[], None]:
        return lambda: self._load_hot(load, indices)

    def _load_hot(self, load: _Load, indices: Sequence[int]) -> None:
        headers = memoryview(bytearray(HEADER_BYTES * len(indices)))
        gets = [
            Get(
                self._path.block_key(load.ids[i]),
                headers[n * HEADER_BYTES : (n + 1) * HEADER_BYTES],
                load.payloads[i],
            )
            for n, i in enumerate(indices)
        ]
        touches = self._path.touch_calls(load.ids[i] for i in indices)
        results = self._path.run([*gets, *touches], deadline=load.transfer.deadline)
        corrupt, vanished, again = [], [], []
        for i, get, result in zip(indices, gets, results[: len(gets)], strict=True):
            outcome = _judge(get, result, load.ids[i])
            load.transfer.settle(i, outcome)
            if outcome is None:
                load.served[i] = Tier.HOT
            if outcome is MissReason.CORRUPT:
                corrupt.append(load.ids[i])
            if outcome is MissReason.EVICTED:
                vanished.append(load.ids[i])
            if outcome in (MissReason.CORRUPT, MissReason.EVICTED) and load.locations[i].is_cold:
                again.append(i)
        self._submit_cold(load, again)
        self._stats.count(corrupt=len(corrupt))
        self._forget(Tier.HOT, [*corrupt, *vanished])

    def _submit_cold(self, load: _Load, indices: Sequence[int]) -> None:
        blocks = [
            ColdBlock(
                index=i,
                id=load.ids[i],
                segment=load.locations[i].segment,
                offset=load.locations[i].offset,
                payload=load.payloads[i],
            )
            for i in indices
        ]
        segments = sorted({block.segment for block in blocks})
        jobs = [
            Job(self._cold_job(load, group, segments), load.transfer)
            for group in plan_ranges(blocks)
        ]
        if jobs:
            self._cold_pool.submit(jobs, Urgency.LOAD)

    def _cold_job(
        self, load: _Load, group: Sequence[ColdBlock], segments: Sequence[int]
    ) -> Callable[[], None]:
        return lambda: self._load_cold(load, group, segments)

    def _load_cold(self, load: _Load, group: Sequence[ColdBlock], segments: Sequence[int]) -> None:
        if not self.cold_breaker.allow():
            for block in group:
                load.transfer.settle(block.index, MissReason.BREAKER)
            return
        outcomes, trouble = self._cold.read(group, deadline=load.transfer.deadline, also=segments)
        if trouble is None:
            self.cold_breaker.succeed()
        else:
            self.cold_breaker.fail()
        for block, outcome in zip(group, outcomes, strict=True):
            load.transfer.settle(block.index, outcome)
            if outcome is None:
                load.served[block.index] = Tier.COLD
        pairs = list(zip(group, outcomes, strict=True))
        if self._promote is not None:
            self._promote([block for block, outcome in pairs if outcome is None])
        corrupt = [block.id for block, outcome in pairs if outcome is MissReason.CORRUPT]
        self._stats.count(corrupt=len(corrupt))
        self._forget(Tier.COLD, corrupt)

    def _forget(self, tier: Tier, ids: Sequence[bytes]) -> None:
        """The index must not promise what is bad, or (an index gone wrong) not there."""
        if ids:
            self._path.forget(tier, ids)

    def _count(self, load: _Load, outcomes: Sequence[MissReason | None]) -> None:
        tokens = self._path.session.chunk_tokens
        for i, outcome in enumerate(outcomes):
            size_bytes, tier = load.locations[i].size_bytes, load.served[i]
            if outcome is not None:
                self._stats.miss(outcome)
            elif tier is Tier.HOT:
                self._stats.count(
                    hit_hot_blocks=1, hit_hot_tokens=tokens, hot_read_bytes=size_bytes
                )
            else:
                self._stats.count(
                    hit_cold_blocks=1, hit_cold_tokens=tokens, cold_read_bytes=size_bytes
                )
        self._stats.load(time.monotonic() - load.started)


def _judge(get: Get, result: object, block_id: bytes) -> MissReason | None:
    if result is None:
        return MissReason.EVICTED
    if not isinstance(result, int):
        return reason_of(result)
    try:
        verify(get.header, get.payload, expect_id=block_id)
    except Corrupt:
        return MissReason.CORRUPT
    return None
