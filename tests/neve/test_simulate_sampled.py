"""Estimates from samples: near the exact curve, whichever ids a key chooses; formats of samples."""

import random
from itertools import repeat
from pathlib import Path

import pytest

from neve.errors import Misuse
from neve.formats.samples import KEY_BYTES, SampledRequest, Totals
from neve.planner.simulate.curve import lru_curve
from neve.planner.simulate.policies import make
from neve.planner.simulate.requests import BlockRequest
from neve.planner.simulate.sampled import curve, estimate
from neve.planner.simulate.samples import (
    Samples,
    gathered,
    read_lines,
    sample,
    write_lines,
)
from neve.planner.simulate.single import SingleTier
from neve.replay.trace import read_trace

RECORDED = Path(__file__).parents[3] / "shared/traces/conversation_trace.jsonl"
# Source: the README of the recorded trace.
EXACT = {
    **{1_000: 0.0445, 10_000: 0.2112, 30_000: 0.3257, 50_000: 0.3546, 100_000: 0.3637},
    None: 0.3664,
}


def key(number):
    return number.to_bytes(KEY_BYTES, "little")


def conversations(*, seed=1, requests=2000, shared=12):
    """Turns of conversations that all begin with the same `shared` blocks."""
    chance = random.Random(seed)
    growing, next_id, made = [], 1_000_000, []
    for at in range(requests):
        if not growing or chance.random() < 0.35:
            growing.append(list(range(shared)))
        chain = chance.choice(growing[-200:])
        new = chance.randrange(1, 25)
        chain += range(next_id, next_id + new)
        next_id += new
        made.append(BlockRequest(tuple(chain), at * 0.3))
    return made


def exact(requests, capacities):
    whole = lru_curve(request.ids for request in requests)
    return {capacity: whole.hit_rate(capacity) for capacity in capacities}


@pytest.mark.skipif(not RECORDED.exists(), reason="the recorded trace is not at ../shared/traces")
@pytest.mark.parametrize(("rate_log", "points"), [(4, 1.0), (6, 2.0)])
def test_the_curve_of_the_recorded_trace_from_its_samples(rate_log, points):
    requests = [BlockRequest(r.hash_ids, r.timestamp_ms / 1000) for r in read_trace(RECORDED)]
    for number in range(2):
        found = curve(sample(requests, rate_log=rate_log, key=key(number)))
        for capacity, truth in EXACT.items():
            off = 100 * abs(found.hit_rate(capacity) - truth)
            assert off <= points, (number, capacity)


@pytest.mark.parametrize("shared", [1, 12, 40])
def test_blocks_of_every_request_do_not_tilt_the_estimate_sampled_or_not(shared):
    requests = conversations(shared=shared)
    found = [curve(sample(requests, rate_log=4, key=key(number))) for number in range(6)]
    for capacity, truth in exact(requests, (1_000, 5_000, None)).items():
        off = [abs(each.hit_rate(capacity) - truth) for each in found]
        assert max(off) < 0.04, (capacity, off)


def test_all_ids_sampled_is_exact():
    requests = conversations(requests=300)
    found = curve(sample(requests, rate_log=0, key=key(1)))
    for capacity, truth in exact(requests, (1, 50, 500, 2_000, None)).items():
        assert found.hit_rate(capacity) == pytest.approx(truth)
    assert found.error(500) == 0


def test_the_error_is_as_large_as_estimates_are_off():
    requests = conversations()
    truth = exact(requests, [2_000])[2_000]
    found = [
        curve(sample(requests, rate_log=4, key=key(n))).estimate(2_000) for n in range(100, 110)
    ]
    within = sum(abs(each.hit_rate - truth) <= 2 * each.error for each in found)
    assert within >= 8  # 95 % of 10, less luck
    assert max(each.error for each in found) < 0.04


def lru(requests, _rate):
    """A simulation of an unlimited tier, as callers of `estimate` have of theirs."""
    tier = SingleTier(make("lru", capacity_bytes=None))
    return [(tier.ask(each.ids),) for each in requests]


def test_a_simulated_setting_is_estimated_as_the_curve_is():
    samples = sample(conversations(requests=400), rate_log=3, key=key(5))
    by_curve, by_play = curve(samples).estimate(None), estimate(samples, lru)
    assert by_play.hit_rate == pytest.approx(by_curve.hit_rate)
    assert by_play.error == pytest.approx(by_curve.error)
    gain, error = by_play.gain_over(by_curve)
    assert gain == pytest.approx(0)
    assert error == pytest.approx(0)


def test_hits_are_split_over_tiers():
    samples = sample(conversations(requests=400), rate_log=3, key=key(5))

    def play(requests, _rate):
        return [(1, len(each.ids) - 1) for each in requests]

    found = estimate(samples, play)
    assert found.hit_rate == pytest.approx(sum(found.tiers))
    accesses = sum(len(each.ids) for each in samples.requests)
    share = len(samples.requests) / accesses
    assert found.tiers[0] == pytest.approx(found.hit_rate * share)


def test_a_lower_rate_samples_a_part_of_the_same_ids():
    requests = conversations(requests=500)
    wide, narrow = (sample(requests, rate_log=log, key=key(9)) for log in (2, 5))
    assert wide.at(5) == narrow
    with pytest.raises(Misuse, match="rate_log"):
        narrow.at(2)


def test_samples_of_two_nodes_at_other_rates_are_one_window():
    requests = conversations(requests=500)
    halves = [requests[::2], requests[1::2]]
    parts = [
        sample(half, rate_log=log, key=key(9)) for half, log in zip(halves, (3, 4), strict=True)
    ]
    assert gathered(parts, most_accesses=10**6) == sample(requests, rate_log=4, key=key(9))
    assert gathered([], most_accesses=10**6) == Samples(0, [], Totals())


def test_too_many_samples_are_held_at_a_lower_rate():
    requests = conversations(requests=500)
    parts = [sample(requests[n : n + 50], rate_log=1, key=key(9)) for n in range(0, 500, 50)]
    whole = sample(requests, rate_log=1, key=key(9))
    accesses = [sum(len(each.ids) for each in whole.at(log).requests) for log in range(1, 6)]
    assert gathered(parts, most_accesses=accesses[2]) == whole.at(3)
    assert gathered(parts, most_accesses=accesses[2] - 1) == whole.at(4)


def test_ids_that_no_rate_leaves_out_fill_no_memory():
    one = Samples(0, [SampledRequest(0.0, 10, (0, 1), (0, 1))], Totals.of([10]))
    found = gathered(repeat(one), most_accesses=1000)
    assert (len(found.requests), found.totals.asked_blocks) == (500, 5000)


def test_published_ids_change_with_the_key_and_are_no_block_ids():
    requests = conversations(requests=50)
    first, second = (
        {id_ for each in sample(requests, rate_log=0, key=key(n)).requests for id_ in each.ids}
        for n in (1, 2)
    )
    assert len(first) == len(second) == len({id_ for each in requests for id_ in each.ids})
    assert not first & second


def test_lines_are_read_as_they_were_written():
    samples = sample(conversations(requests=100), rate_log=3, key=key(1))
    lines = list(write_lines(samples, {"tenant": "alpha"}))
    found = read_lines(lines)
    assert found.totals == samples.totals
    assert [each.ids for each in found.requests] == [each.ids for each in samples.requests]
    assert curve(found).hit_rate(1_000) == curve(samples).hit_rate(1_000)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([], "neve_samples"),
        (["{}"], "line 1: needs 'neve_samples'"),
        (['{"neve_samples": 2, "rate_log": 4}'], "version 1"),
        (['{"neve_samples": 1, "rate_log": 40, "totals": {}}'], "rate_log"),
        (["no JSON"], "line 1"),
        (["[]"], "line 1"),
    ],
)
def test_a_wrong_header_is_refused_with_its_line(lines, words):
    with pytest.raises(Misuse, match=words):
        read_lines(lines)


@pytest.mark.parametrize(
    "line",
    [
        '{"timestamp": 1, "asked_blocks": 3, "places": [0, 3], "hash_ids": [1, 2]}',
        '{"timestamp": 1, "asked_blocks": 3, "places": [1, 1], "hash_ids": [1, 2]}',
        '{"timestamp": 1, "asked_blocks": 3, "places": [1], "hash_ids": [1, 2]}',
        '{"timestamp": 1, "asked_blocks": 3, "places": [], "hash_ids": []}',
        '{"timestamp": "soon", "asked_blocks": 3, "places": [1], "hash_ids": [1]}',
        '{"timestamp": 1, "asked_blocks": 3, "places": [1], "hash_ids": [-1]}',
    ],
)
def test_a_wrong_request_is_refused_with_its_line(line):
    header = next(iter(write_lines(Samples(4, (), Totals.of([3])))))
    with pytest.raises(Misuse, match="line 2"):
        read_lines([header, line])


def test_nothing_sampled_is_an_error_and_one_block_an_uncertain_answer():
    with pytest.raises(Misuse, match="no samples"):
        curve(Samples(4, (), Totals.of([3])))
    one = Samples(4, (SampledRequest(0.0, 3, (1,), (7,)),), Totals.of([3]))
    found = curve(one).estimate(10)
    assert found.hit_rate == 0
    assert found.error > 0.9
