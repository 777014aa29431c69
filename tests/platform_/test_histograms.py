"""Percentiles come from merged histograms."""

import pytest

from catalog.histograms import Percentile, merge, percentile


def test_nothing_has_no_percentile():
    assert percentile({}, 0.99) is None
    assert percentile({"<=1": 0}, 0.99) is None


def test_loads_are_spread_over_their_bucket():
    assert percentile({"<=10": 100}, 0.5) == Percentile(7.5)  # over 5 ms: the next smaller bound
    assert percentile({"<=1": 100}, 0.5) == Percentile(0.5)
    assert percentile({"<=10": 50, "<=20": 50}, 0.75) == Percentile(15.0)


def test_empty_buckets_in_between_do_not_count():
    assert percentile({"<=1": 99, "<=2": 0, "<=5": 0, "<=10": 1}, 0.99) == Percentile(1.0)


def test_bounds_are_numbers_not_words():
    assert percentile({"<=10": 1, "<=9": 99}, 0.5).milliseconds < 9


def test_above_the_last_bound_it_says_so():
    assert percentile({"<=5000": 1, "+Inf": 99}, 0.99) == Percentile(5000.0, is_beyond=True)


def test_merged_is_not_averaged():
    fast, slow = {"<=1": 990}, {"<=1000": 10}
    merged = merge([fast, slow])
    assert merged == {"<=1": 990, "<=1000": 10}
    assert percentile(merged, 0.995).milliseconds == pytest.approx(750)
