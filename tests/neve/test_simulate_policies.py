"""Simulated policies keep their quotas and their bounds, and the LRU curve is exact."""

from itertools import accumulate, islice
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neve.errors import Misuse
from neve.planner.simulate import single, tiers
from neve.planner.simulate.curve import Stack, lru_curve
from neve.planner.simulate.hot import Promote
from neve.planner.simulate.policies import (
    ONLINE,
    POLICIES,
    ByPriority,
    Future,
    Gdsf,
    Lfu,
    Queues,
    S3Fifo,
    make,
)
from neve.planner.simulate.requests import BlockRequest
from neve.planner.simulate.settings import Setting, TierSetting
from neve.replay.generator import Generator, Workload
from neve.replay.trace import read_trace

RECORDED = Path(__file__).parents[3] / "shared/traces/conversation_trace.jsonl"
PUBLISHED = {
    None: 0.3664,
    1_000: 0.0445,
    10_000: 0.2112,
    30_000: 0.3257,
    50_000: 0.3546,
    100_000: 0.3637,
}

# Chains of a tree in which each block has up to three continuations, as ids of prefixes.
steps = st.lists(st.integers(0, 2), max_size=6)
chains = steps.map(
    lambda turns: list(accumulate(turns, lambda id_, turn: 4 * id_ + turn, initial=1))
)
traces = st.lists(chains, min_size=1, max_size=60)
loose_traces = st.lists(st.lists(st.integers(0, 9), max_size=6), min_size=1, max_size=60)
capacities = st.integers(1, 40)


def unequal(id_):
    return 1 + id_ * 7 % 5


def held_at_start(requests, capacity, bytes_of):
    """Hits of LRU by its definition: the most recently used blocks that fit, longest prefix."""
    recent, hits = [], 0
    for ids in requests:
        sums = list(accumulate(map(bytes_of, recent)))
        held = {id_ for id_, used in zip(recent, sums, strict=True) if used <= capacity}
        hits += next((n for n, id_ in enumerate(ids) if id_ not in held), len(ids))
        for id_ in ids:
            recent = [id_, *(each for each in recent if each != id_)]
    return hits


@given(loose_traces, st.integers(5, 40), st.sampled_from([single.one_byte, unequal]))
def test_lru_and_its_curve_are_those_of_the_definition(requests, capacity, bytes_of):
    hits = held_at_start(requests, capacity, bytes_of)
    ran = single.run("lru", requests, capacity_bytes=capacity, bytes_of=bytes_of)
    assert ran.hit_blocks == hits
    assert lru_curve(requests, bytes_of=bytes_of).hit_blocks(capacity) == hits


@given(traces, st.sampled_from([single.one_byte, unequal]))
def test_the_curve_is_lru_at_every_capacity_and_never_falls(requests, bytes_of):
    curve = lru_curve(requests, bytes_of=bytes_of)
    everything = sum(map(bytes_of, {id_ for ids in requests for id_ in ids}))
    sizes = [*range(curve.largest_block, everything + 2), None]
    by_curve = [curve.hit_blocks(size) for size in sizes]
    by_runs = [
        single.run("lru", requests, capacity_bytes=size, bytes_of=bytes_of).hit_blocks
        for size in sizes
    ]
    assert by_curve == by_runs == sorted(by_runs)


@given(traces)
def test_the_capacity_for_a_hit_rate_is_the_least_one(requests):
    curve = lru_curve(requests)
    for size in range(1, len(requests)):
        rate = curve.hit_rate(size)
        found = curve.capacity_for(rate)
        assert found <= size
        assert curve.hit_rate(found) >= rate
        assert found == 1 or curve.hit_rate(found - 1) < rate
    assert curve.capacity_for(1.01) is None


@given(traces, capacities)
def test_no_policy_has_more_hits_than_belady(requests, capacity):
    """Blocks of equal bytes."""
    best = single.run("belady", requests, capacity_bytes=capacity)
    assert best.rate == single.bound(requests, capacity_bytes=capacity)
    for name in ONLINE:
        assert single.run(name, requests, capacity_bytes=capacity).hit_blocks <= best.hit_blocks


@given(traces, capacities)
def test_no_policy_has_more_hit_bytes_than_the_bound(requests, capacity):
    """Blocks of unequal bytes."""
    most = single.bound(requests, capacity_bytes=capacity, bytes_of=unequal)
    for name in POLICIES:
        hits = single.run(name, requests, capacity_bytes=capacity, bytes_of=unequal)
        assert hits.byte_rate <= most


@given(
    traces,
    st.sampled_from(POLICIES),
    st.integers(1, 12),
    st.none() | st.integers(1, 12),
    st.sampled_from(Promote),
)
def test_hot_and_cold_tier_hit_no_more_than_the_bound_of_both(
    requests, name, hot_bytes, cold_bytes, promote
):
    cold = None if cold_bytes is None else TierSetting(cold_bytes, policy=name)
    setting = Setting(TierSetting(hot_bytes, policy=name), cold=cold, promote=promote)
    timed = [BlockRequest(tuple(ids), float(n)) for n, ids in enumerate(requests)]
    most = single.bound(requests, capacity_bytes=hot_bytes + (cold_bytes or 0))
    assert tiers.run(setting, timed).hit_rate <= most


def best_by_search(requests, capacity):
    """Most prefix hits of all ways to keep at most `capacity` blocks after each request."""
    states = {frozenset(): 0}
    for ids in requests:
        following = {}
        for held, hits in states.items():
            now = hits + next((n for n, id_ in enumerate(ids) if id_ not in held), len(ids))
            for kept in subsets(held | set(ids), capacity):
                following[kept] = max(now, following.get(kept, 0))
        states = following
    return max(states.values())


def subsets(ids, most):
    found = {frozenset()}
    for id_ in ids:
        found |= {each | {id_} for each in found if len(each) < most}
    return found


small_chains = st.lists(st.integers(0, 1), max_size=2).map(
    lambda turns: list(accumulate(turns, lambda id_, turn: 2 * id_ + turn, initial=1))
)


@given(st.lists(small_chains, min_size=1, max_size=7), st.integers(1, 3))
def test_belady_is_the_best_of_all_ways_to_keep_blocks(requests, capacity):
    best = single.run("belady", requests, capacity_bytes=capacity)
    assert best.hit_blocks == best_by_search(requests, capacity)


@pytest.mark.parametrize("name", POLICIES)
@given(traces, capacities)
def test_a_tier_is_never_above_its_quota_and_says_who_left(name, requests, capacity):
    future = Future(requests) if name == "belady" else None
    policy = make(name, capacity_bytes=capacity, future=future)
    held = {}
    for ids in requests:
        if future:
            future.advance()
        for id_ in ids:
            assert (id_ in policy) == (id_ in held)
            if id_ in policy:
                policy.use(id_)
            else:
                held[id_] = unequal(id_)
                for left in policy.store(id_, unequal(id_), again=id_ % 3 == 0, cost=1 + id_):
                    del held[left]
            assert policy.used_bytes == sum(held.values()) <= capacity
            assert len(policy) == len(held)
            if id_ % 7 == 0 and held:
                gone = min(held)
                assert policy.size_of(gone) == held.pop(gone)
                policy.remove(gone)
    left = [policy.evict() for _ in range(len(policy))]
    assert sorted(left) == sorted(held)
    assert policy.used_bytes == 0


@given(loose_traces)
def test_without_a_limit_all_policies_hit_the_same(requests):
    hits = {single.run(name, requests, capacity_bytes=None) for name in ONLINE}
    assert len(hits) == 1


def test_blocks_cost_more_the_further_back_they_stand_in_the_prompt():
    tier = single.SingleTier(make("lru", capacity_bytes=None), block_tokens=30_000)
    tier.ask([1, 2])
    tier.ask([1, 3])
    assert (tier.hits.asked_cost, tier.hits.hit_cost) == (1.5 + 2.5 + 1.5 + 2.5, 1.5)
    assert tier.hits.cost_rate == 1.5 / 8


def test_lfu_evicts_the_least_used_and_of_equal_ones_the_longest_unused():
    lfu = Lfu(3)
    for id_ in (1, 2, 3):
        lfu.store(id_)
    for id_ in (1, 1, 3):
        lfu.use(id_)
    assert lfu.store(4) == [2]
    assert lfu.store(5) == [4]
    lfu.use(5)
    assert [lfu.evict() for _ in range(3)] == [3, 5, 1]


def test_gdsf_weighs_uses_and_cost_against_bytes():
    gdsf = Gdsf(100)
    gdsf.store(1, 10, cost=10)  # 1 for each byte
    gdsf.store(2, 10, cost=30)
    gdsf.store(3, 40, cost=80)
    gdsf.use(1)
    gdsf.use(1)
    gdsf.use(1)
    assert gdsf.store(4, 50, cost=1) == [3]  # 2 for each byte; 4 enters with 2.02
    assert [gdsf.evict() for _ in range(3)] == [4, 2, 1]


def test_s3_fifo_keeps_what_was_used_twice_and_what_comes_back():
    fifo = S3Fifo(10)
    for id_ in range(10):
        fifo.store(id_)
    for _ in range(2):
        fifo.use(0)
    fifo.use(1)
    assert fifo.store(10) == [1]  # 0 moved to the main queue; 1 was used only once
    assert fifo.store(1) == [2]  # a ghost: it enters the main queue
    evicted = [fifo.evict() for _ in range(10)]
    assert evicted == [3, 4, 5, 6, 7, 8, 9, 10, 0, 1]


def test_two_queues_take_sixteen_of_one_queue_before_they_look_again():
    """As the functions do in one call that makes room for a large block."""
    queues = Queues(60, probation=True, share=0.5)
    for id_ in range(60):
        queues.store(id_, again=id_ >= 31)
    assert queues.store(99, 20) == [*range(16), 31, 32, 33, 34]


def test_the_lowest_priority_leaves_first():
    tier = ByPriority(4, lambda: Lfu(), lambda id_: id_ % 2)
    for id_ in (1, 2, 3, 4):
        tier.store(id_)
    tier.use(2)
    assert tier.store(5) == [4]
    assert [tier.evict() for _ in range(4)] == [2, 1, 3, 5]


def test_wrong_settings_name_the_field_and_the_fix():
    with pytest.raises(Misuse, match="policy: unknown policy 'mru'; expected one of lru, 2q"):
        make("mru", capacity_bytes=1)
    with pytest.raises(Misuse, match="future: belady needs all requests"):
        make("belady", capacity_bytes=1)
    with pytest.raises(Misuse, match="block 3 follows 2 here and 1 before"):
        single.run("belady", [[1, 3], [1, 2, 3]], capacity_bytes=1)
    with pytest.raises(Misuse, match="expected each block once"):
        single.bound([[1, 1]], capacity_bytes=1)
    with pytest.raises(Misuse, match="capacity: 4 hold not even the largest block of 5"):
        lru_curve([[2]], bytes_of=lambda _: 5).hit_rate(4)
    stack = Stack()
    stack.use(1, 5)
    with pytest.raises(Misuse, match="has 6 bytes now and had 5 before"):
        stack.use(1, 6)


def test_the_memory_of_the_curve_is_that_of_the_unique_blocks():
    stack = Stack()
    for n in range(100_000):
        stack.use(n % 100, 1)
    assert len(stack._sums) < 2_000
    assert [stack.need(n) for n in (99, 98, 0)] == [1, 2, 100]


def test_the_curve_of_a_generated_trace_is_lru_at_every_capacity():
    requests = [request.hash_ids for request in islice(Generator(Workload.MIXED, seed=3), 600)]
    curve = lru_curve(requests)
    rates = []
    for size in (50, 200, 500, 1000, None):
        rates.append(single.run("lru", requests, capacity_bytes=size).rate)
        assert curve.hit_rate(size) == rates[-1]
    assert held_at_start(requests, 200, single.one_byte) == curve.hit_blocks(200)
    assert 0 < rates[0] < rates[1] < rates[-1]


@pytest.fixture(scope="module")
def recorded():
    if not RECORDED.exists():
        pytest.skip("the recorded trace is not at ../shared/traces")
    return [request.hash_ids for request in read_trace(RECORDED)]


def test_the_curve_gives_the_published_hit_rates_of_the_recorded_trace(recorded):
    curve = lru_curve(recorded)
    assert curve.asked_blocks == 288_500
    assert {size: round(curve.hit_rate(size), 4) for size in PUBLISHED} == PUBLISHED


def test_belady_keeps_prefixes_of_the_recorded_trace(recorded):
    best = single.run("belady", recorded, capacity_bytes=3_000).rate
    assert best == single.bound(recorded, capacity_bytes=3_000)
    assert best > 0.29
