"""Worker side of `load: both`: fetches rears into staging, last chunk first, and copies them in.

See `neve.engine.rears`. What was staged is verified, so a copy can't fail for want of bytes.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Generic

from neve import log_events
from neve.datapath.client import Client, Transfer
from neve.engine.contract import Kv, S
from neve.engine.staging import StagingPool, payloads
from neve.engine.step import LoadPlan, RearPlan

# Small waves: the rear meets the front at the end of one.
_WAVE_CHUNKS: Final = 8
# Under way at a time, of one rear: what comes in a long step, after which the next are sent. Of
# 2 MiB chunks 2.5 GiB, within the client's bound of 4 GiB; a GPU's step takes up to a second.
_WAVES: Final = 160
_FETCH_S: Final = 60.0  # a wave that takes longer ends the rear: the engine is faster


@dataclass
class _Wave(Generic[S]):
    """Chunks `start` to `end` on their way into `pieces`."""

    start: int
    end: int
    pieces: list[S]
    transfer: Transfer


@dataclass
class _Rear(Generic[S]):
    """`asked`: the lowest chunk that was asked for. `floor`: below it the engine computes.
    `staged`: pieces by chunk, all from `low` on."""

    plan: LoadPlan
    asked: int
    low: int
    floor: int
    waves: deque[_Wave[S]] = field(default_factory=deque)
    staged: dict[int, S] = field(default_factory=dict)


class RearLoader(Generic[S]):
    """One rank's rears. All methods belong to the worker's thread. `pool`: of its own."""

    def __init__(
        self, client: Client, kv: Kv[S], pool: StagingPool[S], columns: Sequence[int]
    ) -> None:
        self._client = client
        self._kv = kv
        self._pool = pool
        self._columns = columns
        self._rears: dict[str, _Rear[S]] = {}
        self._late: list[_Wave[S]] = []
        self._moved: set[str] = set()

    def start(self, plan: RearPlan) -> None:
        """Begins, bounds and drops rears as the step says."""
        for request_id in plan.dropped:
            self._drop(request_id)
        for load in plan.begun:
            end = load.first_chunk + len(load.blocks)
            self._rears[load.request_id] = _Rear(load, end, end, load.first_chunk)
        for request_id, floor in plan.floors.items():
            if request_id in self._rears:
                self._rears[request_id].floor = max(self._rears[request_id].floor, floor)

    def poll(self) -> None:
        """Advances all rears. Cheap while there are none."""
        for wave in [wave for wave in self._late if wave.transfer.done()]:
            self._late.remove(wave)
            self._pool.give_back(wave.pieces)
        for request_id, rear in self._rears.items():
            try:
                if self._take(rear):
                    self._moved.add(request_id)
                self._send(rear)
            except Exception:
                log_events.LOAD_BROKEN.log(exc_info=True)
                rear.asked = rear.floor = 0  # what is staged stays good

    def take_staged(self) -> dict[str, int]:
        """Of rears that grew since the last call, the lowest chunk that is here with all above."""
        moved, self._moved = self._moved, set()
        return {name: self._rears[name].low for name in moved if name in self._rears}

    def land(self, jumps: Sequence[LoadPlan]) -> None:
        """Copies rears into the engine's blocks, before the step computes; waits for the copy.

        Raises if one is not here: the engine must not go on, it counts these blocks as computed.
        """
        for jump in jumps:
            rear = self._rears[jump.request_id]
            chunks = range(jump.first_chunk, jump.first_chunk + len(jump.blocks))
            blocks = [block.engine_blocks for block in jump.blocks]
            pieces = [rear.staged[chunk] for chunk in chunks]
            self._kv.move_in(blocks, jump.blocks[0].skip, pieces).wait()
            self._drop(jump.request_id)

    def stop(self) -> None:
        for request_id in list(self._rears):
            self._drop(request_id)

    def _drop(self, request_id: str) -> None:
        rear = self._rears.pop(request_id, None)
        if rear is None:
            return
        self._pool.give_back(list(rear.staged.values()))
        for wave in rear.waves:
            wave.transfer.cancel()
        self._late += rear.waves

    def _take(self, rear: _Rear[S]) -> bool:
        """Notes waves that are here; True if there was one."""
        before = rear.low
        while rear.waves and rear.waves[0].transfer.done():
            wave = rear.waves.popleft()
            if any(outcome is not None for outcome in wave.transfer.wait(0.0)):
                self._pool.give_back(wave.pieces)
                for later in rear.waves:
                    later.transfer.cancel()
                self._late += rear.waves
                rear.waves.clear()
                rear.asked = rear.floor = 0
                break
            rear.low = wave.start
            rear.staged |= dict(zip(range(wave.start, wave.end), wave.pieces, strict=True))
        return rear.low < before

    def _send(self, rear: _Rear[S]) -> None:
        while len(rear.waves) < _WAVES and rear.asked > rear.floor:
            wanted = min(_WAVE_CHUNKS, rear.asked - rear.floor)
            pieces = self._pool.take(wanted)
            if not pieces:
                break
            start, end = rear.asked - len(pieces), rear.asked
            first = rear.plan.first_chunk
            blocks = rear.plan.blocks[start - first : end - first]
            try:
                transfer = self._client.get_many(
                    [block.ids[column] for block in blocks for column in self._columns],
                    payloads(pieces, len(self._columns)),
                    locations=[
                        block.locations[column] for block in blocks for column in self._columns
                    ],
                    deadline_s=_FETCH_S,
                )
            except Exception:
                self._pool.give_back(pieces)
                raise
            rear.asked = start
            rear.waves.append(_Wave(start, end, pieces, transfer))
