"""A batch under way, and the threads that carry out its cold part.

A `Transfer` is cut into parts: one for the native core, and jobs of a `JobPool` for what is read
from S3. A job is run by one thread, or given up while it still waits in the queue; a native part is
finished by whoever first notices that it is done: a waiter, an event loop, or the transport's
thread. Blocks are settled exactly once; once a transfer is done, nobody touches its buffers.
"""

import asyncio
import heapq
import itertools
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterable
from enum import IntEnum
from typing import Any, Final

from neve import _core, log_events
from neve.datapath.transport import Transport
from neve.errors import Closed, DeadlineExceeded, MissReason

_IDLE_S = 30.0  # a thread without work ends after that
_FOREVER: Final = float("inf")

Outcomes = list[MissReason | None]


class Transfer:
    """Outcomes of one `get_many` or `put_many`: None (ok) or a `MissReason` for each block.

    `deadline` is a `time.monotonic()` value: native parts and jobs in progress end by then on their
    own, and jobs still queued are given up by the next `done` or `wait` after it. May be awaited.
    """

    def __init__(self, blocks: int, deadline: float) -> None:
        self.deadline = deadline
        self._outcomes: Outcomes = [MissReason.TIMEOUT] * blocks
        self._condition = threading.Condition()
        self._open = 1  # parts not ended, and the batch's own submission
        self._is_done = False
        self._jobs: list[PoolJob] = []
        self._parts: list[_Part] = []
        self._hooks: list[Callable[[Outcomes], object]] = []
        self._callbacks: list[Callable[[Transfer], object]] = []
        self._cancels: list[Callable[[], object]] = []
        self.is_cancelled = False

    def done(self) -> bool:
        """Whether every block is settled. Never blocks."""
        self._give_up_late_jobs()
        for part in tuple(self._parts):
            if part.native.done() and part.native.claim():
                part.finish()
        with self._condition:
            return self._is_done

    def wait(self, timeout_s: float | None = None) -> Outcomes:
        """Outcomes in the order of the batch. Raises `DeadlineExceeded` when not done in time.

        After that error the buffers are still in use. Without `timeout_s`, waits until the
        transfer's deadline, and a moment longer for its parts to notice.
        """
        end = _FOREVER if timeout_s is None else time.monotonic() + timeout_s
        while not self.done():
            if time.monotonic() >= end:
                raise DeadlineExceeded("the transfer is still under way")
            part = next(iter(self._parts), None)
            if part is None or not self._wait_for(part, end):
                self._wait_for_others(end)
        with self._condition:
            return list(self._outcomes)

    def cancel(self) -> None:
        """Ends it soon: blocks that are still under way are missed by TIMEOUT.

        `done` and `wait` say when the buffers are free.
        """
        self.is_cancelled = True
        for part in tuple(self._parts):
            part.native.cancel()
        with self._condition:
            jobs, cancels = list(self._jobs), list(self._cancels)
        for job in jobs:
            job.cancel()
        for cancel in cancels:
            cancel()

    def add_done_callback(self, callback: "Callable[[Transfer], object]") -> None:
        """Calls `callback(self)` once: in the thread that ends the last part, or here, if ended."""
        with self._condition:
            if not self._is_done:
                self._callbacks.append(callback)
                return
        _call(callback, self)

    def __await__(self) -> Generator[Any, None, Outcomes]:
        """The outcomes, in asyncio. The running loop watches one eventfd for all its transfers."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()

        def wake() -> None:
            if not future.done():
                future.set_result(None)

        def tell(_: Transfer) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(wake)

        self.add_done_callback(tell)
        bridge = _LoopBridge.of(loop)
        for part in tuple(self._parts):
            bridge.watch(part)
        yield from future
        return self.wait(0)

    # The methods below are for the client, which fills the transfer.

    def before_done(self, hook: Callable[[Outcomes], object]) -> None:
        """Calls `hook(outcomes)` when all blocks are settled, before `done` says so."""
        self._hooks.append(hook)

    def settle(self, index: int, outcome: MissReason | None) -> None:
        self._outcomes[index] = outcome

    def add_native(
        self,
        transport: Transport,
        native: _core.Batch,
        finish: Callable[[_core.Batch], object],
    ) -> None:
        """A part that the core carries out; `finish(native)` runs once, soon after it is done."""
        part = _Part(self, transport, native, finish)
        with self._condition:
            self._parts.append(part)
            self._open += 1
        transport.when_done(native, part.finish)

    def add_job(self, job: "PoolJob") -> None:
        with self._condition:
            self._jobs.append(job)
            self._open += 1

    def add_part(self, *, cancel: Callable[[], object]) -> None:
        """A part that its owner ends by `end_job`, once, by the deadline; soon after `cancel`."""
        with self._condition:
            self._cancels.append(cancel)
            self._open += 1

    def end_job(self) -> None:
        """One part has ended, or (once) the submission of all of them."""
        with self._condition:
            self._open -= 1
            self._condition.notify_all()
            if self._open:
                return
            self._jobs, self._cancels = [], []
        for hook in self._hooks:  # statistics are part of being done
            _call(hook, list(self._outcomes))
        with self._condition:
            self._is_done = True
            callbacks, self._callbacks = self._callbacks, []
            self._condition.notify_all()
        for callback in callbacks:
            _call(callback, self)

    def end_part(self, part: "_Part") -> None:
        with self._condition:
            self._parts.remove(part)
        self.end_job()

    def _wait_for(self, part: "_Part", end: float) -> bool:
        """Waits in the core, without the GIL. False when another thread finishes this part."""
        is_done, is_ours = part.native.wait_claim(end)
        if is_ours:
            part.finish()
        return is_ours or not is_done

    def _wait_for_others(self, end: float) -> None:
        with self._condition:
            if self._is_done:
                return
            now = time.monotonic()
            step = 0.05 if now >= self.deadline else self.deadline - now
            self._condition.wait(max(0.0, min(step, end - now)))

    def _give_up_late_jobs(self) -> None:
        if time.monotonic() < self.deadline:
            return
        with self._condition:
            jobs = list(self._jobs)
        for job in jobs:
            job.give_up()


class _Part:
    """A batch in the core. `finish` is called once, by the thread that claimed `native`."""

    def __init__(
        self,
        transfer: Transfer,
        transport: Transport,
        native: _core.Batch,
        finish: Callable[[_core.Batch], object],
    ) -> None:
        self.native = native
        self._transfer = transfer
        self._transport = transport
        self._finish = finish
        self.finished = False

    def finish(self) -> None:
        self._transport.unwatch(self.native)
        _call(self._finish, self.native)
        self.finished = True
        self._transfer.end_part(self)


class _LoopBridge:
    """Finishes native parts in one event loop, which watches the queue's eventfd."""

    _of_loop: "weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _LoopBridge]" = (
        weakref.WeakKeyDictionary()
    )

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._queue = _core.CompletionQueue()
        self._parts: dict[int, _Part] = {}
        loop.add_reader(self._queue.fileno(), self._take)

    @classmethod
    def of(cls, loop: asyncio.AbstractEventLoop) -> "_LoopBridge":
        """Belongs to the loop's thread, like all else here."""
        bridge = cls._of_loop.get(loop)
        if bridge is None:
            bridge = cls._of_loop[loop] = cls(loop)
        return bridge

    def watch(self, part: _Part) -> None:
        self._parts[part.native.serial] = part
        part.native.notify(self._queue)

    def _take(self) -> None:
        for serial in self._queue.take():
            part = self._parts.get(serial)
            if part is not None:
                part.finish()
        # Not `native.done()`: a part may be done whose serial only the next `take` returns.
        self._parts = {n: part for n, part in self._parts.items() if not part.finished}


def _call(callback: Callable[[Any], object], argument: object) -> None:
    try:
        callback(argument)
    except Exception:
        log_events.TRANSFER_CALLBACK_FAILED.log(exc_info=True)


class Urgency(IntEnum):
    """Lower values go first: an engine waits for loads."""

    LOAD = 0
    STORE = 1
    PROMOTE = 2


class PoolJob:
    """A part of a transfer. Runs once or is given up once, never both."""

    def __init__(
        self,
        run: Callable[[], None],
        transfer: Transfer | None = None,
        *,
        stop: Callable[[], None] | None = None,
    ) -> None:
        """`stop`, called from any thread, makes a `run` in progress end soon."""
        self._run = run
        self._stop = stop
        self._transfer = transfer
        self._lock = threading.Lock()
        self._taken = False
        if transfer is not None:
            transfer.add_job(self)

    def run(self) -> None:
        if not self._take():
            return
        try:
            self._run()
        except Exception:  # a boundary: a broken job is a miss, its thread goes on
            log_events.TRANSFER_JOB_FAILED.log(exc_info=True)
        finally:
            self._end()

    def give_up(self) -> None:
        """Its blocks keep their first outcome, TIMEOUT."""
        if self._take():
            self._end()

    def cancel(self) -> None:
        self.give_up()
        if self._stop is not None:
            self._stop()

    def _take(self) -> bool:
        with self._lock:
            taken, self._taken = self._taken, True
        return not taken

    def _end(self) -> None:
        if self._transfer is not None:
            self._transfer.end_job()


class JobPool:
    """At most `threads` daemon threads, started when needed, that run jobs by urgency, then age."""

    def __init__(self, threads: int, name: str) -> None:
        self._most = threads
        self._name = name
        self._condition = threading.Condition()
        self._queue: list[tuple[int, int, PoolJob]] = []
        self._numbers = itertools.count()
        self._threads = 0
        self._idle = 0
        self._closed = False

    def submit(self, jobs: Iterable[PoolJob], urgency: Urgency) -> None:
        """Raises `Closed` after `close`; the jobs are then given up."""
        jobs = list(jobs)
        with self._condition:
            closed = self._closed
            if not closed:
                for job in jobs:
                    heapq.heappush(self._queue, (urgency, next(self._numbers), job))
                self._condition.notify(len(jobs))
                for _ in range(min(len(self._queue) - self._idle, self._most - self._threads)):
                    self._threads += 1
                    threading.Thread(target=self._work, name=self._name, daemon=True).start()
        if closed:
            for job in jobs:
                job.give_up()
            raise Closed("the client is closed")

    def close(self, deadline: float) -> bool:
        """Takes no more jobs and waits for those it has. False when some were given up."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()
            while self._threads and (left := deadline - time.monotonic()) > 0:
                self._condition.wait(left)
            rest, self._queue = self._queue, []
        for _, _, job in rest:
            job.give_up()
        return not rest

    def _work(self) -> None:
        while True:
            with self._condition:
                self._idle += 1
                if not self._queue and not self._closed:
                    self._condition.wait(_IDLE_S)
                self._idle -= 1
                if not self._queue:
                    self._threads -= 1
                    self._condition.notify_all()
                    return
                job = heapq.heappop(self._queue)[2]
            job.run()
