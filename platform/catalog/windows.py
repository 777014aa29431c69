"""The time ranges that REST and pages can show, and which roll-ups they read.

`catalog.usage.KEPT` says how long roll-ups are kept: a range and the one before it fit into that.
REST lists stored buckets, at most 1,440. A page draws at most 182 steps a line, so a chart of 4
lines stays under 1,000 points. Pure: no database here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from base.problems import Problem


@dataclass(frozen=True)
class Range:
    """`resolution_s`: of the buckets that are read; `step_s`, a multiple: of what a page draws."""

    name: str
    seconds: int
    resolution_s: int
    step_s: int
    words: str

    def since_ts(self, now_s: float) -> int:
        """The first second of the range that ends now."""
        return int(now_s) - self.seconds


RANGES = {
    range_.name: range_
    for range_ in (
        Range("15m", 900, 10, 10, "15 minutes"),
        Range("1h", 3_600, 10, 30, "hour"),
        Range("6h", 21_600, 60, 120, "6 hours"),
        Range("24h", 86_400, 60, 600, "24 hours"),
        Range("7d", 604_800, 3_600, 3_600, "7 days"),
        Range("30d", 2_592_000, 3_600, 14_400, "30 days"),
    )
}
DEFAULT_RANGE = "15m"


def range_named(name: str) -> Range:
    """Raises Problem (malformed) that lists the names."""
    if name not in RANGES:
        raise Problem("malformed", f"range: need one of {', '.join(RANGES)}.", field="range")
    return RANGES[name]


@dataclass(frozen=True)
class Window:
    """Seconds since 1970, aligned to steps: `start_ts` inclusive, `end_ts` exclusive (the end of
    the step that is running now)."""

    range: Range
    now_s: float
    start_ts: int
    end_ts: int

    def steps(self) -> Sequence[int]:
        return range(self.start_ts, self.end_ts, self.range.step_s)

    def step_of(self, bucket_ts: int) -> int:
        return bucket_ts - bucket_ts % self.range.step_s

    def elapsed_s(self, step_ts: int) -> float:
        """How much of a step has passed: what its sums are divided by to become rates."""
        return min(self.now_s - step_ts, float(self.range.step_s))

    def previous(self) -> "Window":
        """The window of the same length just before."""
        return Window(
            self.range, self.start_ts, self.start_ts - (self.end_ts - self.start_ts), self.start_ts
        )


def window_of(range_: Range, now_s: float) -> Window:
    step_s = range_.step_s
    end_ts = int(now_s) - int(now_s) % step_s + step_s
    return Window(range_, now_s, end_ts - range_.seconds - step_s, end_ts)


MOST_STEPS = 182  # of a page's line
SHORTEST_S = 100  # ten of the finest steps


def window_between(
    start_s: float, end_s: float, now_s: float, *, kept_s: Mapping[int, float]
) -> Window:
    """The window that people named by its ends, moved out to whole steps; it ends now at the latest
    and spans SHORTEST_S at least.

    `kept_s`: how long the roll-ups of a resolution are kept. Raises Problem (malformed).
    """
    if not start_s < end_s or start_s >= now_s:
        raise Problem("malformed", "from: needs to lie before to and before now.", field="from")
    end_s = min(end_s, now_s)
    start_s = min(start_s, end_s - SHORTEST_S)
    for step_s in _STEPS_S:
        period = _period(start_s, end_s, step_s, now_s, kept_s)
        if period is not None and period.end_ts - period.start_ts <= MOST_STEPS * step_s:
            seconds = period.end_ts - period.start_ts
            range_ = Range("", seconds, period.resolution_s, step_s, "chosen window")
            return Window(range_, now_s, period.start_ts, period.end_ts)
    raise Problem("malformed", "from: so long a window is not kept.", field="from")


MOST_POINTS = 1440
# Lengths of steps that are chosen for a period whose caller names none.
_STEPS_S = (10, 30, 60, 300, 900, 3_600, 14_400, 86_400, 604_800, 2_592_000)


@dataclass(frozen=True)
class Period:
    """Whole steps, in seconds since 1970: `start_ts` inclusive, `end_ts` exclusive.

    `resolution_s`: of the roll-ups that are read; `step_s` is a multiple of it.
    """

    start_ts: int
    end_ts: int
    step_s: int
    resolution_s: int


def period_of(
    start_s: float,
    end_s: float,
    step_s: int | None,
    *,
    now_s: float,
    kept_s: Mapping[int, float],
) -> Period:
    """The period with its ends moved out to multiples of the step, at most MOST_POINTS steps.

    `kept_s`: how long the roll-ups of a resolution are kept. Raises Problem (malformed).
    """
    if start_s >= end_s:
        raise Problem("malformed", "from: needs to lie before to.", field="from")
    fitting = [
        period
        for length_s in (_STEPS_S if step_s is None else (step_s,))
        if (period := _period(start_s, end_s, length_s, now_s, kept_s)) is not None
    ]
    if not fitting:
        raise Problem(
            "malformed",
            f"step: need a multiple of 10 s that makes at most {MOST_POINTS} points; before the "
            "last 6 hours a multiple of 1m, before the last 14 days of 1h.",
            field="step",
        )
    return fitting[0]


def _period(
    start_s: float, end_s: float, step_s: int, now_s: float, kept_s: Mapping[int, float]
) -> Period | None:
    start_ts = int(start_s // step_s) * step_s
    end_ts = -int(-end_s // step_s) * step_s
    if end_ts - start_ts > MOST_POINTS * step_s:
        return None
    for resolution_s, kept in sorted(kept_s.items(), reverse=True):
        if step_s % resolution_s == 0 and start_s >= now_s - kept:
            return Period(start_ts, end_ts, step_s, resolution_s)
    return None
