"""Sizes and times as people type them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dashboard.typed import (
    MOST_BYTES,
    MOST_S,
    parse_size,
    parse_size_or_none,
    parse_time,
    size_typed,
    time_typed,
)

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("2 TiB", 2 << 40),
        ("512GiB", 512 << 30),
        ("1.5 t", 3 << 39),
        (" 4 gib ", 4 << 30),
        ("3 GB", 3_000_000_000),
        ("100 B", 100),
        ("0", 0),
        ("0 GiB", 0),
    ],
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("-1 GiB", "0 or more"),
        ("5", "a unit"),
        ("5 apples", "a size such as"),
        ("", "a size such as"),
        ("1e9 GiB", "a size such as"),
        ("99999999 PiB", "less than"),
        ("٣ GiB", "a size such as"),
        ("x" * 1000, "…"),
    ],
)
def test_no_sizes(text, words):
    with pytest.raises(ValueError, match=words):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("14 d", 1_209_600),
        ("30 min", 1_800),
        ("6h", 21_600),
        ("1 h 30 min", 5_400),
        ("90 s", 90),
        ("2 weeks", 1_209_600),
        ("never", None),
        ("", None),
    ],
)
def test_times(text, seconds):
    assert parse_time(text) == seconds


@pytest.mark.parametrize("text", ["14", "-1 d", "0 s", "soon", "1 d!", "999999999 w", "1 month"])
def test_no_times(text):
    with pytest.raises(ValueError, match="need"):
        parse_time(text)


@given(st.integers(0, MOST_BYTES) | st.none())
def test_a_written_size_is_read_back(size):
    assert parse_size_or_none(size_typed(size)) == size


@given(st.integers(1, MOST_S) | st.none())
def test_a_written_time_is_read_back(seconds):
    assert parse_time(time_typed(seconds)) == seconds


def test_round_values_read_well():
    assert [size_typed(size) for size in (2 << 40, 3 << 29, 1000, 0, None)] == [
        *("2 TiB", "1.5 GiB", "1000 B", "0 B", "none"),
    ]
    assert [time_typed(s) for s in (1_209_600, 5_400, 90, None)] == [
        *("14 d", "90 min", "90 s", "never"),
    ]
