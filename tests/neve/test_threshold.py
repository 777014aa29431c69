"""The routing threshold: what moves it, and that overload gives the published optimum."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neve.cli.plan.prfaas import PUBLISHED, PUBLISHED_LENGTHS, PUBLISHED_LOCAL_S
from neve.planner.breakeven import Store
from neve.planner.parts import PrefixBytes
from neve.planner.prfaas import Clusters, Curve, Measured, quantile, scaled_to, solve
from neve.planner.threshold import (
    BUSY,
    Link,
    Site,
    Threshold,
    behind,
    measured_curve,
    sooner_from,
    sustained_from,
)

MIB = 1 << 20
LENGTHS = PUBLISHED_LENGTHS
H200 = Curve.through([(tokens, seconds) for tokens, seconds, _ in PUBLISHED])
MEAN_S, P90_S = PUBLISHED_LOCAL_S
H20 = scaled_to(H200, LENGTHS, mean_s=MEAN_S, share=0.9, share_s=P90_S)
LOCAL = Site(H20, nodes=3)
POOL = Site(H200, nodes=4)
KV = PrefixBytes(16_740 * 1.048576, 174 * MIB)
LINK = Link(Store(100e9 / 8, 0.02), KV)
MOST = 128_000


def sooner(local: Site = LOCAL, pool: Site = POOL, link: Link = LINK) -> float:
    return sooner_from(local, pool, link, most_tokens=MOST)


def test_a_prompt_above_the_threshold_is_sooner_in_the_pool_and_one_below_it_is_not():
    local, link = Site(Curve(0.0, 1e-3)), Link(Store(10 * MIB, 0.5), PrefixBytes(1000, 0))
    pool = Site(Curve(0.2, 1e-4))
    found = sooner(local, pool, link)
    assert 700 < found < 1000  # 0.95e-3 n = 0.7 + 1e-4 n + 9.5e-5 n
    for tokens, is_sooner in ((found * 1.02, True), (found * 0.98, False)):
        assert (link.seconds(tokens, pool) < 0.95 * local.prefill.at(tokens)) == is_sooner


def test_a_link_cut_to_a_tenth_raises_the_threshold():
    local, pool = Site(Curve(0.0, 1e-4, 1e-8)), Site(Curve(0.05, 1e-5))
    kv = PrefixBytes(1000, 0)
    fast, slow = (
        sooner_from(local, pool, Link(Store(rate, 0.02), kv), most_tokens=MOST)
        for rate in (12.5e6, 1.25e6)
    )
    assert fast < slow < math.inf


def test_a_link_on_which_no_prompt_is_sooner_gets_none():
    assert sooner(link=replace(LINK, speed=Store(1000.0))) == math.inf


def test_a_pool_that_is_always_sooner_gets_all():
    assert sooner(replace(LOCAL, wait_s=60.0)) == 0.0


@given(st.floats(0.1, 60), st.sampled_from(["pool", "link", "local"]))
def test_what_waits_moves_the_threshold(wait_s: float, where: str):
    before = sooner()
    if where == "pool":
        assert sooner(pool=replace(POOL, wait_s=wait_s)) >= before
    elif where == "link":
        queue = int(wait_s * LINK.speed.bytes_per_s)
        assert sooner(link=replace(LINK, speed=replace(LINK.speed, queue_bytes=queue))) >= before
    else:
        assert sooner(replace(LOCAL, wait_s=wait_s)) <= before


def test_sending_and_computing_overlap_by_steps():
    link = Link(Store(1000.0), PrefixBytes(1.0, 0), step_tokens=100)
    # 400 tokens of 1 s a hundred, 0.1 s of link each: the last step is sent behind the computing.
    assert link.seconds(400.0, Site(Curve(0.0, 0.01))) == pytest.approx(4.1)
    # 0.05 s a hundred: the link never pauses behind the first step.
    assert link.seconds(400.0, Site(Curve(0.0, 0.0005))) == pytest.approx(0.45)


def sustained(arrivals_per_s: float, link: Link = LINK) -> float:
    return sustained_from(LOCAL, POOL, link, LENGTHS, arrivals_per_s=arrivals_per_s)


def test_with_few_arrivals_the_pool_could_take_all():
    assert sustained(0.01) == 0.0


def test_more_arrivals_raise_what_the_pool_can_sustain_up_to_the_optimum():
    case = Clusters(
        remote=H200,
        local=H20,
        kv_fixed_bytes=KV.fixed,
        kv_bytes_per_token=KV.per_token,
        decode_per_s=20 * 40 / 1024,
        remote_instances=POOL.nodes,
        local_instances=8,
        baseline_instances=12,
        link_bytes_per_s=LINK.speed.bytes_per_s,
    )
    best = solve(case, LENGTHS, by_each_length=True).best
    assert best.prefill_instances == LOCAL.nodes
    rates = [BUSY * share * best.requests_per_s for share in (0.5, 0.8, 0.99)]
    found = [sustained(rate) for rate in rates]
    assert found == sorted(found)
    assert found[-1] < best.threshold_tokens
    # More than the machines can do: the paper's optimum.
    assert sustained(10 * best.requests_per_s) == pytest.approx(best.threshold_tokens, rel=0.01)


def test_a_slow_link_sustains_only_prompts_that_are_longer():
    rate = 1.0
    assert sustained(rate, replace(LINK, speed=Store(2.5e8))) > sustained(rate)


def test_measured_lengths_do_as_well():
    lengths = Measured([int(quantile(LENGTHS, (n + 0.5) / 2000)) for n in range(2000)])
    found = sustained_from(LOCAL, POOL, LINK, lengths, arrivals_per_s=2.5)
    assert found == pytest.approx(sustained(2.5), rel=0.02)


def test_the_threshold_is_the_larger_of_both():
    assert Threshold(sooner=300.0, sustained=0.0).tokens == 300.0
    assert Threshold(sooner=300.0, sustained=900.0).tokens == 900.0


def test_a_curve_is_found_from_samples_with_and_without_a_cached_beginning():
    true = Curve(0.1, 2e-4, 3e-9)
    samples = [
        (cached, tokens, behind(true, cached).at(tokens))
        for cached, tokens in ((0, 500), (0, 4000), (8000, 2000), (0, 30_000), (64_000, 9000))
    ]
    found = measured_curve(samples)
    assert found is not None
    for tokens in (200, 5000, 60_000):
        assert found.at(tokens) == pytest.approx(true.at(tokens), rel=0.01)


def test_samples_of_one_length_tell_a_speed_and_none_tell_nothing():
    assert measured_curve([]) is None
    assert measured_curve([(0, 0, 1.0), (0, 5, 0.0)]) is None
    one = measured_curve([(0, 1000, 0.5)])
    assert one is not None
    assert one.at(2000) >= 1.0


@given(
    st.lists(
        st.tuples(st.integers(0, 10**6), st.integers(1, 10**6), st.floats(1e-4, 1e3)),
        min_size=1,
        max_size=64,
    )
)
def test_no_samples_make_a_curve_that_falls_or_is_free(samples):
    curve = measured_curve(samples)
    assert curve is not None
    assert min(curve.fixed_s, curve.s_per_token, curve.s_per_token2) >= 0
    assert curve.at(1000) > 0
