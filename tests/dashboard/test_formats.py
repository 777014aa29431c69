"""Numbers become words: unknown is "—", zero is "0", units are binary for bytes."""

from datetime import UTC, datetime, timedelta

import pytest

from dashboard import formats

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def words(quantity: formats.Quantity) -> str:
    return str(quantity).replace("\N{NO-BREAK SPACE}", " ")


@pytest.mark.parametrize(
    "quantity",
    [
        formats.bytes_quantity,
        formats.rate_quantity,
        formats.count_quantity,
        formats.percent_quantity,
        formats.milliseconds_quantity,
        formats.duration_quantity,
    ],
)
def test_unknown_is_a_dash_and_zero_is_zero(quantity):
    assert words(quantity(None)) == "—"
    assert words(quantity(0)).split(" ")[0] == "0"


@pytest.mark.parametrize(
    ("size_bytes", "expected"),
    [
        (1, "1 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (1024**2 - 1, "1 MiB"),
        (812 * 1024**3, "812 GiB"),
        (41 * 1024**4, "41 TiB"),
        (5 * 1024**6, "5120 PiB"),
    ],
)
def test_bytes_are_binary(size_bytes, expected):
    assert words(formats.bytes_quantity(size_bytes)) == expected


def test_a_rate_names_the_second():
    assert words(formats.rate_quantity(3.25 * 1024**3)) == "3.25 GiB/s"


@pytest.mark.parametrize(
    ("count", "expected"),
    [(812, "812"), (9_999, "9999"), (10_000, "10k"), (12_640_000, "12.6M"), (999_999, "1M")],
)
def test_counts_are_shortened_from_ten_thousand_up(count, expected):
    assert words(formats.count_quantity(count)) == expected


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [(0.714, "71.4 %"), (1.0, "100 %"), (0.99999, ">99.9 %"), (0.0001, "<0.1 %"), (0.5, "50.0 %")],
)
def test_only_a_whole_is_a_hundred_percent(ratio, expected):
    assert words(formats.percent_quantity(ratio)) == expected


@pytest.mark.parametrize(
    ("milliseconds", "expected"), [(0.4, "0.4 ms"), (84, "84 ms"), (12_500, "12.5 s")]
)
def test_milliseconds(milliseconds, expected):
    assert words(formats.milliseconds_quantity(milliseconds)) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (4, "4 s"),
        (60, "1 min"),
        (185, "3 min"),
        (5_400, "90 min"),
        (7_300, "2 h"),
        (432_000, "5 d"),
    ],
)
def test_durations_are_rounded_down(seconds, expected):
    assert words(formats.duration_quantity(seconds)) == expected


def test_ages_and_ends():
    assert formats.ago_text(None, now=NOW) == "—"
    assert formats.ago_text(NOW, now=NOW) == "now"
    assert formats.ago_text(NOW - timedelta(minutes=3), now=NOW).startswith("3")
    assert formats.until_text(NOW + timedelta(hours=2), now=NOW).startswith("for 2")
    assert formats.until_text(NOW - timedelta(seconds=1), now=NOW) == "over"


@pytest.mark.parametrize(
    ("change", "sign"), [(0.021, "▲"), (-0.004, "▼"), (0.0001, "no change"), (None, "—")]
)
def test_a_change_has_a_direction(change, sign):
    assert formats.points_text(change).startswith(sign)
