"""When blocks go to S3: at once, after some time, or never, for each space as its rules say."""

import pytest
from django.utils import timezone

from catalog.occupancy import Occupancy
from neve.formats.keys import BucketKeys
from storage import hot
from support.rows import make_space
from support.tenant_world import World
from tiering import upkeep
from tiering.flush import GATHER_S, Flusher, is_worth_a_segment
from workers import tasks

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("storage")]

LATE_S = 600


@pytest.fixture
def world(storage):
    return World(flush_mode="after", flush_after_s=LATE_S)


def flush(world):
    return Flusher(world.tenant.pk).run().blocks


def make_due(world, ids):
    """As if the time had passed."""
    keys = BucketKeys(world.tenant.pk, 0)
    past_s = timezone.now().timestamp() - GATHER_S - 1
    hot.admin().zadd(keys.bookkeeping[2], dict.fromkeys(ids, past_s), xx=True)


def test_each_space_is_flushed_when_its_policy_says(world):
    at_once, never = (make_space(world.tenant, name) for name in ("at once", "never"))
    world.rule(space=at_once, overrides={"flush_mode": "now"})
    world.rule(space=never, overrides={"flush_mode": "never"})
    now_s = timezone.now().timestamp()
    late, kept, soon = world.store(2), world.store(1, never), world.store(3, at_once)
    ids = [*late, *kept, *soon]
    assert [e.is_dirty for e in world.entries(ids)] == [True, True, False, True, True, True]
    assert flush(world) == 3
    assert [e.is_cold for e in world.entries(ids)] == [False] * 3 + [True] * 3
    held = world.tier.usage()
    assert held.dirty_blocks == 2
    assert 0 <= held.oldest_due_s - now_s - LATE_S < 60
    assert not is_worth_a_segment(held, now_s)
    assert upkeep.gauges(held, Occupancy(), now_s)["dirty_oldest_s"] == 0


def test_what_was_due_long_enough_is_flushed_however_little(world):
    ids = world.store(2)
    tasks.flush()
    assert [e.is_cold for e in world.entries(ids)] == [False] * 2
    make_due(world, ids[:1])
    assert (
        upkeep.gauges(world.tier.usage(), Occupancy(), timezone.now().timestamp())["dirty_oldest_s"]
        >= 5
    )
    tasks.flush()
    assert [e.is_cold for e in world.entries(ids)] == [True, False]
