"""How much of a found prefix is loaded, and the measurements that decide it."""

import random
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neve.index.tier import Tier
from neve.planner.breakeven import Prefill, Store, pairs
from neve.planner.choice import Decision, choose
from neve.planner.fit import TwoTermFit
from neve.planner.measured import DOUBLING_S, PrefillMeter, StoreMeter

BLOCK = 1 << 20  # bytes of 100 tokens
PREFILL = Prefill.at(1000)  # 0.1 s a block


def weigh(tiers, *, prefill=PREFILL, end=None, start=0, hopes=None, **more):
    stores = {name: more.pop(name) for name in ("hot", "cold") if name in more}
    return choose(
        tiers,
        block_bytes=BLOCK,
        block_ends=[100 * n for n in range(1, len(tiers) + 1)],
        start=start,
        end=end or 100 * len(tiers) + 50,
        prefill=prefill,
        stores={Tier(name): store for name, store in stores.items()},
        hopes=hopes and {Tier(name): store for name, store in hopes.items()},
        **more,
    )


HOT, COLD = [Tier.HOT], [Tier.COLD]


def test_a_fast_store_is_loaded_from_and_a_slow_one_is_not():
    fast = weigh(HOT * 10, hot=Store(100 * BLOCK))
    assert (fast.blocks, fast.decision) == (10, Decision.LOAD_ALL)
    assert fast.spared_s == pytest.approx(1.0)
    slow = weigh(HOT * 10, hot=Store(5 * BLOCK))
    assert (slow.blocks, slow.decision) == (0, Decision.RECOMPUTE)


def test_a_cold_tail_that_is_slower_than_computing_is_left():
    choice = weigh(HOT * 6 + COLD * 4, hot=Store(100 * BLOCK), cold=Store(2 * BLOCK))
    assert (choice.blocks, choice.decision) == (6, Decision.LOAD_PREFIX)


def test_all_is_loaded_unless_computing_its_tail_is_clearly_sooner():
    """The tail hides in the step that follows every load, so that loading less looks sooner by the
    time of its bytes; but a step of more tokens takes longer than those tell."""
    store, step_s = Store(100 * BLOCK), 0.1
    assert weigh(HOT * 40, hot=store, step_s=step_s).decision is Decision.LOAD_ALL
    slow = weigh(HOT * 4, hot=Store(20 * BLOCK), step_s=0.15, end=400)
    assert (slow.blocks, slow.decision) == (3, Decision.LOAD_PREFIX)


def test_a_long_round_trip_is_not_worth_a_short_prefix():
    store = Store(1000 * BLOCK, round_trip_s=0.5)
    assert weigh(HOT * 3, hot=store).decision is Decision.RECOMPUTE
    assert weigh(HOT * 30, hot=store).decision is Decision.LOAD_ALL


def test_a_queue_counts():
    assert weigh(HOT * 10, hot=Store(100 * BLOCK, queue_bytes=200 * BLOCK)).blocks == 0


def test_what_the_engine_has_itself_is_no_gain():
    """One block beyond 900 tokens that are there: 0.1 s to compute, 0.2 s to load."""
    store = Store(100 * BLOCK, round_trip_s=0.2)
    assert weigh(HOT * 10, hot=store).blocks == 10
    only = choose(
        HOT, block_bytes=BLOCK, block_ends=[1000], start=900, end=1050,
        prefill=PREFILL, stores={Tier.HOT: store},
    )  # fmt: skip
    assert only.blocks == 0


def test_what_was_never_measured_is_tried():
    assert weigh(HOT * 10, prefill=None, hot=Store(1)).decision is Decision.LOAD_ALL
    assert weigh(COLD * 10, hot=Store(1)).decision is Decision.LOAD_ALL


def test_of_a_tier_that_was_never_measured_little_is_tried():
    first = weigh(COLD * 40, first_trial_s=0.31)
    assert (first.blocks, first.decision, first.is_first) == (4, Decision.LOAD_PREFIX, True)
    assert first.spared_s == first.tried_s == pytest.approx(0.4)
    fast = Store(100 * BLOCK)
    tail = weigh(HOT * 20 + COLD * 20, hot=fast, first_trial_s=0.31)
    assert (tail.blocks, tail.is_first) == (24, True)
    assert tail.tried_s == pytest.approx(0.4)
    slow = weigh(HOT * 2 + COLD * 20, hot=Store(5 * BLOCK), first_trial_s=0.31)
    assert slow.decision is Decision.RECOMPUTE  # the cold tail stands behind a slow tier
    known = weigh(COLD * 40, cold=fast, first_trial_s=0.31)
    assert (known.blocks, known.is_first) == (40, False)


def test_the_engines_step_after_a_load_is_part_of_its_cost():
    """Loading saves 0.2 s of computing in 0.1 s, but a step takes a quarter of a second."""
    store = Store(20 * BLOCK)
    assert weigh(HOT * 2, end=200, hot=store).blocks == 2
    assert weigh(HOT * 2, end=200, hot=store, step_s=0.25).blocks == 0
    long = weigh(HOT * 20, end=2000, hot=store, step_s=0.25)
    assert long.blocks == 18  # what the step computes meanwhile need not be loaded
    assert long.after_s == pytest.approx(0.05)


def test_a_store_that_was_too_slow_is_tried_with_what_may_be_lost():
    slow, fast = Store(5 * BLOCK), Store(100 * BLOCK)
    trial = partial(weigh, HOT * 40, trial_s=0.41)
    chosen = trial(hot=slow, hopes={"hot": fast})
    assert (chosen.blocks, chosen.decision) == (5, Decision.LOAD_PREFIX)
    assert chosen.spared_s == chosen.tried_s == pytest.approx(0.5)
    assert weigh(HOT * 40, hot=slow, hopes={"hot": fast}).blocks == 0
    assert trial(hot=slow, hopes={"hot": Store(9 * BLOCK)}).blocks == 0
    known = trial(hot=fast, hopes={"hot": Store(900 * BLOCK)})
    assert (known.blocks, known.tried_s) == (40, 0.0)
    hopes = {"hot": fast, "cold": fast}
    tail = weigh(HOT * 20 + COLD * 20, hot=fast, cold=slow, hopes=hopes, trial_s=0.41)
    assert tail.blocks == 26  # one cold block comes while the hot ones do
    assert tail.tried_s == pytest.approx(0.5)


rates = st.floats(1e4, 1e11)


@given(
    tiers=st.lists(st.sampled_from(Tier), min_size=1, max_size=30),
    hot=rates, cold=rates, trip=st.floats(0, 1), base=st.floats(1e-6, 1e-2),
    pair=st.floats(0, 1e-6), more=st.integers(0, 500),
)  # fmt: skip
def test_no_choice_is_predicted_to_be_slower_than_computing(
    tiers, hot, cold, trip, base, pair, more
):
    prefill, end = Prefill(base, pair), 100 * len(tiers) + more
    stores = {"hot": Store(hot, trip), "cold": Store(cold, trip)}
    choice = weigh(tiers, prefill=prefill, end=end, **stores)
    taken = tiers[: choice.blocks]
    load_s = max(stores[t].seconds(taken.count(Tier(t)) * BLOCK) for t in stores)
    total_s = load_s + prefill.seconds(100 * choice.blocks, end)
    assert total_s <= prefill.seconds(0, end)


def test_the_fit_finds_both_terms_under_noise():
    rng, fit = random.Random(3), TwoTermFit()
    for _ in range(50):
        n = rng.randrange(100, 10_000)
        exact = 2e-5 * n + 1e-9 * pairs(0, n)
        fit.add(n, pairs(0, n), exact * rng.uniform(0.98, 1.02))
    a, b = fit.solve()
    assert a == pytest.approx(2e-5, rel=0.05)
    assert b == pytest.approx(1e-9, rel=0.15)


def test_samples_of_one_size_give_a_plain_rate():
    fit = TwoTermFit()
    assert fit.solve() is None
    for _ in range(5):
        fit.add(1000, 7.0, 2.0)
    assert fit.solve() == (pytest.approx(0.002), 0.0)


@given(st.lists(st.tuples(st.floats(1, 1e9), st.floats(0, 1e9), st.floats(1e-6, 1e3)), min_size=1))
def test_no_term_is_negative(samples):
    fit = TwoTermFit()
    for sample in samples:
        fit.add(*sample)
    a, b = fit.solve()
    assert a >= 0
    assert b >= 0


def run_steps(meter, count, tokens, took_s, *, first=1):
    for step in range(first, first + count):
        assert meter.begin(step, [(0, tokens)])
        meter.end(step, took_s)


def test_prefill_is_measured_after_warm_up():
    meter = PrefillMeter()
    run_steps(meter, 2, 1000, 30.0)
    assert meter.prefill() is None
    run_steps(meter, 3, 1000, 0.1, first=3)
    assert meter.prefill().seconds(0, 1000) == pytest.approx(0.1)


def test_steps_may_be_told_of_later_and_by_several_ranks():
    meter = PrefillMeter()
    for step in range(1, 8):
        meter.begin(step, [(0, 1000 * step)])
    for step in range(1, 8):
        meter.end(step, float(step))
        meter.end(step, 99.0)
    assert meter.prefill().seconds(0, 1000) == pytest.approx(1.0)


def test_steps_of_few_prompt_tokens_show_what_a_step_costs_at_least():
    meter = PrefillMeter()
    run_steps(meter, 4, 1000, 0.1)
    assert meter.step_s == 0.0
    run_steps(meter, 3, 8, 0.04, first=5)
    assert meter.step_s == pytest.approx(0.04)
    assert meter.prefill().seconds(0, 1000) == pytest.approx(0.1)


def test_decode_steps_and_steps_without_an_answer_are_not_measured():
    meter = PrefillMeter()
    assert not meter.begin(1, [])
    for step in range(2, 200):
        assert meter.begin(step, [(0, 1000)])
    meter.end(2, 5.0)  # forgotten: its time came too late
    run_steps(meter, 4, 1000, 0.1, first=200)
    assert meter.prefill().seconds(0, 1000) == pytest.approx(0.1)
    run_steps(meter, 1, 1000, 60.0, first=204)  # stopped by hand
    assert meter.prefill().seconds(0, 1000) < 0.4


def load(meter, size, took_s):
    meter.end(size, meter.begin(size), took_s, now=0.0)


def test_a_store_is_measured_by_its_loads():
    meter = StoreMeter()
    assert meter.store(0.0) is None
    for size in (BLOCK, 10 * BLOCK, 100 * BLOCK) * 4:
        load(meter, size, 0.01 + size / (50 * BLOCK))
    store = meter.store(0.0)
    assert store.bytes_per_s == pytest.approx(50 * BLOCK, rel=0.01)
    assert store.round_trip_s == pytest.approx(0.01, rel=0.05)


def warm_meter():
    """Past the first load, which says nothing."""
    meter = StoreMeter()
    load(meter, BLOCK, 100.0)
    assert meter.store(0.0) is None
    return meter


def test_loads_under_way_are_the_queue():
    meter = warm_meter()
    load(meter, 10 * BLOCK, 1.0)
    ahead = [meter.begin(10 * BLOCK) for _ in range(3)]
    assert ahead == [0, 10 * BLOCK, 20 * BLOCK]
    assert meter.store(0.0).queue_bytes == 30 * BLOCK
    meter.end(10 * BLOCK, ahead[2], 3.0, now=0.0)  # three loads in three seconds
    assert meter.store(0.0).bytes_per_s == pytest.approx(10 * BLOCK)


def test_a_store_that_became_slow_is_believed_to_be_after_some_loads():
    meter = warm_meter()
    load(meter, 10 * BLOCK, 1.0)
    load(meter, 10 * BLOCK, 0.0)
    assert meter.store(0.0).seconds(10 * BLOCK) == pytest.approx(1.0)
    load(meter, 10 * BLOCK, 60.0)
    assert meter.store(0.0).seconds(10 * BLOCK) < 4.0
    for _ in range(8):
        load(meter, 10 * BLOCK, 60.0)
    assert meter.store(0.0).seconds(10 * BLOCK) > 8.0


def test_a_store_that_was_slow_is_tried_again_after_a_while():
    meter = warm_meter()
    load(meter, 10 * BLOCK, 8.0)
    assert meter.store(3 * DOUBLING_S).seconds(10 * BLOCK) == pytest.approx(1.0)


def test_loads_of_one_size_leave_hope_for_larger_ones():
    meter = warm_meter()
    load(meter, 10 * BLOCK, 1.0)
    assert meter.store(0.0).seconds(10 * BLOCK) == pytest.approx(1.0)
    assert meter.store(0.0).seconds(40 * BLOCK) == pytest.approx(2.5)
    load(meter, 40 * BLOCK, 4.0)  # there was none
    assert meter.store(0.0).seconds(80 * BLOCK) == pytest.approx(8.0, rel=0.01)


def test_loads_that_run_out_of_time_leave_no_hope_for_larger_ones():
    """All of them took as long as they might, whatever came: that is no round trip."""
    meter = warm_meter()
    for size, came in ((10 * BLOCK, 0.5), (40 * BLOCK, 0.1), (20 * BLOCK, 0.3)):
        meter.end(size, meter.begin(size), 1.0, 0.0, came)
    assert meter.store(0.0).bytes_per_s == pytest.approx(5 * BLOCK, rel=0.1)
    assert meter.store(0.0).round_trip_s == 0.0
