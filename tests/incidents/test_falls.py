"""How soon a fall becomes an incident, and what does not become one. The clock is simulated."""

import random
from datetime import timedelta

import pytest

from incidents import evaluate, slices
from incidents.fall import Bucket, Counted, measure
from support.rows import make_tenant

pytestmark = [pytest.mark.integration, pytest.mark.django_db]

GOOD = {"hits": 80, "misses": {"never_stored": 20}}
LOW = {"hits": 50, "misses": {"never_stored": 20, "unflushed": 30}}
NONE = {"hits": 0, "misses": {"unflushed": 100}}


@pytest.mark.parametrize("second", [0, 3, 5, 9])
def test_a_fall_by_twice_the_threshold_is_open_within_its_bound(world, acme, second):
    """The bound of docs/operators.md, without heartbeat and page: 20 s."""
    world.run(20, [acme], **GOOD)
    world.live(second, acme, **GOOD)
    fell_at = world.now
    world.live(30, acme, **LOW)
    (incident,) = world.opened()
    assert incident.cause == "unflushed"
    assert incident.opened_at - fell_at <= timedelta(seconds=20)
    assert abs(incident.since - fell_at) <= timedelta(seconds=4)


def test_tenants_that_fall_together_are_all_open_a_round_later(world, acme):
    """A round opens as many as it can explain, MOST_DETAILS."""
    tenants = [acme, *(make_tenant(f"t{place}") for place in range(evaluate.MOST_DETAILS + 1))]
    world.run(20, tenants, **GOOD)
    world.run(2, tenants, **LOW)
    assert len(world.opened()) == evaluate.MOST_DETAILS
    world.run(1, tenants, **LOW)
    assert len(world.opened()) == len(tenants)


@pytest.mark.parametrize("second", [0, 4, 7])
@pytest.mark.parametrize("blip_s", [3, 8])
@pytest.mark.parametrize("share", [1, 10])
def test_a_blip_is_none(world, acme, second, blip_s, share):
    """Also with a tenth of the traffic."""

    def of(reported):
        misses = {name: blocks // share for name, blocks in reported["misses"].items()}
        return {"hits": reported["hits"] // share, "misses": misses}

    world.run(20, [acme], **of(GOOD))
    world.live(10 + second, acme, **of(GOOD))
    world.live(blip_s, acme, **of(NONE))
    world.live(40, acme, **of(GOOD))
    assert world.opened() == []


def test_few_requests_of_many_blocks_vary_without_an_alarm(world, acme):
    """One request a second, all or nothing of its 16 blocks: 10 s of them vary by 13 points."""
    chance = random.Random(7)
    for _ in range(150):
        hits = 16 * sum(chance.random() < 0.8 for _ in range(10))
        world.run(1, [acme], hits=hits, misses={"idle": 160 - hits})
    assert world.opened() == []


def bucket(ts, hits, blocks):
    counts = dict.fromkeys(Counted().counts, 0)
    counts |= {"requested_blocks": blocks, "requested_tokens": 16 * blocks}
    return Bucket(ts, counts | {"hit_hot_tokens": 16 * hits}, {})


def test_the_run_is_as_long_as_chance_demands():
    now_s = 1_000_000
    steady = [bucket(now_s - 300 + 10 * step, 800, 1000) for step in range(30)]
    few = [bucket(now_s - 300 + 10 * step, 8, 10) for step in range(30)]
    chance = random.Random(7)
    varied = [
        bucket(now_s - 300 + 10 * step, 16 * sum(chance.random() < 0.8 for _ in range(10)), 160)
        for step in range(30)
    ]
    seconds = [
        measure(each, Counted(), now_s, least_fall=0.15).now.seconds
        for each in (steady, few, varied)
    ]
    assert seconds[0] == 10
    assert 100 <= seconds[1] <= 130
    assert 60 <= seconds[2] <= 300
    assert measure(few[-5:], Counted(), now_s, least_fall=0.15) is None


def test_a_bucket_ahead_of_the_clock_is_read():
    steady = [bucket(1_000_000 + 10 * step, 800, 1000) for step in range(30)]
    assert measure(steady, Counted(), 1_000_280, least_fall=0.15).now.seconds == 1


def test_a_young_incidents_worst_slice_is_looked_for_again(world, acme, monkeypatch):
    """The slices of a fall are counted up to 15 s after the sums that opened it."""
    found = iter([{"split": "all"}, {"split": "node", "name": "gpu-1"}])
    monkeypatch.setattr(slices, "worst_of", lambda *_: next(found, {"split": "node", "name": "x"}))
    world.run(20, [acme], **GOOD)
    world.live(20, acme, **LOW)
    assert world.opened()[0].slice == {"split": "all"}
    world.live(20, acme, **LOW)
    assert world.opened()[0].slice["name"] == "gpu-1"
    world.live(200, acme, **LOW)
    assert world.opened()[0].slice["name"] == "x"
