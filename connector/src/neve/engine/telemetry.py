"""Figures for the engine's own metrics: their names, and what was counted since the last step.

Scheduler and workers both collect. The engine merges their data in every step and carries it to the
process that serves `/metrics`, so all data are plain dicts of strings and numbers.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from neve.datapath.client import Client
from neve.datapath.status import BreakerState
from neve.engine.handover import HandoverOutcome
from neve.errors import MissReason
from neve.index.tier import Tier
from neve.planner.choice import Decision

Data = dict[str, Any]  # {"counters": {name: {label: n}}, "gauges": same, "samples": {name: [...]}}


@dataclass(frozen=True)
class Metric:
    """One metric. `label`: the name of its only label, if any, with its possible `values`.

    `fold`: makes one gauge of those of scheduler and workers.
    """

    name: str
    help: str
    label: str | None = None
    values: Iterable[str] = ("",)
    fold: Callable[[Iterable[float]], float] = sum


STATE_WAYS: Final = ("stored", "loaded")
COUNTERS: Final = (
    Metric("hit_tokens", "Tokens loaded into the engine instead of being computed.", "tier", Tier),
    Metric("read_bytes", "Bytes loaded and verified.", "tier", Tier),
    Metric("written_bytes", "Bytes stored into the hot tier."),
    Metric("local_written_bytes", "Bytes written into the node's local tier."),
    Metric("local_evicted_blocks", "Blocks deleted from the local tier to make room."),
    Metric("local_bad_blocks", "Files of the local tier that failed verification: deleted."),
    Metric(
        "missed_blocks",
        "Blocks asked for and not loaded, by the first one's reason.",
        "reason",
        MissReason,
    ),
    Metric(
        "unsaved_blocks",
        "Blocks not stored: no staging left, or refused.",
        "reason",
        ("dropped", "refused"),
    ),
    Metric("dropped_blocks", "Blocks that storage did not take, by reason.", "reason", MissReason),
    Metric("states", "States of linear attention that were stored or loaded.", "way", STATE_WAYS),
    Metric("state_bytes", "Bytes of these states.", "way", STATE_WAYS),
    Metric("promoted_blocks", "Cold blocks brought back into the hot tier."),
    Metric(
        "second_requests",
        "Ranges of S3 that were late and asked for once more; of them, those that were used.",
        "outcome",
        ("begun", "won"),
    ),
    Metric("corrupt_blocks", "Blocks that failed verification (and were computed)."),
    Metric(
        "compared_blocks",
        "Blocks that were computed and fetched, by what came of comparing them.",
        "verdict",
        ("same", "near", "other", "unknown"),
    ),
    Metric("decisions", "What was done with a found prefix.", "decision", Decision),
    Metric(
        "handovers",
        "Prompts begun on a prefill node: how waiting for it ended.",
        "outcome",
        HandoverOutcome,
    ),
)
GAUGES: Final = (
    Metric("loads_in_flight", "Requests that wait for their load."),
    Metric("saves_in_flight", "Batches on their way into the hot tier."),
    Metric("breaker", "Of the hot tier: 0 closed, 1 half open, 2 open; of all ranks.", fold=max),
    Metric("local_used_bytes", "In `local_dir`, by all engines that share it.", fold=max),
    Metric(
        "local_breaker",
        "Of reads from the local tier: 0 closed, 1 half open, 2 open; of all ranks.",
        fold=max,
    ),
    Metric(
        "codec_error",
        "Relative error of KV that is stored with loss, of the first chunks; of all ranks.",
        fold=max,
    ),
    Metric("alone", "1 once KV from Neve was not what this engine computes: it serves alone."),
    Metric("attached", "1 while this engine shares the KV of its family."),
    Metric("connected", "1 while all ranks of the engine are connected to Neve.", fold=min),
)
_FOLDS: Final = {metric.name: metric.fold for metric in GAUGES}
HISTOGRAMS: Final = (
    Metric("match_seconds", "From a request's first look-up to its answer."),
    Metric("load_seconds", "From a load's plan to its end, well or not."),
)
BUCKETS_S: Final = (*(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0),)
_BREAKER: Final = {BreakerState.CLOSED: 0, BreakerState.HALF_OPEN: 1, BreakerState.OPEN: 2}
_FROM_STATS: Final = (
    ("read_bytes", "hot", "hot_read_bytes"),
    ("read_bytes", "cold", "cold_read_bytes"),
    ("read_bytes", "local", "local_read_bytes"),
    ("written_bytes", "", "hot_write_bytes"),
    ("local_written_bytes", "", "local_write_bytes"),
    ("local_evicted_blocks", "", "local_evicted_blocks"),
    ("local_bad_blocks", "", "local_bad_blocks"),
    ("unsaved_blocks", "dropped", "dropped"),
    ("unsaved_blocks", "refused", "put_refused"),
    ("promoted_blocks", "", "promoted_blocks"),
    ("corrupt_blocks", "", "corrupt"),
)
# Samples of a histogram kept between two steps: a bound for engines that never take them.
_MOST_SAMPLES: Final = 10_000


class Telemetry:
    """One side's figures since the last `take`. Belongs to the engine's thread."""

    def __init__(self) -> None:
        self._counters: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._gauges: dict[str, float] = {}
        self._others: dict[str, dict[str, float]] = {}
        self._moved = False
        self._taken: dict[str, float] = {}
        self._samples: defaultdict[str, list[float]] = defaultdict(list)
        self._seen: Counter[str] = Counter()
        self._changes = -1

    def count(self, name: str, number: int, label: str = "") -> None:
        if number:
            self._counters[name][label] += number

    def sample(self, name: str, value: float) -> None:
        if len(self._samples[name]) < _MOST_SAMPLES:
            self._samples[name].append(value)

    def gauge(self, name: str, value: float) -> None:
        if self._gauges.get(name) != value:
            self._gauges[name] = value
            self._moved = True

    def read(self, client: Client | None) -> None:
        """Adds what `client` counted since the last call. Cheap while it counted nothing."""
        self.gauge("connected", 0 if client is None else 1)
        if client is None:
            return
        self.gauge("breaker", _BREAKER[client.breaker])
        if client.local is not None:
            self.gauge("local_used_bytes", client.local.used_bytes)
            self.gauge("local_breaker", _BREAKER[BreakerState(client.local.read_breaker.state)])
        changes = client.stats.changes
        if changes == self._changes:
            return
        self._changes = changes
        totals = client.stats.totals()
        for name, label, counter in _FROM_STATS:
            self.count(name, totals.counters[counter] - self._seen[counter], label)
            self._seen[counter] = totals.counters[counter]
        for outcome, number in list(client.stats.second_requests.items()):
            key = f"second_requests {outcome}"
            self.count("second_requests", number - self._seen[key], outcome)
            self._seen[key] = number
        for name, by_reason in (("missed_blocks", totals.misses), ("dropped_blocks", totals.drops)):
            for reason, blocks in by_reason.items():
                key = f"{name} {reason}"
                self.count(name, blocks - self._seen[key], str(reason))
                self._seen[key] = blocks

    def note_others(self, gauges: Mapping[str, dict[str, float]]) -> None:
        """Results of other sides' `take_gauges`, by side."""
        for side, values in gauges.items():
            self._others.setdefault(side, {}).update(values)
            self._moved = True

    def take_gauges(self) -> dict[str, float]:
        """Gauges that changed since the last call, folded over all sides."""
        if not self._moved:
            return {}
        self._moved = False
        every = (self._gauges, *self._others.values())
        folded = {
            name: fold(side[name] for side in every if name in side)
            for name, fold in _FOLDS.items()
            if any(name in side for side in every)
        }
        changed = {name: value for name, value in folded.items() if self._taken.get(name) != value}
        self._taken |= changed
        return changed

    def take(self, *, gauges: bool = True) -> Data | None:
        """Figures since the last call; None if there are none. Without `gauges`, take them by
        `take_gauges`."""
        changed = self.take_gauges() if gauges else {}
        if not changed and not self._counters and not self._samples:
            return None
        data = {
            "counters": {name: dict(by_label) for name, by_label in self._counters.items()},
            "gauges": {name: {"": value} for name, value in changed.items()},
            "samples": dict(self._samples),
        }
        self._counters.clear()
        self._samples.clear()
        return data


def empty() -> Data:
    return {"counters": {}, "gauges": {}, "samples": {}}


def is_empty(data: Data) -> bool:
    return not any(data.get(kind) for kind in ("counters", "gauges", "samples"))


def merge(into: Data, other: Data) -> None:
    """Adds figures of another side or a later step; gauges take the later value."""
    for name, by_label in other["counters"].items():
        mine = into["counters"].setdefault(name, {})
        for label, number in by_label.items():
            mine[label] = mine.get(label, 0) + number
    for name, by_label in other["gauges"].items():
        into["gauges"].setdefault(name, {}).update(by_label)
    for name, samples in other["samples"].items():
        into["samples"].setdefault(name, []).extend(samples)


def summarize(data: Data) -> dict[str, int | float]:
    """For the engine's log line: counters by label, gauges, medians in milliseconds."""
    figures: dict[str, int | float] = {}
    for kind in ("counters", "gauges"):
        for name, by_label in data[kind].items():
            for label, number in by_label.items():
                figures[f"{name}_{label}" if label else name] = number
    for name, samples in data["samples"].items():
        middle = sorted(samples)[len(samples) // 2]
        figures[name.removesuffix("_seconds") + "_p50_ms"] = round(1000 * middle, 2)
    return figures
