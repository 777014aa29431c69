"""What sessions counted lately, by marks: a few counters of a session at a moment.

Marks are MARK_S apart in the last hour and an hour apart before, up to a day and an hour. Sums of
an hour or a day begin at the newest mark that is old enough, so they cover up to MARK_S or an hour
more. Roll-ups (`catalog.usage`) sum tenants; marks tell spaces apart.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from catalog import usage
from neve.planner.choice import COUNTED

NAMES = (*COUNTED.values(), "hot_read_bytes", "cold_read_bytes", "local_read_bytes")
MARK_S = 300
HOUR_S, DAY_S = 3600, 86400

Mark = list[int]  # Unix time, then a count for each of NAMES
_LATER: Final = 1  # names that marks of an earlier release lack, at the end: nothing was counted


def is_due(last: datetime, now: datetime) -> bool:
    """Whether a heartbeat now is the session's first in its MARK_S. `last`: the one before."""
    return int(last.timestamp()) // MARK_S != int(now.timestamp()) // MARK_S


def with_mark(stored: object, at: datetime, totals: Mapping[str, int]) -> list[Mark]:
    """The marks with one more, thinned."""
    at_s = int(at.timestamp())
    found = [mark for mark in marks(stored) if at_s - DAY_S - 2 * HOUR_S < mark[0] < at_s]
    found.append([at_s, *(totals.get(name, 0) for name in NAMES)])
    kept: list[Mark] = []
    for mark in found:
        is_fine = mark[0] > at_s - HOUR_S - 2 * MARK_S
        if is_fine or not kept or kept[-1][0] // HOUR_S != mark[0] // HOUR_S:
            kept.append(mark)
    return kept


def marks(stored: object) -> list[Mark]:
    """Marks of a JSON column, oldest first; what is none is left out."""
    if not isinstance(stored, list):
        return []
    length = 1 + len(NAMES)
    return [
        mark + [0] * (length - len(mark))
        for mark in stored
        if isinstance(mark, list)
        and length - _LATER <= len(mark) <= length
        and all(type(number) is int for number in mark)
    ]


class Lately:
    """One session's counts since some seconds ago."""

    def __init__(
        self, *, opened_at: datetime, last_at: datetime, totals: object, stored: object
    ) -> None:
        self._last_s = int(last_at.timestamp())
        counted = usage.known(totals, NAMES)
        self._now = [counted.get(name, 0) for name in NAMES]
        self._marks: Sequence[Mark] = [
            [int(opened_at.timestamp()), *(0 for _ in NAMES)],
            *marks(stored),
        ]

    def since(self, start_s: float) -> tuple[dict[str, int], int]:
        """Counts by NAMES since the newest mark before `start_s`, and the seconds that they took,
        up to the last heartbeat. (zeros, 0) if there was none since."""
        if self._last_s < start_s:
            return dict.fromkeys(NAMES, 0), 0
        before = [mark for mark in self._marks if mark[0] <= start_s]
        at_s, *counts = max(before) if before else self._marks[0]
        pairs: Any = zip(NAMES, self._now, counts, strict=True)
        return {name: max(0, now - then) for name, now, then in pairs}, self._last_s - at_s
