"""Sizes and times as people type them."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neve.typed import (
    MOST_BYTES,
    MOST_S,
    parse_moment,
    parse_seconds,
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


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1h30m", 5_400), ("2w", 1_209_600), ("PT2H", 7_200), ("P1DT12H", 129_600), ("0s", 0)],
)
def test_short_forms_and_iso(text, seconds):
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["P", "PT", "P1M", "P1Y", "30m1h", "1h1h", "٢h", "1.5h"])
def test_no_short_forms(text):
    with pytest.raises(ValueError, match="need"):
        parse_seconds(text)


BERLIN = ZoneInfo("Europe/Berlin")
THURSDAY = datetime(2026, 12, 3, 15, 0, tzinfo=BERLIN)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("until Friday 18:00", datetime(2026, 12, 4, 18, tzinfo=BERLIN)),
        ("fri 18:00", datetime(2026, 12, 4, 18, tzinfo=BERLIN)),
        ("Friday", datetime(2026, 12, 5, 0, tzinfo=BERLIN)),
        ("thursday 14:00", datetime(2026, 12, 10, 14, tzinfo=BERLIN)),
        ("Thu", datetime(2026, 12, 4, 0, tzinfo=BERLIN)),
        ("tomorrow at 9:00", datetime(2026, 12, 4, 9, tzinfo=BERLIN)),
        ("tomorrow", datetime(2026, 12, 5, 0, tzinfo=BERLIN)),
        ("today", datetime(2026, 12, 4, 0, tzinfo=BERLIN)),
        ("18:30", datetime(2026, 12, 3, 18, 30, tzinfo=BERLIN)),
        ("9:00", datetime(2026, 12, 4, 9, tzinfo=BERLIN)),
        ("for 6 h", datetime(2026, 12, 3, 21, tzinfo=BERLIN)),
        ("2 weeks", datetime(2026, 12, 17, 15, tzinfo=BERLIN)),
        ("2026-12-04 18:00", datetime(2026, 12, 4, 18, tzinfo=BERLIN)),
        ("2026-12-04T18:00Z", datetime(2026, 12, 4, 18, tzinfo=UTC)),
        ("2026-12-04", datetime(2026, 12, 5, 0, tzinfo=BERLIN)),
    ],
)
def test_moments(text, moment):
    assert parse_moment(text, now=THURSDAY) == moment


@pytest.mark.parametrize(
    "text",
    [
        "",
        "soon",
        "25:00",
        "fri 9:99",
        "today 9:00",
        "2020-01-01",
        "0 s",
        "9" * 10 + " w",
        "mon18:00",
    ],
)
def test_no_moments(text):
    with pytest.raises(ValueError, match="need a time"):
        parse_moment(text, now=THURSDAY)


def test_hours_are_real_ones_where_the_clock_is_set():
    before = datetime(2026, 3, 28, 20, tzinfo=BERLIN)  # 10 hours later it is 7, not 6
    assert parse_moment("10 h", now=before).hour == 7
    assert parse_moment("Sunday 18:00", now=before).hour == 18
