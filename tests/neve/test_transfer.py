import threading
import time

import pytest

from neve._core import Breaker
from neve.datapath.status import BreakerState
from neve.datapath.transfer import JobPool, PoolJob, Transfer, Urgency
from neve.errors import Closed, DeadlineExceeded, MissReason, Misuse
from neve.node.stats import Stats


def soon(seconds: float = 5.0) -> float:
    return time.monotonic() + seconds


class TestTransfer:
    def test_without_jobs_it_is_done_when_submitted(self):
        transfer = Transfer(2, soon())
        assert not transfer.done()
        transfer.settle(1, None)
        transfer.end_job()
        assert transfer.done()
        assert transfer.wait(0) == [MissReason.TIMEOUT, None]

    def test_a_callback_runs_once_also_when_it_comes_late_or_fails(self):
        transfer = Transfer(0, soon())
        seen: list[object] = []
        transfer.add_done_callback(lambda _: 1 / 0)
        transfer.add_done_callback(lambda transfer: seen.append(transfer.wait(0)))
        transfer.before_done(lambda outcomes: seen.append("first"))
        transfer.end_job()
        transfer.add_done_callback(lambda _: seen.append("late"))
        assert seen == ["first", [], "late"]

    def test_queued_jobs_are_given_up_at_the_deadline_and_running_ones_are_waited_for(self):
        pool, release = JobPool(1, "test"), threading.Event()
        transfer = Transfer(2, soon(1.0))
        started = threading.Event()

        def run() -> None:
            started.set()
            release.wait(30)
            transfer.settle(0, None)

        pool.submit([PoolJob(run, transfer)], Urgency.LOAD)
        started.wait(30)
        pool.submit([PoolJob(lambda: transfer.settle(1, None), transfer)], Urgency.LOAD)
        transfer.end_job()
        with pytest.raises(DeadlineExceeded):
            transfer.wait(1.1)
        release.set()
        assert transfer.wait(30) == [None, MissReason.TIMEOUT]
        assert pool.close(soon())

    def test_a_broken_job_leaves_its_blocks_missed(self):
        pool = JobPool(1, "test")
        transfer = Transfer(1, soon())
        pool.submit([PoolJob(lambda: 1 // 0, transfer)], Urgency.LOAD)
        transfer.end_job()
        assert transfer.wait(30) == [MissReason.TIMEOUT]
        assert pool.close(soon())


class TestJobPool:
    def test_loads_overtake_stores(self):
        pool, order, gate = JobPool(1, "test"), [], threading.Event()
        pool.submit([PoolJob(lambda: gate.wait(30))], Urgency.LOAD)
        pool.submit([PoolJob(lambda: order.append("promote"))], Urgency.PROMOTE)
        pool.submit([PoolJob(lambda: order.append("store"))], Urgency.STORE)
        pool.submit([PoolJob(lambda: order.append("load"))], Urgency.LOAD)
        gate.set()
        assert pool.close(soon())
        assert order == ["load", "store", "promote"]

    def test_jobs_run_side_by_side_up_to_the_limit(self):
        pool, together = JobPool(3, "test"), threading.Barrier(3)
        pool.submit([PoolJob(lambda: together.wait(30)) for _ in range(3)], Urgency.LOAD)
        assert pool.close(soon())
        assert not together.broken

    def test_closing_gives_up_what_takes_too_long(self):
        pool, gate = JobPool(1, "test"), threading.Event()
        transfer = Transfer(1, soon(60))
        pool.submit([PoolJob(lambda: gate.wait(30))], Urgency.LOAD)
        pool.submit([PoolJob(lambda: None, transfer)], Urgency.LOAD)
        transfer.end_job()
        assert not pool.close(soon(0.05))
        assert transfer.wait(0) == [MissReason.TIMEOUT]
        gate.set()
        with pytest.raises(Closed):
            pool.submit([PoolJob(lambda: None)], Urgency.LOAD)


class Clock:
    """A breaker, and the time that it is told."""

    def __init__(self) -> None:
        self.now = 100.0
        self.breaker = Breaker()

    def allow(self) -> bool:
        return self.breaker.allow(self.now)

    def fail(self) -> bool:
        return self.breaker.fail(self.now)

    def fail_asked(self, times: int) -> list[bool]:
        """Whether each of so many failures opened it."""
        return [self.allow() and self.fail() for _ in range(times)]


class TestBreaker:
    @pytest.fixture
    def at(self) -> Clock:
        return Clock()

    def test_three_failures_in_a_row_open_it_and_one_probe_closes_it(self, at):
        at.fail_asked(2)
        at.breaker.succeed()
        assert at.fail_asked(3) == [False, False, True]
        assert at.breaker.state == BreakerState.OPEN
        assert not at.allow()
        at.now += 1.0
        assert at.allow()
        assert at.breaker.state == BreakerState.HALF_OPEN
        assert not at.allow()
        at.breaker.succeed()
        assert at.breaker.state == BreakerState.CLOSED
        assert at.allow()

    def test_pauses_grow_to_thirty_seconds_and_begin_anew_after_success(self, at):
        at.fail_asked(3)
        for pause_s in (1, 2, 4, 8, 16, 30, 30):
            at.now += pause_s - 2**-10
            assert not at.allow()
            at.now += 2**-10
            assert at.allow()
            at.fail()
        at.now += 30
        assert at.allow()
        at.breaker.succeed()
        at.fail_asked(3)
        at.now += 1
        assert at.allow()

    def test_failures_of_questions_asked_before_it_opened_do_not_prolong_the_pause(self, at):
        at.fail_asked(3)
        for _ in range(10):
            at.fail()
        at.now += 1
        assert at.allow()

    def test_a_probe_that_says_nothing_makes_room_for_another(self, at):
        at.fail_asked(3)
        at.now += 1
        assert at.allow()
        at.breaker.forgive()
        assert at.allow()
        at.now += 10  # its caller died
        assert at.allow()


class TestStats:
    def test_a_delta_is_taken_once_and_totals_stay(self):
        stats = Stats()
        stats.count(put_blocks=2)
        stats.miss(MissReason.QUOTA, 3)
        stats.load(0.0015)
        stats.load(7)
        delta = stats.take().as_dict()
        assert delta["counters"]["put_blocks"] == 2
        assert delta["misses"] == {"quota": 3}
        assert delta["load_ms"] == {"<=2": 1, "+Inf": 1}
        assert not any(stats.take().as_dict()["counters"].values())
        assert stats.totals().counters["put_blocks"] == 2

    def test_an_unknown_counter_is_misuse(self):
        with pytest.raises(Misuse):
            Stats().count(hits=1)
