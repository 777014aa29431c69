"""Second requests for the slowest ranges of cold loads.

One slow answer of S3 makes a whole load late. A range that takes much longer than others of its
size took lately is asked for once more: in parts, over several connections, into memory of its own.
Whichever is whole first is used; the other one is ended. A range has one second request at most,
`MOST` of them are under way at a time, and they may ask for `SHARE` of the bytes that first
requests brought. They count in `cold_requests` and `cold_fetched_bytes` like all requests.

Must not be here: HTTP, counting, what a miss means (`neve.datapath.cold`, `loading`).
"""

import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from neve import _core
from neve.datapath.payload import fill
from neve.datapath.transfer import JobPool, PoolJob, Urgency
from neve.errors import Closed, MissReason

if TYPE_CHECKING:
    from neve.datapath.cold import ColdBlock

MOST: Final = 2  # second requests at a time, of one reader
PARTS: Final = 4  # connections of one
SHARE: Final = 0.1  # of the bytes that first requests brought
# At the start, and what may be saved up: some ranges of full size.
MOST_ALLOWED_BYTES: Final = 64 << 20
# A range is late after this many times the median: its second request then has half the median's
# time, which it needs in `PARTS` parts, until the load has taken twice as long as others.
LATE: Final = 1.5
LEAST_LATE_S: Final = 0.03
# A request takes as long as so many bytes more would.
_FIXED_BYTES: Final = 1 << 20
_LEAST_SAMPLES: Final = 16
_IDLE_S: Final = 30.0  # the watching thread ends after that

Outcomes = list[MissReason | None]
# Reads blocks; ends soon after a `stop`. Never raises.
Read = Callable[[Sequence["ColdBlock"], float, _core.Stop], Outcomes]


class ReadStop:
    """Ends a read, with its second request, from another thread."""

    def __init__(self) -> None:
        self.stopped = False
        self._lock = threading.Lock()
        self._parts: list[_core.Stop] = []

    def part(self) -> _core.Stop:
        """For one request of the read."""
        part = _core.Stop()
        with self._lock:
            self._parts.append(part)
            stopped = self.stopped
        if stopped:
            part.stop()
        return part

    def stop(self) -> None:
        with self._lock:
            self.stopped = True
            parts = list(self._parts)
        for part in parts:
            part.stop()


@dataclass(eq=False)
class Watched:
    """A range's first request. `late_at`: when a second one begins; monotonic, inf: never.

    `again`: copies of the blocks for the second request, `stops`: of its parts, of which `open` are
    under way. `won`: it was whole before the first one ended.
    """

    blocks: Sequence["ColdBlock"]
    size_bytes: int
    stop: ReadStop
    first: _core.Stop
    deadline: float
    begun: float
    late_at: float
    again: list["ColdBlock"] = field(default_factory=list)
    stops: list[_core.Stop] = field(default_factory=list)
    open: int = 0
    failed: bool = False
    won: bool = False
    ended: bool = False


class Hedges:
    """For any thread."""

    def __init__(self, read: Read, count: Callable[[str], object] = lambda outcome: None) -> None:
        """`count`: called with "begun" for each second request, and with "won" if it was used."""
        self._read = read
        self._count = count
        self._changed = threading.Condition()
        self._watched: set[Watched] = set()
        self._paces: deque[float] = deque(maxlen=64)  # seconds per byte, with _FIXED_BYTES
        self._allowed_bytes = float(MOST_ALLOWED_BYTES)
        self._running = 0
        self._watches = False  # whether the thread runs
        self._closed = False
        self._pool = JobPool(MOST * PARTS, "neve-hedge")
        self.begun = self.won = 0

    def begin(self, blocks: Sequence["ColdBlock"], deadline: float, stop: ReadStop) -> Watched:
        """Call before the first request; pass `first` to it, and call `end` after it."""
        now = time.monotonic()
        size_bytes = blocks[-1].end - blocks[0].offset
        late_at = float("inf")
        with self._changed:
            if len(self._paces) >= _LEAST_SAMPLES and not self._closed:
                usual_s = statistics.median(self._paces) * (size_bytes + _FIXED_BYTES)
                late_at = now + max(LEAST_LATE_S, LATE * usual_s)
            watched = Watched(blocks, size_bytes, stop, stop.part(), deadline, now, late_at)
            if late_at < deadline:
                self._watched.add(watched)
                if not self._watches:
                    self._watches = True
                    threading.Thread(target=self._watch, name="neve-hedge", daemon=True).start()
                self._changed.notify_all()
        return watched

    def end(self, watched: Watched, outcomes: Outcomes) -> Outcomes:
        """The first request ended with `outcomes`; returns those of the range.

        Waits for a second request that is under way if the first one missed a block.
        """
        missed = [n for n, outcome in enumerate(outcomes) if outcome is not None]
        with self._changed:
            self._watched.discard(watched)
            while missed and watched.open and not (watched.failed or watched.stop.stopped):
                left_s = watched.deadline - time.monotonic()
                if left_s <= 0 or self._closed:
                    break
                self._changed.wait(left_s)
            watched.ended = True
            if not missed:
                pace = (time.monotonic() - watched.begun) / (watched.size_bytes + _FIXED_BYTES)
                self._paces.append(pace)
                gained = SHARE * watched.size_bytes
                self._allowed_bytes = min(MOST_ALLOWED_BYTES, self._allowed_bytes + gained)
            again = [] if watched.won else list(watched.stops)
        for part in again:
            part.stop()
        if not watched.won:
            return outcomes
        for n in missed:
            fill(watched.blocks[n].payload, watched.again[n].payload)
            watched.blocks[n].header[:] = watched.again[n].header
        return [None] * len(outcomes)

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._watched.clear()
            self._changed.notify_all()
        self._pool.close(time.monotonic())

    def _watch(self) -> None:
        """Begins second requests, until nothing was watched for a while."""
        while True:
            with self._changed:
                if not self._watched and not self._closed:
                    self._changed.wait(_IDLE_S)
                if not self._watched:
                    self._watches = False
                    return
                late = min(self._watched, key=lambda each: each.late_at)
                left_s = late.late_at - time.monotonic()
                if left_s > 0:
                    self._changed.wait(left_s)
                    continue
                self._watched.discard(late)
                if self._running >= MOST or self._allowed_bytes < late.size_bytes:
                    continue
                self._running += 1
                self._allowed_bytes -= late.size_bytes
                self.begun += 1
                self._count("begun")
                late.again = [each.copy() for each in late.blocks]
                parts = _parts(late.again)
                late.open = len(parts)
            try:
                jobs = [PoolJob(partial(self._ask, late, part)) for part in parts]
                self._pool.submit(jobs, Urgency.LOAD)
            except Closed:
                with self._changed:
                    late.open, late.failed = 0, True
                    self._running -= 1
                    self._changed.notify_all()

    def _ask(self, watched: Watched, blocks: Sequence["ColdBlock"]) -> None:
        stop = watched.stop.part()
        with self._changed:
            watched.stops.append(stop)
            ended = watched.ended
        if ended:
            stop.stop()
        outcomes = self._read(blocks, watched.deadline, stop)
        with self._changed:
            watched.open -= 1
            watched.failed = watched.failed or any(each is not None for each in outcomes)
            watched.won = not (watched.open or watched.failed or watched.ended)
            self._running -= not watched.open
            if watched.won:
                self.won += 1
                self._count("won")
            self._changed.notify_all()
        if watched.won:
            watched.first.stop()


def _parts(blocks: list["ColdBlock"]) -> list[list["ColdBlock"]]:
    count = min(PARTS, len(blocks))
    cuts = [len(blocks) * n // count for n in range(count + 1)]
    return [blocks[a:b] for a, b in pairwise(cuts)]
