"""Worker side of loading: reads a request's blocks in waves, copies verified ones into the engine.

Each load ends exactly once, and then names the engine blocks that it could not fill. Blocks after
the first failed one are not written: the engine computes from there.
"""

import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic

from neve import log_events
from neve.datapath.client import Client, Transfer
from neve.engine.contract import Kv, S, Ticket
from neve.engine.staging import Done, StagingPool, payloads
from neve.engine.step import BlockLoad, LoadPlan
from neve.errors import NeveError

# Blocks of a wave: enough to fill the network, few enough that several loads share the staging.
# Each costs the engine's thread the same, so half as many make a load sooner (docs/benchmarks.md).
_WAVE_BLOCKS = 64
# Waves of one load at a time: while one is copied into the engine, the next are received.
_WAVES = 4
# `get_many` keeps the deadline itself; this bounds a client that never answers.
_GRACE_S = 0.5


@dataclass
class _Wave(Generic[S]):
    """Blocks on their way into staging. Then the first `good` are copied into the engine, which
    `landing` tracks."""

    blocks: tuple[BlockLoad, ...]
    pieces: list[S]
    transfer: Transfer
    landing: Ticket | None = None
    good: int = 0


@dataclass
class _ActiveLoad(Generic[S]):
    plan: LoadPlan
    deadline: float
    asked: int = 0  # blocks that were put into a wave
    loaded: int = 0
    waves: deque[_Wave[S]] = field(default_factory=deque)

    @property
    def missing(self) -> tuple[BlockLoad, ...]:
        return self.plan.blocks[self.loaded :]


@dataclass
class LoadResults:
    """Loads that ended, and engine blocks that they could not fill.

    `failed_requests`: of these loads, those that did not load everything.
    """

    request_ids: set[str] = field(default_factory=set)
    failed_requests: set[str] = field(default_factory=set)
    failed_engine_blocks: set[int] = field(default_factory=set)


class BlockLoader(Generic[S]):
    """Loads one rank's `columns`. All methods belong to the worker's thread."""

    def __init__(
        self, client: Client, kv: Kv[S], pool: StagingPool[S], columns: Sequence[int]
    ) -> None:
        self._client = client
        self._kv = kv
        self._pool = pool
        self._columns = columns
        self._loads: list[_ActiveLoad[S]] = []
        self._late: list[_Wave[S]] = []
        self._arrived = threading.Event()

    def start(self, plan: LoadPlan) -> None:
        """Begins a load; `poll` reports its end. If this raises, the load has ended, unreported."""
        load: _ActiveLoad[S] = _ActiveLoad(plan, time.monotonic() + plan.deadline_s)
        try:
            self._send_waves(load)
        except Exception:
            self._late += load.waves
            raise
        self._loads.append(load)

    @property
    def is_loading(self) -> bool:
        return bool(self._loads)

    def poll(self, wait_s: float = 0.0) -> LoadResults:
        """Advances all loads and reports those that ended. Waits up to `wait_s` for a wave."""
        if not self._loads and not self._late:
            return LoadResults()
        if wait_s > 0:
            self._arrived.wait(wait_s)
        self._arrived.clear()
        self._reclaim_late()
        results = LoadResults()
        for load in list(self._loads):
            try:
                failed = self._advance(load)
            except Exception:
                # The engine must hear of every load's end: this one fails from here on.
                log_events.LOAD_BROKEN.log(exc_info=True)
                failed = load.missing
            if failed is None:
                continue
            self._loads.remove(load)
            self._late += load.waves  # still being received, although the load failed
            results.request_ids.add(load.plan.request_id)
            if failed:
                results.failed_requests.add(load.plan.request_id)
            for block in () if load.plan.whole else failed:
                results.failed_engine_blocks.update(block.written)
        return results

    def stop(self) -> LoadResults:
        """Fails all loads, whatever has landed; afterwards no engine block is written."""
        results = LoadResults()
        for load in self._loads:
            self._late += load.waves
            results.request_ids.add(load.plan.request_id)
            results.failed_requests.add(load.plan.request_id)
            for block in () if load.plan.whole else load.plan.blocks:
                results.failed_engine_blocks.update(block.written)
        self._loads = []
        for wave in self._late:
            if wave.landing is not None:
                wave.landing.wait()
        self._reclaim_late()
        return results

    def _advance(self, load: _ActiveLoad[S]) -> tuple[BlockLoad, ...] | None:
        """None while under way; then the blocks that were not loaded, if any."""
        now = time.monotonic()
        self._land_arrived(load)
        while load.waves:
            wave = load.waves[0]
            if wave.landing is None:  # nor are those behind it
                if now < load.deadline + _GRACE_S:
                    break
                return load.missing
            if not wave.landing.done():
                break  # Even past the deadline: the engine's blocks are being written.
            load.waves.popleft()
            self._pool.give_back(wave.pieces)
            load.loaded += wave.good
            if wave.good < len(wave.blocks):
                return load.missing
        if not load.missing:
            return ()
        under_way = self._send_waves(load) if now < load.deadline else bool(load.waves)
        return None if under_way else load.missing

    def _send_waves(self, load: _ActiveLoad[S]) -> bool:
        """Asks for the next blocks. True also if it waits for staging; False if it can't go on."""
        while len(load.waves) < _WAVES and load.asked < len(load.plan.blocks):
            wanted = min(_WAVE_BLOCKS, len(load.plan.blocks) - load.asked)
            pieces = self._pool.take(wanted)
            if not pieces:
                break
            blocks = load.plan.blocks[load.asked : load.asked + len(pieces)]
            try:
                transfer = self._client.get_many(
                    [block.ids[column] for block in blocks for column in self._columns],
                    payloads(pieces, len(self._columns)),
                    locations=[
                        block.locations[column] for block in blocks for column in self._columns
                    ],
                    tokens=self._counted(blocks),
                    deadline_s=max(0.001, load.deadline - time.monotonic()),
                )
            except NeveError as error:
                log_events.LOAD_REFUSED.log(blocks=len(blocks), detail=error)
                self._pool.give_back(pieces)
                return bool(load.waves)
            except Exception:
                self._pool.give_back(pieces)
                raise
            load.asked += len(pieces)
            load.waves.append(_Wave(blocks, pieces, transfer))
            transfer.add_done_callback(lambda _: self._arrived.set())
        return True

    def _counted(self, blocks: Sequence[BlockLoad]) -> list[int] | None:
        counted = [block.tokens for block in blocks for _ in self._columns]
        return None if None in counted else [tokens or 0 for tokens in counted]

    def _land_arrived(self, load: _ActiveLoad[S]) -> None:
        """Begins to copy all waves that arrived, in order: an engine's step lies between two polls,
        so that waiting for one copy before the next begins would be slower than a network."""
        for wave in load.waves:
            if wave.landing is None:
                if not wave.transfer.done():
                    return
                wave.landing = self._land(wave)
            if wave.good < len(wave.blocks):
                return  # what is behind a failed block is not written

    def _land(self, wave: _Wave[S]) -> Ticket:
        """Begins to copy the blocks before the first failed one into the engine."""
        outcomes = wave.transfer.wait(0.0)
        for number, reason in enumerate(outcomes):
            if reason is not None:
                log_events.LOAD_MISSED.log(reason=reason)
                wave.good = number // len(self._columns)
                break
        else:
            wave.good = len(wave.blocks)
        if wave.good == 0:
            return Done()
        # Only the load's first chunk may have engine blocks to skip.
        return self._kv.move_in(
            [block.engine_blocks for block in wave.blocks[: wave.good]],
            wave.blocks[0].skip,
            wave.pieces[: wave.good],
        )

    def _reclaim_late(self) -> None:
        """Staging of abandoned waves may be reused only once their transfer is done."""
        for wave in [wave for wave in self._late if wave.transfer.done()]:
            self._late.remove(wave)
            self._pool.give_back(wave.pieces)
