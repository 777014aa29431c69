"""A worker's memory stays below what it states, however much there is to do.

Both what Python allocated and what the process had resident are looked at. Sizes are small, so that
a backlog of several times the bound is stored quickly.
"""

import ctypes
import gc
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.cold_world import World
from tiering import flush
from tiering.compaction import merge
from tiering.compaction.plan import Policy
from tiering.compaction.run import Compactor
from tiering.flush import Flusher

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("storage", "small_parts")]

MIB = 1 << 20
BACKLOG_MIB = 96
SLACK_MIB = 3  # botocore, Django, rows of the database
SMALL = Policy(least_bytes=16 * MIB, most_bytes=32 * MIB, most_blocks=1000)


def resident_mib(name):
    """`VmRSS`, or `VmHWM`: the most since the mark was cleared. Source: proc(5)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))


def resident_growth_mib(run: Callable[[], object]) -> float:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what was freed before must not hide what is taken now
    Path("/proc/self/clear_refs").write_text("5")
    before = resident_mib("VmRSS")
    run()
    return resident_mib("VmHWM") - before


@contextmanager
def traced() -> Iterator[list[float]]:
    """Puts the peak of what Python allocated, in MiB, into the list."""
    found: list[float] = []
    tracemalloc.start()
    try:
        yield found
        found.append(tracemalloc.get_traced_memory()[1] / MIB)
    finally:
        tracemalloc.stop()


@pytest.fixture
def backlog():
    """Stores BACKLOG_MIB of dirty blocks and keeps none of them in our memory."""
    world = World(hot_bytes=BACKLOG_MIB * MIB * 3 // 2, cold_bytes=1 << 30)

    def store(mib=BACKLOG_MIB):
        for _ in range(mib // 8):
            world.store(16, payload_bytes=MIB // 2 - 64)
            world.payloads.clear()

    world.store_backlog = store  # type: ignore[attr-defined]  # for the tests
    return world


@pytest.fixture
def few_blocks(monkeypatch):
    monkeypatch.setattr(flush, "LEASE_BLOCKS", 1000)


def test_a_flush_of_a_large_backlog(backlog, few_blocks):
    bound_mib = flush.memory_bytes() / MIB
    assert 4 * bound_mib < BACKLOG_MIB
    backlog.store_backlog()
    with traced() as peak_mib:
        report = Flusher(backlog.tenant.pk).run()
    assert report.bytes == BACKLOG_MIB * MIB
    assert peak_mib[0] < bound_mib + SLACK_MIB
    backlog.tier.evict(1 << 40)
    backlog.store_backlog()
    assert resident_growth_mib(Flusher(backlog.tenant.pk).run) < bound_mib + SLACK_MIB


def test_merges_of_many_segments(backlog, few_blocks):
    bound_mib = merge.memory_bytes(SMALL) / MIB
    for _ in range(BACKLOG_MIB // 8):
        backlog.store_backlog(8)
        Flusher(backlog.tenant.pk).run()
    compactor = Compactor(backlog.tenant.pk, SMALL)
    with traced() as peak_mib:
        compactor.run()
    assert compactor.report.bytes >= BACKLOG_MIB * MIB
    assert peak_mib[0] < bound_mib + SLACK_MIB


def test_a_merge_keeps_little_resident(backlog, few_blocks):
    for _ in range(BACKLOG_MIB // 8):
        backlog.store_backlog(8)
        Flusher(backlog.tenant.pk).run()
    growth_mib = resident_growth_mib(Compactor(backlog.tenant.pk, SMALL).run)
    assert growth_mib < merge.memory_bytes(SMALL) / MIB + SLACK_MIB
