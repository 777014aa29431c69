"""Durations: what is read, what is refused, and the pattern that the OpenAPI document shows."""

import re

import pytest

from cacheapi.base.durations import PATTERN, parse_duration

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("30m", 1800),
        ("2h", 7200),
        ("7d", 7 * 86400),
        ("2w", 14 * 86400),
        ("1h30m", 5400),
        ("1w1d1h1m1s", 8 * 86400 + 3661),
        ("PT2H", 7200),
        ("P7D", 7 * 86400),
        ("P1W", 7 * 86400),
        ("PT1M", 60),
        ("P1DT12H", 36 * 3600),
        ("0s", 0),
    ],
)
def test_both_forms_are_read(text, seconds):
    assert parse_duration(text) == seconds
    assert re.search(PATTERN, text)


@pytest.mark.parametrize(
    "text",
    [
        *("", "2", "h", "30m1h", "1h1h", "2 h", "2H", "-1h", "1.5h", "1mo", "1y", "P", "PT", "P1M"),
        *("P1Y", "P1DT", "PT1D", "P1H", "pt2h", "2h\n", "٢h", "1" * 10 + "s"),
    ],
)
def test_other_text_is_refused_with_examples(text):
    with pytest.raises(ValueError, match="such as 90s, 2h"):
        parse_duration(text)
    assert not re.fullmatch(PATTERN[1:-1], text)
