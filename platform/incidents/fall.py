"""Whether a hit rate fell, by how much and since when. Pure.

Rates are compared over the shortest run of newest buckets, the open one included, whose fall chance
does not explain: a busy tenant shows one within seconds, one with few requests within minutes.
Chance is measured: blocks of a request hit or miss together, so a rate varies more than that of as
many independent blocks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import ceil, sqrt
from typing import Final

from catalog.usage import add

BUCKET_S: Final = 10
LEAST_BLOCKS: Final = 60  # asked for in a run, to speak of a rate
LEAST_FRESH_BLOCKS: Final = 20
LEAST_BASE_BLOCKS: Final = 200
MOST_S: Final = 300  # of a run
STEADY_S: Final = 30  # least run of an incident that is open: its value does not jump
CERTAIN: Final = 4.0  # standard errors
# A quarter of normal variates lie below −0.674, so the upper quartile of falls estimates their
# spread, whatever a few large falls or a rate that rises do.
QUARTILE: Final = 0.674
LEAST_STEPS: Final = 4  # between buckets, to measure chance
MOST_ALIKE: Final = 16.0  # blocks that hit or miss together; assumed half of it until measured
COUNTS: Final = (
    *("requested_tokens", "tail_tokens", "hit_hot_tokens", "hit_cold_tokens", "hit_local_tokens"),
    *("requested_blocks", "put_blocks", "put_refused", "dropped"),
    *("cold_refused_blocks", "lost_blocks"),
)


class _Counts:
    """What follows from `counts`."""

    counts: Mapping[str, int]

    @property
    def prompt_tokens(self) -> int:
        return self.counts["requested_tokens"] + self.counts["tail_tokens"]

    @property
    def hit_tokens(self) -> int:
        return sum(self.counts[f"hit_{tier}_tokens"] for tier in ("hot", "cold", "local"))

    @property
    def hit_ratio(self) -> float | None:
        return self.hit_tokens / self.prompt_tokens if self.prompt_tokens else None


@dataclass
class Counted(_Counts):
    """Sums of buckets. `seconds`: what they cover."""

    seconds: float = 0.0
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTS, 0))
    misses: Mapping[str, int] = field(default_factory=dict)

    def add(self, counts: Mapping[str, int], misses: Mapping[str, int]) -> None:
        for name in COUNTS:
            self.counts[name] += counts[name]
        self.misses = add(self.misses, misses)

    @property
    def requested_blocks(self) -> int:
        return self.counts["requested_blocks"]

    def miss_rate(self, reason: str) -> float:
        """Missed for a reason, of the blocks asked for."""
        return self.misses.get(reason, 0) / self.requested_blocks if self.requested_blocks else 0.0


@dataclass(frozen=True)
class Bucket(_Counts):
    """BUCKET_S from `ts` on; the newest one is still counted."""

    ts: int
    counts: Mapping[str, int]
    misses: Mapping[str, int]

    @property
    def blocks(self) -> int:
        return self.counts["requested_blocks"]


@dataclass(frozen=True)
class Mark:
    """How far traffic was compared: when, and the newest bucket's sums then."""

    at_s: int = 0
    ts: int = 0
    blocks: int = 0
    prompt_tokens: int = 0
    hit_tokens: int = 0


@dataclass(frozen=True)
class Followed:
    """A fall that is known already. `mark`: of its last measurement; None once it is open.
    `before`, `cause`: fixed, of an open one; None: measured anew."""

    since_ts: float
    held_s: float = 0.0
    mark: Mark | None = None
    is_open: bool = False
    before: float | None = None
    cause: str | None = None


@dataclass(frozen=True)
class Fall:
    """`now` against `base` (None: too little before it). `began_ts`: since when it is as low.

    `fresh_ratio`: hit rate of what was counted since the mark of the last measurement; None: too
    little to tell. `mark`: for the next measurement.
    """

    now: Counted
    base: Counted | None
    began_ts: float | None
    fresh_ratio: float | None
    mark: Mark


def measure(
    buckets: Sequence[Bucket],
    older: Counted,
    now_s: int,
    *,
    least_fall: float,
    followed: Followed | None = None,
) -> Fall | None:
    """`buckets`: oldest first; `older`: what was counted before them. `least_fall`: as a ratio.
    None: too little traffic to speak of a rate."""
    buckets = [each for each in buckets if each.prompt_tokens]
    since_ts = followed.since_ts if followed else now_s
    if followed is None or not buckets or since_ts < buckets[0].ts + BUCKET_S:
        since_ts = now_s  # it began before these buckets
    spread = _spread(buckets, older)
    is_open = followed is not None and followed.is_open
    first_ts = since_ts - BUCKET_S if is_open and since_ts < now_s else 0
    least_s = STEADY_S if is_open else 0
    place = _first_of_run(
        buckets, older, now_s, first_ts, least_s, least_fall=least_fall, spread=spread
    )
    if place is None:
        return None
    now = Counted(max(1, now_s - buckets[place].ts))
    for each in buckets[place:]:
        now.add(each.counts, each.misses)
    base = Counted(counts=dict(older.counts), misses=older.misses)
    for each in buckets[:place]:
        if each.ts + BUCKET_S <= since_ts:
            base.add(each.counts, each.misses)
    if base.requested_blocks < LEAST_BASE_BLOCKS:
        base_or_none, began_ts = None, None
    else:
        base_or_none, began_ts = base, _began(buckets, now, base, now_s)
    enough = max(LEAST_FRESH_BLOCKS, ceil((2 * spread / least_fall) ** 2))
    fresh, mark = _fresh(buckets, followed, now_s, enough)
    return Fall(now, base_or_none, began_ts, fresh, mark)


def _spread(buckets: Sequence[Bucket], older: Counted) -> float:
    """Standard error of a hit rate over n blocks, times √n."""
    asked = older.prompt_tokens + sum(each.prompt_tokens for each in buckets)
    hits = older.hit_tokens + sum(each.hit_tokens for each in buckets)
    ratio = min(0.95, max(0.05, hits / asked if asked else 0.5))
    alone = sqrt(ratio * (1 - ratio))
    falls = sorted(
        max(0.0, (one.hit_ratio or 0) - (next_.hit_ratio or 0))
        / sqrt(1 / one.blocks + 1 / next_.blocks)
        for one, next_ in pairwise(buckets)
        if one.blocks and next_.blocks
    )
    if len(falls) < LEAST_STEPS:
        return alone * sqrt(MOST_ALIKE / 2)
    measured = falls[len(falls) * 3 // 4] / QUARTILE
    return min(max(measured, alone), alone * sqrt(MOST_ALIKE))


def _first_of_run(
    buckets: Sequence[Bucket],
    older: Counted,
    now_s: int,
    first_ts: float,
    least_s: int,
    *,
    least_fall: float,
    spread: float,
) -> int | None:
    """The place of the oldest bucket of the run; None: too little traffic."""
    asked = older.prompt_tokens + sum(each.prompt_tokens for each in buckets)
    hits = older.hit_tokens + sum(each.hit_tokens for each in buckets)
    blocks = run_asked = run_hits = 0
    place = None
    for at in range(len(buckets) - 1, -1, -1):
        each = buckets[at]
        if each.ts < first_ts or each.ts < now_s - MOST_S:
            break
        blocks += each.blocks
        run_asked += each.prompt_tokens
        run_hits += each.hit_tokens
        if blocks < LEAST_BLOCKS:
            continue
        place = at
        fall = least_fall
        if asked > run_asked:
            before = (hits - run_hits) / (asked - run_asked)
            fall = max(fall, before - run_hits / run_asked)
        is_certain = fall >= CERTAIN * spread / sqrt(blocks)
        if is_certain and now_s - each.ts >= least_s:
            break
    return place


def _began(buckets: Sequence[Bucket], now: Counted, base: Counted, now_s: int) -> float | None:
    """Within the oldest low bucket at the share of it that was low."""
    low, high = now.hit_ratio or 0.0, base.hit_ratio or 0.0
    first: Bucket | None = None
    for each in reversed(buckets):
        if (each.hit_ratio or 0) > (low + high) / 2 or each.ts < now_s - MOST_S:
            break
        first = each
    if first is None:
        return None
    end_ts = max(first.ts, min(first.ts + BUCKET_S, now_s))
    share = (high - (first.hit_ratio or 0)) / (high - low) if high > low else 1.0
    return end_ts - (end_ts - first.ts) * min(1.0, share)


def _fresh(
    buckets: Sequence[Bucket], followed: Followed | None, now_s: int, enough: int
) -> tuple[float | None, Mark]:
    """The hit rate since the mark, once that is enough traffic and a quarter of the time for which
    the fall holds: so one that holds long is not given up for a moment that looks better."""
    newest = buckets[-1]
    here = Mark(now_s, newest.ts, newest.blocks, newest.prompt_tokens, newest.hit_tokens)
    mark = followed.mark if followed else None
    if followed is None or mark is None:
        return None, here
    after = [each for each in buckets if each.ts >= mark.ts]
    has_marked = bool(after) and after[0].ts == mark.ts
    less = mark if has_marked else Mark()
    blocks = sum(each.blocks for each in after) - less.blocks
    asked = sum(each.prompt_tokens for each in after) - less.prompt_tokens
    hits = sum(each.hit_tokens for each in after) - less.hit_tokens
    if blocks < enough or asked <= 0 or now_s - mark.at_s < followed.held_s / 4:
        return None, mark
    return hits / asked, here
