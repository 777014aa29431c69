"""Lengths of time as people write them: `90s`, `2h`, `1h30m`, `7d`, `2w`, or ISO 8601 (`PT2H`).

Months and years are refused: their lengths differ.
"""

import re

from neve.typed import parse_seconds


def _form(units: str, *, after: str = "") -> str:
    """Counts with these units, longest first, each at most once, at least one, then `after`."""
    counts = [f"[0-9]{{1,9}}{unit}" for unit in units]
    rests = ["".join(f"({count})?" for count in counts[n + 1 :]) for n in range(len(counts))]
    return "|".join(count + rest + after for count, rest in zip(counts, rests, strict=True))


_TIME = f"T({_form('HMS')})"
PATTERN = f"^({_form('wdhms')}|P({_form('WD', after=f'({_TIME})?')}|{_TIME}))$"
# A format of its own: OpenAPI's `duration` is ISO 8601 alone.
SCHEMA = {"type": "string", "format": "neve-duration", "pattern": PATTERN, "example": "2h"}
_WHOLE = re.compile(PATTERN, re.ASCII)


def parse_duration(text: str) -> int:
    """Whole seconds. Raises ValueError that says which forms are read."""
    if _WHOLE.fullmatch(text) is not None:
        return parse_seconds(text)
    shown = repr(text) if len(text) <= 40 else f"{text[:40]!r}…"
    raise ValueError(f"need a duration such as 90s, 2h, 1h30m, 7d or PT2H, got {shown}")
