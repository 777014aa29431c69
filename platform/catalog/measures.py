"""The measures of the Explorer: what each is of, and by which parts it can be split. Pure."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from catalog.histograms import Percentile, merge, percentile

Kind = Literal["ratio", "count", "gauge", "latency"]
Unit = Literal["percent", "tokens", "blocks", "bytes", "ms", "s"]

SPLITS: Final = ("tenant", "space", "node", "label", "context", "reason", "tier")
_ALL: Final = ("tenant", "space", "node", "label", "context", "tier")
_PLACES: Final = ("tenant", "space", "node")
FIRST_BOUND: Final = "<=1"
# Rows of contexts and labels have these columns only.
OF_REPORTS: Final = frozenset({"prompt_tokens", "hit_tokens"})


@dataclass(frozen=True)
class Measure:
    """`columns` of a slice are summed. `hot`, `cold`, `local`: those of one tier. `better`: 1 if
    more is better, -1 if less is, 0 if neither. `is_of_tenant`: nodes do not count it. A count is
    shown as its sum in tables and by second in charts."""

    name: str
    words: str
    unit: Unit
    kind: Kind
    columns: tuple[str, ...]
    better: int
    splits: tuple[str, ...]
    about: str
    hot: tuple[str, ...] = ()
    cold: tuple[str, ...] = ()
    local: tuple[str, ...] = ()
    by_name: str = ""
    percentile: float = 0.0
    is_of_tenant: bool = False

    @property
    def is_rate(self) -> bool:
        return self.kind == "count"

    @property
    def is_of_reports(self) -> bool:
        """Whether contexts and labels have it, too."""
        return OF_REPORTS.issuperset(self.columns) and not self.by_name


MEASURES: Final = {
    each.name: each
    for each in (
        Measure(
            "hit_rate",
            "Hit rate",
            "percent",
            "ratio",
            ("hit_tokens",),
            1,
            _ALL,
            "of prompt tokens that were looked up, also those behind the last whole block",
        ),
        Measure(
            "hit_tokens",
            "Tokens from the cache",
            "tokens",
            "count",
            ("hit_tokens",),
            1,
            _ALL,
            "prompt tokens that were loaded and not computed",
        ),
        Measure(
            "miss_blocks",
            "Misses",
            "blocks",
            "count",
            (),
            -1,
            (*_PLACES, "reason"),
            "blocks that were asked for and not loaded",
            by_name="misses",
        ),
        Measure(
            "read_bytes",
            "Read",
            "bytes",
            "count",
            ("hot_read_bytes", "cold_read_bytes", "local_read_bytes"),
            0,
            (*_PLACES, "tier"),
            "of verified blocks",
            hot=("hot_read_bytes",),
            cold=("cold_read_bytes",),
            local=("local_read_bytes",),
        ),
        Measure(
            "write_bytes",
            "Written",
            "bytes",
            "count",
            ("hot_write_bytes",),
            0,
            _PLACES,
            "by nodes into the hot tier",
        ),
        Measure(
            "load_p50",
            "Load p50",
            "ms",
            "latency",
            (),
            -1,
            _PLACES,
            "half of the loads took at most so long: from merged histograms",
            by_name="load_ms",
            percentile=0.5,
        ),
        Measure(
            "load_p99",
            "Load p99",
            "ms",
            "latency",
            (),
            -1,
            _PLACES,
            "99 of 100 loads took at most so long: from merged histograms",
            by_name="load_ms",
            percentile=0.99,
        ),
        Measure(
            "refused",
            "Refused by the hot quota",
            "blocks",
            "count",
            ("put_refused",),
            -1,
            _PLACES,
            "blocks that nodes could not store",
        ),
        Measure(
            "cold_refused",
            "Refused by the cold quota",
            "blocks",
            "count",
            ("cold_refused_blocks",),
            -1,
            ("tenant",),
            "blocks that could not be flushed",
            is_of_tenant=True,
        ),
        Measure(
            "dropped",
            "Dropped",
            "blocks",
            "count",
            (),
            -1,
            (*_PLACES, "reason"),
            "blocks that nodes gave up storing, by reason",
            by_name="drops",
        ),
        Measure(
            "hot_used",
            "Hot used",
            "bytes",
            "gauge",
            ("hot_used_bytes",),
            0,
            ("tenant",),
            "as last sampled",
            is_of_tenant=True,
        ),
        Measure(
            "cold_used",
            "Cold used",
            "bytes",
            "gauge",
            ("cold_used_bytes",),
            0,
            ("tenant",),
            "as last sampled",
            is_of_tenant=True,
        ),
        Measure(
            "dirty_age",
            "Oldest dirty block",
            "s",
            "gauge",
            ("dirty_oldest_s",),
            -1,
            ("tenant",),
            "how late the oldest flush is: the largest of the time",
            is_of_tenant=True,
        ),
    )
}


@dataclass
class Sums:
    """Of one part and time. A column that no row has is None: a gauge that nobody sampled."""

    counts: dict[str, int] = field(default_factory=dict)
    misses: Counter[str] = field(default_factory=Counter)
    drops: Counter[str] = field(default_factory=Counter)
    load_ms: Counter[str] = field(default_factory=Counter)

    def add(self, other: "Sums") -> None:
        for name, count in other.counts.items():
            self.counts[name] = self.counts.get(name, 0) + count
        self.misses += other.misses
        self.drops += other.drops
        self.load_ms = merge((self.load_ms, other.load_ms))

    @property
    def prompt_tokens(self) -> int:
        return self.counts.get("prompt_tokens", 0)

    def main_reason(self, before: Mapping[str, float]) -> str | None:
        """The reason of most misses beyond those `before`; of equal ones the first by name."""
        more = {name: count - before.get(name, 0.0) for name, count in self.misses.items()}
        return min(more, key=lambda name: (-more[name], name), default=None)


def value_of(measure: Measure, sums: Sums | None) -> float | None:
    """None: unknown, as nobody counted. A share, a sum, bytes, seconds or milliseconds."""
    if sums is None:
        return None
    if measure.kind == "latency":
        found = percentile(sums.load_ms, measure.percentile)
        return None if found is None else found.milliseconds
    if measure.kind == "ratio":
        asked = sums.prompt_tokens
        return sums.counts.get("hit_tokens", 0) / asked if asked else None
    if measure.by_name:
        return float(sum(getattr(sums, measure.by_name).values()))
    known = [sums.counts[name] for name in measure.columns if name in sums.counts]
    return float(sum(known)) if known else None


@dataclass(frozen=True)
class Latency:
    """Both tails of merged loads. `beyond`: the share of loads above the last bound, where nothing
    but "more" is known; `within`: the share below the first bound."""

    loads: int
    p1: Percentile
    p50: Percentile
    p99: Percentile
    beyond: float
    within: float


def latency_of(load_ms: Mapping[str, int]) -> Latency | None:
    """None without loads."""
    loads = sum(load_ms.values())
    shares = [percentile(load_ms, share) for share in (0.01, 0.5, 0.99)]
    p1, p50, p99 = shares
    if p1 is None or p50 is None or p99 is None:
        return None
    within = load_ms.get(FIRST_BOUND, 0)
    return Latency(loads, p1, p50, p99, load_ms.get("+Inf", 0) / loads, within / loads)
