"""A batch under way, and the threads that carry batches out.

A `Transfer` is cut into jobs; a job is run by one thread of a `JobPool`, or given up while it still
waits in the queue. Either way its blocks are settled exactly once. Once a transfer is done, nobody
touches its buffers any more.
"""

import heapq
import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterable
from enum import IntEnum
from typing import Any

from neve.errors import Closed, DeadlineExceeded, MissReason

logger = logging.getLogger("neve.transfer")
_IDLE_S = 30.0  # a thread without work ends after that


class Transfer:
    """Outcomes of one `get_many` or `put_many`: None (ok) or a `MissReason` for each block.

    `deadline` is a `time.monotonic()` value: jobs in progress end by then on their own, and those
    still queued are given up by the next `done` or `wait` after it.
    """

    def __init__(self, blocks: int, deadline: float) -> None:
        self.deadline = deadline
        self._outcomes: list[MissReason | None] = [MissReason.TIMEOUT] * blocks
        self._condition = threading.Condition()
        self._open = 1  # jobs not ended, and the batch's own submission
        self._is_done = False
        self._jobs: list[Job] = []
        self._hooks: list[Callable[[list[MissReason | None]], object]] = []
        self._callbacks: list[Callable[[Transfer], object]] = []

    def done(self) -> bool:
        """Whether every block is settled. Never blocks."""
        self._give_up_late_jobs()
        with self._condition:
            return self._is_done

    def wait(self, timeout_s: float | None = None) -> list[MissReason | None]:
        """Outcomes in the order of the batch. Raises `DeadlineExceeded` when not done in time.

        Then the buffers are still in use. Without `timeout_s`, waits for the transfer's deadline
        and what little the jobs need to notice it.
        """
        end = None if timeout_s is None else time.monotonic() + timeout_s
        with self._condition:
            while not self._is_done:
                now = time.monotonic()
                if end is not None and now >= end:
                    raise DeadlineExceeded("the transfer is still under way")
                if now >= self.deadline:
                    self._condition.release()
                    try:
                        self._give_up_late_jobs()
                    finally:
                        self._condition.acquire()
                    if self._is_done:
                        break
                    step = 0.05
                else:
                    step = self.deadline - now
                self._condition.wait(step if end is None else min(step, end - now))
            return list(self._outcomes)

    def add_done_callback(self, callback: "Callable[[Transfer], object]") -> None:
        """Calls `callback(self)` once: in the thread that ends the last job, or here, if ended."""
        with self._condition:
            if not self._is_done:
                self._callbacks.append(callback)
                return
        _call(callback, self)

    # What follows is for the client that fills the transfer.

    def before_done(self, hook: Callable[[list[MissReason | None]], object]) -> None:
        """Calls `hook(outcomes)` when all is settled, before anybody learns of it."""
        self._hooks.append(hook)

    def settle(self, index: int, outcome: MissReason | None) -> None:
        self._outcomes[index] = outcome

    def add_job(self, job: "Job") -> None:
        with self._condition:
            self._jobs.append(job)
            self._open += 1

    def end_job(self) -> None:
        """One job has ended, or (once) the submission of all of them."""
        with self._condition:
            self._open -= 1
            if self._open:
                return
            self._jobs = []
        for hook in self._hooks:  # statistics are part of being done
            _call(hook, list(self._outcomes))
        with self._condition:
            self._is_done = True
            callbacks, self._callbacks = self._callbacks, []
            self._condition.notify_all()
        for callback in callbacks:
            _call(callback, self)

    def _give_up_late_jobs(self) -> None:
        if time.monotonic() < self.deadline:
            return
        with self._condition:
            jobs = list(self._jobs)
        for job in jobs:
            job.give_up()


def _call(callback: Callable[[Any], object], argument: object) -> None:
    try:
        callback(argument)
    except Exception:
        logger.exception("neve.transfer.callback_failed")


class Urgency(IntEnum):
    """What an engine waits for goes first."""

    LOAD = 0
    STORE = 1
    PROMOTE = 2


class Job:
    """A part of a transfer. Runs once or is given up once, never both."""

    def __init__(self, run: Callable[[], None], transfer: Transfer | None = None) -> None:
        self._run = run
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
            logger.exception("neve.transfer.job_failed")
        finally:
            self._end()

    def give_up(self) -> None:
        """Its blocks stay what they are until settled: missed by TIMEOUT."""
        if self._take():
            self._end()

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
        self._queue: list[tuple[int, int, Job]] = []
        self._numbers = itertools.count()
        self._threads = 0
        self._idle = 0
        self._closed = False

    def submit(self, jobs: Iterable[Job], urgency: Urgency) -> None:
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
