"""What-if estimates, from changes in words to a recommendation."""

import json
import random
from dataclasses import replace
from decimal import Decimal
from functools import cache

import pytest

from neve.errors import Misuse
from neve.planner.changes import Change, candidates, difference
from neve.planner.prices import Prices
from neve.planner.simulate import tiers
from neve.planner.simulate.requests import BlockRequest
from neve.planner.simulate.tiers import Promote, Setting, TierSetting
from neve.planner.whatif import (
    CURVE,
    MONTH_S,
    Economics,
    Estimate,
    Measured,
    Traffic,
    as_dict,
    compare,
    mixed,
    recommend,
    setting_of,
)

GIB = 1 << 30
TODAY = Setting(
    hot=TierSetting(64 * GIB, "2q"), cold=TierSetting(512 * GIB, "lru"), block_bytes=1 << 20
)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"hot": "x2"}, "hot quota 64 GiB → 128 GiB"),
        ({"hot": "+64GiB"}, "hot quota 64 GiB → 128 GiB"),
        ({"hot": "-32GiB"}, "hot quota 64 GiB → 32 GiB"),
        ({"cold": "1TiB"}, "cold quota 512 GiB → 1 TiB"),
        ({"cold": "unlimited"}, "cold quota 512 GiB → unlimited"),
        ({"cold": "none"}, "cold quota 512 GiB → none"),
        ({"local": "100GB"}, "local tier none → 93.13 GiB"),
        ({"cold_lifetime": "30d"}, "lifetime unlimited → 30 d"),
        ({"hot_idle": "1h30m"}, "hot idle time unlimited → 90 min"),
        ({"eviction": "lru"}, "eviction 2q → lru"),
        ({"promote": "never"}, "promotion second → never"),
        ({"promote_window": "10m"}, "promotion window 1 h → 10 min"),
        ({"codec": "2"}, "codec none → 2 ×"),
        ({"hot": "x2", "eviction": "lru"}, "hot quota 64 GiB → 128 GiB, eviction 2q → lru"),
    ],
)
def test_a_change_says_what_differs(given, words):
    assert difference(TODAY, Change.of(given).apply(TODAY)) == words


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({}, "change"),
        ({"hott": "x2"}, "hott"),
        ({"hot": 2}, "hot"),
        ({"hot": "twice"}, "hot"),
        ({"hot": "none"}, "hot"),
        ({"hot": "x0"}, "hot"),
        ({"hot": "-64GiB"}, "hot"),
        ({"hot": "9999999PiB"}, "hot"),
        ({"hot": "x1"}, "hot"),
        ({"cold_lifetime": "soon"}, "cold_lifetime"),
        ({"cold_lifetime": "0s"}, "cold_lifetime"),
        ({"cold_lifetime": "9999d"}, "cold_lifetime"),
        ({"eviction": "belady"}, "eviction"),
        ({"promote": "third"}, "promote"),
        ({"codec": "nan"}, "codec"),
        ({"codec": "0"}, "codec"),
    ],
)
def test_a_change_without_sense_names_its_member(given, field):
    with pytest.raises(Misuse) as refused:
        Change.of(given).apply(TODAY)
    assert refused.value.field == field


def test_nothing_is_relative_to_no_limit():
    unlimited = replace(TODAY, cold=TierSetting(None, "lru"))
    with pytest.raises(Misuse, match="is unlimited today"):
        Change(cold="x2").apply(unlimited)
    assert Change(promote_window="unlimited").apply(TODAY).promote is Promote.EVERY_READ


def chats(seed=1, *, conversations=220, turns=6, blocks=6, hours=3.0):
    """Requests of conversations that grow by `blocks` a turn and share one of 20 beginnings."""
    rng = random.Random(seed)
    made, next_id = [], 1 << 20
    for _ in range(conversations):
        start_s = rng.uniform(0, hours * 3600)
        shared = rng.randrange(20)
        chain = [shared * 1000 + n for n in range(12)]
        for turn in range(rng.randint(1, turns)):
            chain = [*chain, *range(next_id, next_id + blocks)]
            next_id += blocks
            made.append(BlockRequest(tuple(map(mixed, chain)), start_s + 240 * turn))
    return sorted(made, key=lambda each: each.at_s)


REQUESTS = chats()
FROM_S = 2700.0
BLOCK = 1 << 20
SMALL = Setting(
    hot=TierSetting(700 * BLOCK, "2q"), cold=TierSetting(2500 * BLOCK, "lru"), block_bytes=BLOCK
)
WORTH = Economics(
    Prices(),
    block_tokens=256,
    prefill_gpu_s_per_token=1e-4,
    load_gpu_s_per_token={"hot": 1e-6, "cold": 1e-5},
)


def sampled(requests, log, *, seed=0):
    """Traffic of 1 in 2^log blocks."""
    found = []
    for each in requests:
        ids = tuple(id_ for id_ in each.ids if mixed(id_ ^ (seed << 40)) >> (64 - log) == 0)
        if ids:
            found.append(replace(each, ids=ids))
    asked = sum(len(each.ids) for each in requests if each.at_s >= FROM_S)
    return Traffic(found, 1 / (1 << log), FROM_S, asked)


@cache
def exact_of(setting):
    return tiers.run(setting, REQUESTS, count_from_s=FROM_S)


def measured(setting=SMALL, *, shift=0.0):
    """As nodes would have measured it."""
    found = exact_of(setting)
    hits = {name: tier.hit_blocks for name, tier in found.tiers.items()}
    hits["hot"] += round(shift * found.asked_blocks)
    return Measured(found.asked_blocks, hits, {"timeout": 7})


WHOLE = Traffic(REQUESTS, 1.0, FROM_S)


def test_blocks_that_are_fetched_together_cost_fewer_requests():
    dear, cheap = (
        compare(SMALL, [Change(hot="x2")], WHOLE, replace(WORTH, gets_per_hit=gets))
        for gets in (1.0, 0.25)
    )
    one, quarter = (each.today.figures["money.requests"].value for each in (dear, cheap))
    assert 0.2 * one < quarter < 0.9 * one


def test_all_blocks_give_the_simulators_own_figures_without_an_error():
    found = compare(SMALL, [Change(hot="x2")], WHOLE, WORTH, measured=measured())
    exact = exact_of(SMALL)
    assert found.today.figures["hit_rate"] == Estimate(exact.hit_rate, 0.0)
    assert found.today.value("hit_rate.hot") == exact.tiers["hot"].hit_blocks / exact.asked_blocks
    assert found.calibration.is_good
    assert found.reads == exact.asked_blocks
    doubled = found.changes[0]
    assert doubled.words == "hot quota 700 MiB → 1.367 GiB"
    assert doubled.against["hit_rate.hot"].value > 0.01
    assert all(estimate.value == 0 for estimate in found.today.against.values())


def test_money_is_that_of_the_formula_of_savings():
    found = compare(SMALL, [Change(cold="none")], WHOLE, WORTH)
    exact = exact_of(SMALL)
    months = MONTH_S / WHOLE.counted_s
    hot, cold = exact.tiers["hot"], exact.tiers["cold"]
    spared_s = 256 * 1e-4 * (hot.hit_blocks + cold.hit_blocks) * months
    load_s = 256 * (1e-6 * hot.hit_blocks + 1e-5 * cold.hit_blocks) * months
    today = found.today
    assert today.value("gpu_s") == pytest.approx(spared_s)
    assert today.value("money.prefill") == pytest.approx(spared_s / 3600 * 2.35)
    assert today.value("money.loads") == pytest.approx(load_s / 3600 * 2.35)
    assert today.value("money.hot") == pytest.approx(700 / 1024 * 0.0063 * 720)
    assert today.value("money.cold") == pytest.approx(cold.mean_bytes / GIB * 0.023, abs=1e-6)
    parts = ("loads", "slower", "hot", "cold", "requests", "egress")
    net = today.value("money.prefill") - sum(today.value(f"money.{part}") for part in parts)
    assert today.value("money.net") == pytest.approx(net)
    without = found.changes[0]
    assert "hit_rate.cold" not in without.figures
    assert without.against["hit_rate.cold"].value == -today.value("hit_rate.cold")
    assert without.value("money.cold") == 0


@pytest.mark.parametrize("load_s", [1e-4, 2e-4, None])
def test_hits_that_load_no_faster_than_prefill_count_nothing(load_s):
    loads = {"hot": 1e-6} | ({"cold": load_s} if load_s else {})
    slow = compare(SMALL, [], WHOLE, replace(WORTH, load_gpu_s_per_token=loads))
    hot_only = slow.today.value("hit_rate.hot") * sum(len(r.ids) for r in WHOLE.counted)
    assert slow.today.value("hit_rate.cold") > 0.01
    assert slow.today.value("gpu_s") == pytest.approx(
        hot_only * 256 * 1e-4 * MONTH_S / WHOLE.counted_s
    )


@pytest.mark.parametrize("log", [2, 4])
def test_the_exact_figures_lie_in_the_errors_of_samples(log):
    """A 95 % interval, of several draws of the sample and several figures of each."""
    change = Change(hot="x2")
    exact = compare(SMALL, [change], WHOLE, WORTH)
    inside, widths = [], []
    for seed in range(6):
        found = compare(SMALL, [change], sampled(REQUESTS, log, seed=seed), WORTH)
        for name in ("hit_rate", "gpu_s"):
            truth, guess = exact.changes[0].figures[name], found.changes[0].figures[name]
            inside.append(abs(truth.value - guess.value) <= guess.error)
        truth, guess = exact.changes[0].against["money.net"], found.changes[0].against["money.net"]
        inside.append(abs(truth.value - guess.value) <= guess.error)
        widths.append(found.today.figures["hit_rate"].error)
    assert sum(inside) >= 0.8 * len(inside)
    assert 0.001 < sum(widths) / len(widths) < 0.06


def test_what_cannot_be_seen_is_said():
    longer = Change(cold_lifetime="30d")
    found = compare(replace(SMALL, ttl_s=600), [longer], WHOLE, WORTH)
    assert "a lifetime beyond that has effects that they do not show" in found.changes[0].notes[0]
    codec = compare(SMALL, [Change(codec="2"), Change(local="1GiB")], WHOLE, WORTH)
    assert "not measured" in codec.changes[0].notes[0]
    assert not codec.changes[1].is_priced
    assert "no price" in codec.changes[1].notes[0]
    assert codec.changes[0].against["hit_rate.hot"].value > 0


@pytest.mark.parametrize(
    ("shift", "is_good"), [(0.0, True), (0.005, True), (-0.2, False), (0.3, False)]
)
def test_a_simulation_that_differs_from_the_measurement_says_so(shift, is_good):
    found = compare(SMALL, [Change(hot="x2")], WHOLE, WORTH, measured=measured(shift=shift))
    assert found.calibration.is_good is is_good
    assert ("points apart" in found.calibration.words) is not is_good
    assert ("timeout" in found.calibration.words) is (shift < -0.1)
    assert (recommend(found).reason == "not_calibrated") is not is_good


def recommended(setting, changes, worth=WORTH, traffic=WHOLE):
    seen = measured(setting)
    return recommend(compare(setting, changes, traffic, worth, measured=seen))


def test_a_change_that_pays_is_recommended_and_the_cheapest_of_equal_ones():
    dear = replace(WORTH, prefill_gpu_s_per_token=1e-2, load_gpu_s_per_token={"hot": 0, "cold": 9})
    found = recommended(SMALL, [Change(hot="x0.5"), Change(hot="x2"), Change(hot="x8")], dear)
    assert (found.change, found.reason) in ((1, "worth_it"), (2, "worth_it"))
    endless = replace(SMALL, hot=TierSetting(30_000 * BLOCK, "2q"))
    found = recommended(endless, [Change(hot="x2"), Change(hot="x0.5"), Change(hot="x4")])
    assert (found.change, found.reason) == (1, "worth_it")  # half of it is as good
    assert found.words.startswith("hot quota 29.3 GiB → 14.65 GiB: +")


def test_nothing_is_worth_doing_for_a_reason():
    costly = replace(WORTH, prices=replace(Prices(), hot_gib_hour=Decimal(100)))
    assert recommended(SMALL, [Change(hot="x2")], costly).reason == "costs_more"
    unknown = replace(WORTH, prefill_gpu_s_per_token=None)
    assert recommended(SMALL, [Change(hot="x2")], unknown).reason == "no_prefill_speed"
    few = sampled(REQUESTS, 6)
    assert recommended(SMALL, [Change(hot="x2")], traffic=few).reason == "too_few_samples"
    assert recommended(SMALL, [Change(local="1GiB")]).reason == "no_change"
    found = compare(SMALL, [Change(hot="x2")], WHOLE, WORTH, measured=measured())
    within = with_net(found, Estimate(5.0, 9.0))
    assert recommend(within).reason == "below_error"
    assert recommend(within).words.startswith("Nothing worth doing. The largest gain, 5.00 USD")
    assert recommend(with_net(found, Estimate(5.0, 4.0))).reason == "worth_it"
    assert recommend(with_net(found, Estimate(0.01, 0.0))).reason == "too_small"


def with_net(found, net):
    """The comparison with this net gain of its one change."""
    outcome = found.changes[0]
    against = {**outcome.against, "money.net": net}
    return replace(found, changes=(replace(outcome, against=against),))


def test_the_curve_grows_with_the_hot_quota():
    found = compare(SMALL, [], WHOLE, WORTH, curve=CURVE)
    rates = [each.value("hit_rate.hot") for each in found.curve]
    sizes = [each.setting.hot.capacity_bytes for each in found.curve]
    assert sizes == [int(700 * BLOCK * share) for share in CURVE]
    assert rates == sorted(rates)
    assert rates[CURVE.index(1.0)] == found.today.value("hit_rate.hot")


def test_traffic_is_thinned_to_a_bound():
    thin = sampled(REQUESTS, 1).thinned(3_000)
    reads = sum(len(each.ids) for each in thin.requests)
    assert 500 < reads <= 3_000
    assert thin.rate < 0.5
    whole = sum(len(each.ids) for each in REQUESTS)
    assert reads / thin.rate == pytest.approx(whole, rel=0.2)


def test_a_result_is_json_and_settings_return_from_it():
    worth = replace(WORTH, prices=Prices(gpu_hour=Decimal("2.350000000")))
    found = as_dict(compare(SMALL, [Change(hot="x2")], WHOLE, worth, curve=(1.0, 2.0)))
    assert found["economics"]["prices"]["gpu_hour"] == "2.35"
    again = json.loads(json.dumps(found))
    assert again == found
    assert setting_of(again["today"]["setting"]) == SMALL
    assert again["changes"][0]["change"] == {"hot": "x2"}


def test_progress_and_empty_traffic():
    seen = []
    compare(SMALL, [Change(hot="x2")], sampled(REQUESTS, 3), WORTH, progress=seen.append)
    assert seen == sorted(seen)
    assert (seen[0], seen[-1]) == (0.0, 1.0)
    with pytest.raises(Misuse, match="no sampled read"):
        compare(SMALL, [], Traffic([], 0.5, 0.0), WORTH)
    with pytest.raises(Misuse) as refused:
        compare(SMALL, [Change(hot="x2"), Change(hot="x1")], WHOLE, WORTH)
    assert refused.value.field == "changes[1].hot"


def test_only_changes_that_change_something_are_candidates():
    assert Change(eviction="2q") not in candidates(SMALL)
    assert Change(cold_lifetime="unlimited") not in candidates(SMALL)
    assert Change(hot="x2") in candidates(SMALL)
    hot_only = candidates(replace(SMALL, cold=None))
    assert not any(change.cold for change in hot_only)
