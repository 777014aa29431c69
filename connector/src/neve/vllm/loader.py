"""Worker side of loading: read a request's blocks in waves, put the verified ones into the engine.

Each load ends exactly once, well or with the engine blocks that it could not fill. Blocks after
the first failed one are not written: the engine recomputes from there.
"""

import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Generic

from neve.client import Client, Transfer
from neve.errors import NeveError
from neve.vllm.plan import BlockLoad, LoadPlan
from neve.vllm.staging import Done, Kv, S, StagingPool, Ticket

logger = logging.getLogger(__name__)

# Blocks of one wave: enough to fill the wire, few enough that several loads share the staging.
_WAVE_BLOCKS = 16
# get_many keeps the deadline itself; this is for a client that doesn't answer at all.
_GRACE_S = 0.5


@dataclass
class _Wave(Generic[S]):
    """Blocks on their way into staging, and then (`landing`) the first `good` into the engine."""

    blocks: tuple[BlockLoad, ...]
    pieces: list[S]
    transfer: Transfer
    landing: Ticket | None = None
    good: int = 0


@dataclass
class _Load(Generic[S]):
    plan: LoadPlan
    deadline: float
    next_block: int = 0
    wave: _Wave[S] | None = None


@dataclass
class LoadResults:
    """Loads that ended, and the engine blocks that some of them could not fill."""

    request_ids: set[str] = field(default_factory=set)
    failed_engine_blocks: set[int] = field(default_factory=set)


class Loader(Generic[S]):
    """Loads one rank's blocks. All methods belong to the engine's thread."""

    def __init__(self, client: Client, kv: Kv[S], pool: StagingPool[S], *, rank: int) -> None:
        self._client = client
        self._kv = kv
        self._pool = pool
        self._rank = rank
        self._loads: list[_Load[S]] = []
        self._late: list[_Wave[S]] = []
        self._arrived = threading.Event()

    def start(self, plan: LoadPlan) -> None:
        """Begins a load; `poll` will report its end."""
        load: _Load[S] = _Load(plan, time.monotonic() + plan.deadline_s)
        self._loads.append(load)
        self._send_wave(load)

    def poll(self, wait_s: float = 0.0) -> LoadResults:
        """Moves every load on and reports those that ended; may wait when none has anything."""
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
                # The engine must hear of every load's end: this one ends with what is left of it.
                logger.exception("neve.load.broken")
                failed = load.plan.blocks[load.next_block :]
            if failed is None:
                continue
            self._loads.remove(load)
            results.request_ids.add(load.plan.request_id)
            for block in failed:
                results.failed_engine_blocks.update(block.written)
        return results

    def _advance(self, load: _Load[S]) -> tuple[BlockLoad, ...] | None:
        """None while under way, else the blocks that were not loaded (none: all is well)."""
        wave = load.wave
        blocks = load.plan.blocks
        if wave is not None:
            if not wave.transfer.done():
                if time.monotonic() < load.deadline + _GRACE_S:
                    return None
                self._late.append(wave)
                return blocks[load.next_block :]
            if wave.landing is None:
                wave.landing = self._land(wave)
            if not wave.landing.done():
                return None  # Whatever the time: the engine's blocks are being written.
            load.wave = None
            self._pool.give_back(wave.pieces)
            load.next_block += wave.good
            if wave.good < len(wave.blocks):
                return blocks[load.next_block :]
        if load.next_block == len(blocks):
            return ()
        if time.monotonic() >= load.deadline:
            return blocks[load.next_block :]
        if not self._send_wave(load):
            return blocks[load.next_block :]
        return None

    def _send_wave(self, load: _Load[S]) -> bool:
        """Asks for the next blocks; True also when all staging is in use and it has to wait."""
        pieces = list(self._take(len(load.plan.blocks) - load.next_block))
        if not pieces:
            return True
        blocks = load.plan.blocks[load.next_block : load.next_block + len(pieces)]
        try:
            transfer = self._client.get_many(
                [block.ids[self._rank] for block in blocks],
                [piece.memory for piece in pieces],
                locations=[block.locations[self._rank] for block in blocks],
                deadline_s=max(0.001, load.deadline - time.monotonic()),
            )
        except NeveError as error:
            logger.debug("neve.load.refused blocks=%d detail=%s", len(blocks), error)
            self._pool.give_back(pieces)
            return False
        load.wave = _Wave(blocks, pieces, transfer)
        transfer.add_done_callback(lambda _: self._arrived.set())
        return True

    def _take(self, wanted: int) -> Iterator[S]:
        for _ in range(min(wanted, _WAVE_BLOCKS)):
            piece = self._pool.take()
            if piece is None:
                return
            yield piece

    def _land(self, wave: _Wave[S]) -> Ticket:
        """Begins to write the verified blocks up to the first failed one."""
        for reason in wave.transfer.wait(0.0):
            if reason is not None:
                logger.info("neve.load.missed reason=%s", reason)
                break
            wave.good += 1
        if wave.good == 0:
            return Done()
        # Only a load's first block may be there in part.
        return self._kv.move_in(
            [block.engine_blocks for block in wave.blocks[: wave.good]],
            wave.blocks[0].skip,
            wave.pieces[: wave.good],
        )

    def _reclaim_late(self) -> None:
        """Staging of abandoned waves is ours again only once their transfer is done."""
        for wave in [wave for wave in self._late if wave.transfer.done()]:
            self._late.remove(wave)
            self._pool.give_back(wave.pieces)
