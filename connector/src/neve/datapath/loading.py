"""Loads blocks into the caller's buffers: hot ones from Valkey, cold ones from S3, and those that
the node's local tier has from there. What that fails to give comes from where the index says.

A block counts as filled only after its id, length and checksum were verified. A bad copy is
forgotten; when the same block also stands in S3, it is read from there.
"""

import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import compress

from neve.datapath.cold import ColdBlock, ColdReader, plan_ranges
from neve.datapath.cold_guard import ColdGuard
from neve.datapath.hedging import ReadStop
from neve.datapath.hotpath import HotPath
from neve.datapath.local import LocalTier, Wanted
from neve.datapath.payload import Payload
from neve.datapath.promoting import Claims, Promoter
from neve.datapath.status import Status
from neve.datapath.transfer import JobPool, PoolJob, Transfer, Urgency
from neve.errors import Closed, MissReason, NeveError
from neve.formats.block import HEADER_BYTES
from neve.index.tier import Location, Tier
from neve.node.stats import Stats


@dataclass(frozen=True)
class _Batch:
    """One `get_many`. `served`: the tier that each block was loaded from, or None."""

    ids: Sequence[bytes]
    payloads: Sequence[Payload]
    locations: Sequence[Location]
    tokens: Sequence[int]
    transfer: Transfer
    served: list[Tier | None]
    started: float


class Loader:
    """For any thread. Without a `promoter` cold blocks stay cold."""

    def __init__(
        self,
        path: HotPath,
        cold: ColdReader,
        *,
        cold_pool: JobPool,
        cold_streams: int,
        stats: Stats,
        promoter: Promoter | None,
        local: LocalTier | None = None,
    ) -> None:
        self._platform = ColdGuard()
        self._stores: dict[str, ColdGuard] = {}  # by host and port
        self._path = path
        self._cold = cold
        self._cold_pool = cold_pool
        self._cold_streams = cold_streams
        self._stats = stats
        self._promoter = promoter
        self._local = local

    def load(
        self,
        ids: Sequence[bytes],
        payloads: Sequence[Payload],
        locations: Sequence[Location],
        tokens: Sequence[int],
        *,
        deadline_s: float,
    ) -> Transfer:
        started = time.monotonic()
        transfer = Transfer(len(ids), started + deadline_s)
        load = _Batch(ids, payloads, locations, tokens, transfer, [None] * len(ids), started)
        transfer.before_done(lambda outcomes: self._count(load, outcomes))
        wanted = []
        for i, (location, payload) in enumerate(zip(locations, payloads, strict=True)):
            if location.size_bytes == HEADER_BYTES + len(payload):
                wanted.append(i)
            else:
                transfer.settle(i, MissReason.CORRUPT)
        self._submit_indexed(load, self._submit_local(load, wanted))
        transfer.end_job()
        return transfer

    def _submit_local(self, load: _Batch, indices: Sequence[int]) -> Sequence[int]:
        """Returns the blocks that are not here."""
        if self._local is None or self._path.suspended_for is not None:
            return indices
        here = self._local.split([load.ids[i] for i in indices])
        if any(here):
            blocks = [(i, load.ids[i], load.payloads[i]) for i in compress(indices, here)]
            self._local.read(load.transfer, blocks, lambda ended: self._end_local(load, ended))
        return [i for i, is_here in zip(indices, here, strict=True) if not is_here]

    def _end_local(self, load: _Batch, ended: Sequence[tuple[Wanted, Status]]) -> None:
        """Blocks that did not come are read from where the index says."""
        again = []
        for (i, _, _), status in ended:
            if status is Status.OK:
                load.transfer.settle(i, None)
                load.served[i] = Tier.LOCAL
            else:
                again.append(i)
        if not load.transfer.is_cancelled:
            self._submit_indexed(load, again)
        # Else the index would take blocks for idle that are read here all the time.
        self._path.touch([load.ids[i] for (i, _, _), status in ended if status is Status.OK])

    def _submit_indexed(self, load: _Batch, indices: Sequence[int]) -> None:
        hot = [i for i in indices if load.locations[i].tier is Tier.HOT]
        if hot:
            self._submit_hot(load, hot)
        with suppress(Closed):  # its jobs were given up: their blocks are misses
            self._submit_cold(load, [i for i in indices if load.locations[i].tier is Tier.COLD])

    def _submit_hot(self, load: _Batch, indices: Sequence[int]) -> None:
        suspended = self._path.suspended_for
        if suspended is not None:
            for i in indices:
                load.transfer.settle(i, suspended)
            return
        headers = bytearray(HEADER_BYTES * len(indices)) if self._local else None
        self._path.get(
            load.transfer,
            [load.ids[i] for i in indices],
            [load.payloads[i] for i in indices],
            lambda statuses: self._end_hot(load, indices, headers, statuses),
            headers=headers,
        )

    def _end_hot(
        self,
        load: _Batch,
        indices: Sequence[int],
        headers: bytearray | None,
        statuses: Sequence[Status],
    ) -> None:
        corrupt, vanished, again = [], [], []
        for i, status in zip(indices, statuses, strict=True):
            outcome = status.miss
            load.transfer.settle(i, outcome)
            if outcome is None:
                load.served[i] = Tier.HOT
            if outcome is MissReason.CORRUPT:
                corrupt.append(load.ids[i])
            if outcome is MissReason.EVICTED:
                vanished.append(load.ids[i])
            if outcome in (MissReason.CORRUPT, MissReason.EVICTED) and load.locations[i].is_cold:
                again.append(i)
        with suppress(Closed):
            self._submit_cold(load, again)
        self._stats.count(corrupt=len(corrupt))
        if self._local and headers:
            raw = memoryview(headers)
            self._local.keep(
                [
                    (load.ids[i], bytes(raw[HEADER_BYTES * n :][:HEADER_BYTES]), load.payloads[i])
                    for n, (i, status) in enumerate(zip(indices, statuses, strict=True))
                    if status is Status.OK
                ]
            )
        # The index must not promise blocks that are corrupt, or not in Valkey at all.
        if wrong := [*corrupt, *vanished]:
            self._path.forget_within(load.transfer, Tier.HOT, wrong)

    def _submit_cold(self, load: _Batch, indices: Sequence[int]) -> None:
        blocks = [
            ColdBlock(
                index=i,
                id=load.ids[i],
                segment=load.locations[i].segment,
                offset=load.locations[i].offset,
                payload=load.payloads[i],
                codec=load.locations[i].codec,
                encoded_bytes=load.locations[i].encoded_bytes,
            )
            for i in indices
        ]
        segments = sorted({block.segment for block in blocks})
        claims = self._promoter.ask([block.id for block in blocks]) if self._promoter else None
        jobs = [
            self._cold_job(load, group, segments, claims)
            for group in plan_ranges(blocks, streams=self._cold_streams)
        ]
        if jobs:
            self._cold_pool.submit(jobs, Urgency.LOAD)

    def _cold_job(
        self,
        load: _Batch,
        group: Sequence[ColdBlock],
        segments: Sequence[int],
        claims: Claims | None,
    ) -> PoolJob:
        stop = ReadStop()

        def run() -> None:
            verified = self._load_cold(load, group, segments, stop)
            if self._local:
                self._local.keep([(each.id, bytes(each.header), each.payload) for each in verified])
            if claims:
                claims.promote(verified)

        return PoolJob(run, load.transfer, stop=stop.stop)

    def _load_cold(
        self, load: _Batch, group: Sequence[ColdBlock], segments: Sequence[int], stop: ReadStop
    ) -> list[ColdBlock]:
        """Settles the group's blocks. Returns those that were read and verified."""
        outcomes = self._read_cold(load.transfer.deadline, group, segments, stop)
        for block, outcome in zip(group, outcomes, strict=True):
            load.transfer.settle(block.index, outcome)
            if outcome is None:
                load.served[block.index] = Tier.COLD
        pairs = list(zip(group, outcomes, strict=True))
        corrupt = [block.id for block, outcome in pairs if outcome is MissReason.CORRUPT]
        self._stats.count(corrupt=len(corrupt))
        if corrupt:
            self._path.forget(Tier.COLD, corrupt)
        return [block for block, outcome in pairs if outcome is None]

    def _read_cold(
        self, deadline: float, group: Sequence[ColdBlock], segments: Sequence[int], stop: ReadStop
    ) -> list[MissReason | None]:
        """Asks the platform where the group's segment is, if that is not known, then its store."""
        segment = group[0].segment
        if (origin := self._cold.origin(segment)) is None:
            missed = self._platform.ask(
                1, deadline, stop, lambda: self._cold.locate(segment, segments, deadline)
            )
            if missed != [None]:
                return missed * len(group)
            origin = self._cold.origin(segment) or ""
        store = self._stores.setdefault(origin, ColdGuard())
        return store.ask(
            len(group), deadline, stop, lambda: self._read_twice(group, deadline, segments, stop)
        )

    def _read_twice(
        self, group: Sequence[ColdBlock], deadline: float, segments: Sequence[int], stop: ReadStop
    ) -> tuple[list[MissReason | None], NeveError | None]:
        """Bytes can be damaged in transit: a block is corrupt if a second read is corrupt, too."""
        outcomes, trouble = self._cold.read(group, deadline=deadline, also=segments, stop=stop)
        bad = [n for n, outcome in enumerate(outcomes) if outcome is MissReason.CORRUPT]
        if bad and trouble is None and not stop.stopped:
            again, trouble = self._cold.read([group[n] for n in bad], deadline=deadline, stop=stop)
            for n, outcome in zip(bad, again, strict=True):
                outcomes[n] = outcome
        return outcomes, trouble

    def _count(self, load: _Batch, outcomes: Sequence[MissReason | None]) -> None:
        """Once for the batch: a count costs more than a small block's way through Python."""
        blocks: Counter[Tier] = Counter()
        tokens: Counter[Tier] = Counter()
        sizes: Counter[Tier] = Counter()
        for i, outcome in enumerate(outcomes):
            if outcome is None:
                tier = load.served[i] or Tier.COLD
                blocks[tier] += 1
                tokens[tier] += load.tokens[i]
                sizes[tier] += load.locations[i].size_bytes
        counts: Counter[str] = Counter()
        for tier, number in blocks.items():
            counts[f"hit_{tier}_blocks"] = number
            counts[f"hit_{tier}_tokens"] = tokens[tier]
            counts[f"{tier}_read_bytes"] = sizes[tier]
        self._stats.count(**counts)
        for reason, number in Counter(o for o in outcomes if o is not None).items():
            self._stats.miss(reason, number)
        self._stats.load(time.monotonic() - load.started)
