"""No periodic task looks at all that is stored: what it asks for does not grow with it."""

from functools import partial

import pytest

from benchmarks.growth import SEGMENT_BLOCKS, Cost, Tenant, run_task
from tiering.compaction import run
from tiering.reconcile import blocks, objects, segments
from tiering.reconcile import run as reconcile
from workers.schedule import SCHEDULE

ROWS = 20  # that one run looks at

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("storage")]


@pytest.fixture(autouse=True)
def small_slices(monkeypatch):
    monkeypatch.setattr(run, "COUNT_MOST", ROWS)
    monkeypatch.setattr(run, "PLAN_MOST", ROWS)
    monkeypatch.setattr(blocks, "RUN_BLOCKS", ROWS * SEGMENT_BLOCKS)
    by_slices = {
        (reconcile, "look_at_segments"): partial(segments.look_at_segments, most=ROWS),
        (reconcile, "look_at_objects"): partial(objects.look_at_objects, most_pages=1),
        (blocks, "look_at_slice"): partial(blocks.look_at_slice, most=ROWS * SEGMENT_BLOCKS),
    }
    for (module, name), act in by_slices.items():
        monkeypatch.setattr(module, name, act)


def test_what_tasks_ask_for_does_not_grow_with_the_blocks():
    tenant = Tenant(ends=True)
    tenant.grow(2 * ROWS * SEGMENT_BLOCKS)
    before = {name: run_task(name, 2) for name in SCHEDULE}
    tenant.grow(8 * ROWS * SEGMENT_BLOCKS)
    for name, few in before.items():
        many = run_task(name, 2)
        assert many.commands <= few.commands + 3, name
        assert many.queries <= few.queries + 3, name
        assert many.s3_requests <= few.s3_requests, name
        assert many.kib <= 1.2 * few.kib + 2, name


def test_the_costs_are_those_of_the_task_alone():
    Tenant(ends=False).grow(SEGMENT_BLOCKS)
    assert isinstance(run_task("retain", 1), Cost)
    assert run_task("retain", 1).commands == 0
