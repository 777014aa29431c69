"""Counts of several processes, summed on valkey-bus."""

import pytest

from base import counting
from base.counting import BUCKETS_S, LOG_EVENTS, TASK_FAILURES, TASK_SECONDS, Process
from catalog import kinds
from workers.kinds import _tick

pytestmark = pytest.mark.integration


@pytest.fixture
def bus(valkey_bus):
    counting.bus.cache_clear()
    with valkey_bus.client() as client:
        client.flushall()
        yield valkey_bus
        client.flushall()


@pytest.fixture
def processes(bus, monkeypatch):
    """Makes one after the other this process."""

    def become(process):
        monkeypatch.setattr(counting, "PROCESS", process)
        return process

    return become


def test_processes_count_together(processes):
    for _ in range(2):
        process = processes(Process())
        TASK_FAILURES.add("flush")
        for seconds in (0.003, 0.3, 1000.0):
            TASK_SECONDS.add(seconds, "flush")
        process.sockets = 3
        process.send()
        process.send()  # nothing new: nothing is counted twice
    facts = counting.read(["data-at-risk"])
    assert facts.counted(TASK_FAILURES) == {("flush",): 2}
    timing = facts.timed(TASK_SECONDS)["flush",]
    assert timing.sum_s == pytest.approx(2 * 1000.303)
    assert timing.buckets[0] == 2
    assert timing.buckets[BUCKETS_S.index(0.25)] == 2
    assert timing.buckets[BUCKETS_S.index(0.5)] == 4
    assert timing.buckets[-2:] == (4, 6)
    assert facts.sockets == 6
    assert facts.queues == {"data-at-risk": 0}


def test_a_process_that_died_takes_its_sockets_with_it(processes, bus):
    for sockets in (2, 5):
        process = processes(Process())
        process.sockets = sockets
        process.send()
    with bus.client() as client:
        keys = client.keys("neve:counts:process:*")
        assert all(0 < client.ttl(key) <= counting.ALIVE_S for key in keys)
        client.delete(next(key for key in keys if client.get(key) == b"2"))  # as if it had lapsed
        assert counting.read([]).sockets == 5
        assert client.scard(counting.PROCESSES) == 1


def test_counts_wait_for_a_bus_that_is_away(processes, bus, caplog):
    process = processes(Process())
    TASK_FAILURES.add("flush")
    bus.kill()
    try:
        assert counting.read([]) is None
        process.send()
        assert "counts_wait" in caplog.text  # another sender of this process may say so, too
    finally:
        bus.restart()
    TASK_FAILURES.add("flush")
    assert counting.read([]).counted(TASK_FAILURES) == {("flush",): 2}

    assert counting.read([]).counted(LOG_EVENTS)["counts_wait",] >= 1


def test_work_that_fails_for_one_tenant_is_counted_and_does_not_stop_the_next(processes, log_lines):
    processes(Process())
    done = []

    def work(job, tenant_id):
        if tenant_id == 7:
            raise ValueError("broken")
        done.append(tenant_id)

    _tick(kinds.FLUSH, work, [(7, {}), (8, {})])
    facts = counting.read([])
    assert done == [8]
    assert facts.counted(TASK_FAILURES) == {("flush",): 1}
    assert facts.counted(LOG_EVENTS) == {("task_failed",): 1}
    assert any("task_failed" in line and "tenant_id=7" in line for line in log_lines())
