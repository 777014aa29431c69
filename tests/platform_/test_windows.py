"""Windows are aligned and bounded in points."""

import pytest

from catalog.usage import KEPT
from catalog.windows import RANGES, window_of

NOW_S = 1_800_000_007.0


@pytest.mark.parametrize("range_", RANGES.values(), ids=RANGES)
def test_a_chart_stays_under_a_thousand_points(range_):
    steps = window_of(range_, NOW_S).steps()
    assert len(steps) * 4 <= 1000
    assert len(steps) * range_.step_s >= range_.seconds


@pytest.mark.parametrize("range_", RANGES.values(), ids=RANGES)
def test_steps_are_whole_buckets(range_):
    window = window_of(range_, NOW_S)
    assert range_.step_s % range_.resolution_s == 0
    assert all(ts % range_.step_s == 0 for ts in window.steps())
    assert window.steps()[-1] <= NOW_S < window.end_ts


@pytest.mark.parametrize("range_", RANGES.values(), ids=RANGES)
def test_a_range_and_the_one_before_it_are_kept(range_):
    kept = KEPT.get(range_.resolution_s)
    first = window_of(range_, NOW_S).previous().start_ts
    assert kept is None or NOW_S - first <= kept.total_seconds()


def test_the_window_before_touches_this_one():
    window = window_of(RANGES["1h"], NOW_S)
    before = window.previous()
    assert before.end_ts == window.start_ts
    assert len(before.steps()) == len(window.steps())


def test_the_running_step_has_only_passed_in_part():
    window = window_of(RANGES["15m"], NOW_S)
    assert window.elapsed_s(window.steps()[-1]) == NOW_S % 10
    assert window.elapsed_s(window.steps()[0]) == 10
