import threading
import time

import pytest

from neve.datapath.breaker import Breaker, BreakerState
from neve.datapath.transfer import Job, JobPool, Transfer, Urgency
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
        transfer = Transfer(2, soon(0.1))
        started = threading.Event()

        def run() -> None:
            started.set()
            release.wait(5)
            transfer.settle(0, None)

        pool.submit([Job(run, transfer)], Urgency.LOAD)
        started.wait(5)
        pool.submit([Job(lambda: transfer.settle(1, None), transfer)], Urgency.LOAD)
        transfer.end_job()
        with pytest.raises(DeadlineExceeded):
            transfer.wait(0.3)
        release.set()
        assert transfer.wait(5) == [None, MissReason.TIMEOUT]
        assert pool.close(soon())

    def test_a_broken_job_leaves_its_blocks_missed(self):
        pool = JobPool(1, "test")
        transfer = Transfer(1, soon())
        pool.submit([Job(lambda: 1 // 0, transfer)], Urgency.LOAD)
        transfer.end_job()
        assert transfer.wait(5) == [MissReason.TIMEOUT]
        assert pool.close(soon())


class TestJobPool:
    def test_loads_overtake_stores(self):
        pool, order, gate = JobPool(1, "test"), [], threading.Event()
        pool.submit([Job(lambda: gate.wait(5))], Urgency.LOAD)
        pool.submit([Job(lambda: order.append("promote"))], Urgency.PROMOTE)
        pool.submit([Job(lambda: order.append("store"))], Urgency.STORE)
        pool.submit([Job(lambda: order.append("load"))], Urgency.LOAD)
        gate.set()
        assert pool.close(soon())
        assert order == ["load", "store", "promote"]

    def test_jobs_run_side_by_side_up_to_the_limit(self):
        pool, together = JobPool(3, "test"), threading.Barrier(3)
        pool.submit([Job(lambda: together.wait(5)) for _ in range(3)], Urgency.LOAD)
        assert pool.close(soon())
        assert not together.broken

    def test_closing_gives_up_what_takes_too_long(self):
        pool, gate = JobPool(1, "test"), threading.Event()
        transfer = Transfer(1, soon(60))
        pool.submit([Job(lambda: gate.wait(5))], Urgency.LOAD)
        pool.submit([Job(lambda: None, transfer)], Urgency.LOAD)
        transfer.end_job()
        assert not pool.close(soon(0.05))
        assert transfer.wait(0) == [MissReason.TIMEOUT]
        gate.set()
        with pytest.raises(Closed):
            pool.submit([Job(lambda: None)], Urgency.LOAD)


class TestBreaker:
    @pytest.fixture
    def clock(self, monkeypatch: pytest.MonkeyPatch) -> list[float]:
        now = [100.0]
        monkeypatch.setattr("neve.datapath.breaker.time.monotonic", lambda: now[0])
        return now

    def fail(self, breaker: Breaker, times: int) -> None:
        for _ in range(times):
            assert breaker.allow()
            breaker.fail()

    def test_three_failures_in_a_row_open_it_and_one_probe_closes_it(self, clock):
        breaker = Breaker()
        self.fail(breaker, 2)
        breaker.succeed()
        self.fail(breaker, 3)
        assert breaker.state is BreakerState.OPEN
        assert not breaker.allow()
        clock[0] += 1.0
        assert breaker.allow()
        assert breaker.state is BreakerState.HALF_OPEN
        assert not breaker.allow()
        breaker.succeed()
        assert breaker.state is BreakerState.CLOSED
        assert breaker.allow()

    def test_pauses_grow_to_thirty_seconds_and_begin_anew_after_success(self, clock):
        breaker = Breaker()
        self.fail(breaker, 3)
        for pause_s in (1, 2, 4, 8, 16, 30, 30):
            clock[0] += pause_s - 0.001
            assert not breaker.allow()
            clock[0] += 0.001
            assert breaker.allow()
            breaker.fail()
        clock[0] += 30
        assert breaker.allow()
        breaker.succeed()
        self.fail(breaker, 3)
        clock[0] += 1
        assert breaker.allow()

    def test_failures_of_questions_asked_before_it_opened_do_not_prolong_the_pause(self, clock):
        breaker = Breaker()
        self.fail(breaker, 3)
        for _ in range(10):
            breaker.fail()
        clock[0] += 1
        assert breaker.allow()

    def test_a_probe_that_says_nothing_makes_room_for_another(self, clock):
        breaker = Breaker()
        self.fail(breaker, 3)
        clock[0] += 1
        assert breaker.allow()
        breaker.forgive()
        assert breaker.allow()
        clock[0] += 10  # its caller died
        assert breaker.allow()

    def test_news_end_the_pause(self, clock):
        breaker = Breaker()
        self.fail(breaker, 3)
        breaker.probe_now()
        assert not breaker.is_open
        assert breaker.allow()


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
