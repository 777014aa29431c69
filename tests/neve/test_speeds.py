"""Medians of the speeds that nodes measured."""

from neve.index.tier import Tier
from neve.planner.breakeven import Prefill, Store
from neve.planner.speeds import Speeds, medians


def test_a_speed_is_the_median_of_the_nodes_that_measured_it():
    found = medians(
        [
            {"prefill_s_per_token": 1.0, "hot_bytes_per_s": 1e9, "hot_round_trip_s": 0.001},
            {"prefill_s_per_token": 3.0, "prefill_s_per_pair": 0.5, "hot_bytes_per_s": 3e9},
            {"prefill_s_per_token": 2.0, "hot_bytes_per_s": 2e9},
            {},
        ]
    )
    assert found == Speeds(Prefill(2.0, 0.5), {Tier.HOT: Store(2e9, 0.001)}, nodes=3)


def test_what_nobody_measured_is_absent():
    assert medians([]) == Speeds(None, {}, 0)
    assert medians([{"cold_bytes_per_s": 0.0, "prefill_s_per_token": 0.0}]).stores == {}
    assert medians([{"prefill_s_per_token": 0.0}]).prefill is None
