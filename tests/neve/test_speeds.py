"""Medians and means of the speeds that nodes measured."""

import pytest

from neve.index.tier import Tier
from neve.planner.breakeven import Prefill, Store
from neve.planner.speeds import Speeds, mean_bytes_per_s, medians


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


def test_one_far_node_is_not_outvoted():
    near, far = {"cold_bytes_per_s": 10e9}, {"cold_bytes_per_s": 12.5e6}
    found = mean_bytes_per_s([near, near, {}, far], Tier.COLD)
    assert found == pytest.approx(3 / (2 / 10e9 + 1 / 12.5e6))
    assert mean_bytes_per_s([{}, {"cold_bytes_per_s": 0.0}], Tier.COLD) is None
    assert mean_bytes_per_s([near, {"cold_bytes_per_s": 1e-300}], Tier.COLD) == 10e9
    assert mean_bytes_per_s([near], Tier.HOT) is None
