"""What `neve simulate` writes: tables, JSON, figures."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from neve.cli.offline import table
from neve.cli.simulate_options import Amount
from neve.cli.text import NOTHING, count, size, span
from neve.errors import Misuse
from neve.planner.simulate import sampled
from neve.planner.simulate.curve import lru_curve
from neve.planner.simulate.sampled import Estimate
from neve.planner.simulate.samples import Samples
from neve.planner.simulate.settings import Setting
from neve.planner.simulate.tiers import Result, TierResult
from neve.planner.simulate.traces import Trace

_POINTS = 1000  # of a curve in JSON and in a figure
_GB = 1e9  # network bandwidth is decimal


@dataclass(frozen=True)
class Workload:
    """A trace and its blocks. `block_bytes` None: unknown, amounts are in blocks."""

    name: str
    trace: Trace
    block_tokens: int
    block_bytes: int | None

    @property
    def span_s(self) -> float:
        requests = self.trace.requests
        return requests[-1].at_s - requests[0].at_s

    @property
    def samples(self) -> Samples | None:
        """None for a whole trace."""
        return self.trace.samples if self.trace.rate < 1 else None

    @property
    def asked_blocks(self) -> int:
        if self.samples is not None:
            return self.samples.totals.asked_blocks
        return sum(len(request.ids) for request in self.trace.requests)

    @property
    def distinct_blocks(self) -> int:
        """Of samples an estimate."""
        found = {id_ for request in self.trace.requests for id_ in request.ids}
        return round(len(found) / self.trace.rate)

    def amount(self, units: float) -> str:
        """Of a result, which counts bytes, or blocks if their bytes are unknown."""
        units /= self.trace.rate
        return f"{units:,.0f} blocks" if self.block_bytes is None else size(units)

    def facts(self) -> dict[str, Any]:
        samples = self.samples
        return {
            "name": self.name,
            "format": str(self.trace.format.value),
            "rate": self.trace.rate,
            "requests": sum(samples.totals.requests) if samples else len(self.trace.requests),
            "asked_blocks": self.asked_blocks,
            "distinct_blocks": self.distinct_blocks,
            "span_s": self.span_s,
            "block_tokens": self.block_tokens,
            "block_bytes": self.block_bytes,
        }

    def words(self) -> Iterator[str]:
        facts = self.facts()
        each = "" if self.block_bytes is None else f", {size(self.block_bytes)} each"
        # Samples do not say it.
        tokens = "" if self.samples is not None else f" of {self.block_tokens} tokens"
        yield (
            f"{self.name}: {count(facts['requests'])} requests in {span(self.span_s)} ask for "
            f"{count(facts['asked_blocks'])} blocks{tokens}{each}, "
            f"{count(facts['distinct_blocks'])} of them distinct"
        )
        if self.samples is not None:
            yield (
                f"Estimated from samples of 1/{1 / self.trace.rate:.0f} of the blocks. Sizes are "
                "those of the whole traffic; 95 % of hit rates lie within ±."
            )


@dataclass(frozen=True)
class Worth:
    """`prefill_tokens_per_s`: measured, of one GPU; None: unknown. `bandwidths`: tier → GB/s."""

    prefill_tokens_per_s: float | None = None
    bandwidths: Mapping[str, float] = field(default_factory=dict)

    def gpu_s(self, row: "Row", workload: Workload) -> float | None:
        """GPU-seconds of prefill that hits spare; None: unknown. A tier that loads no faster than
        the GPU computes spares nothing; its load time is taken off if its bandwidth is known."""
        if self.prefill_tokens_per_s is None:
            return None
        spared_s = 0.0
        for name, tier in row.result.tiers.items():
            tokens, read_bytes = float(tier.hit_tokens), float(tier.read_bytes)
            if row.estimate is not None:
                blocks = (row.rate_of(name) or 0.0) * workload.asked_blocks
                tokens = blocks * workload.block_tokens
                read_bytes = blocks * row.setting.tiers[name].block_bytes(row.setting.block_bytes)
            computing_s = tokens / self.prefill_tokens_per_s
            loading_s = read_bytes / (self.bandwidths.get(name, math.inf) * _GB)
            spared_s += max(0.0, computing_s - loading_s)
        return spared_s

    def words(self, tiers: Sequence[str]) -> str:
        if self.prefill_tokens_per_s is None:
            return ""
        text = f"GPU-s spared: tokens of hits at {self.prefill_tokens_per_s:,.0f} tokens/s"
        taken = [f"{name} at {self.bandwidths[name]:g} GB/s" for name in tiers
                 if name in self.bandwidths]  # fmt: skip
        free = [name for name in tiers if name not in self.bandwidths]
        if taken:
            text += f", less the time of loading from {' and '.join(taken)}"
        if free:
            text += f". Loading from {' and '.join(free)} is taken to cost nothing: an upper bound"
            text += " (give --bandwidth)"
        return f"{text}."


@dataclass(frozen=True)
class Row:
    """One setting, as it was asked for, and its result."""

    policy: str
    hot: Amount
    cold: Amount | None
    setting: Setting
    result: Result
    estimate: Estimate | None = None  # of samples: hit rates of the whole traffic

    @property
    def hit_rate(self) -> float:
        found = self.estimate.hit_rate if self.estimate else self.result.hit_rate
        return found or 0.0

    def rate_of(self, tier: str) -> float | None:
        """Hits of a tier ÷ blocks asked for. None for several tiers and samples: blocks that
        nearly all requests share may not be sampled, and they are hot."""
        if self.estimate is not None:
            return self.estimate.hit_rate if len(self.result.tiers) == 1 else None
        asked = self.result.asked_blocks
        return self.result.tiers[tier].hit_blocks / asked if asked else 0.0

    def json(self, workload: Workload, worth: Worth) -> dict[str, Any]:
        result = self.result
        return {
            "policy": self.policy,
            "hot": self.hot.text,
            "cold": self.cold.text if self.cold else None,
            "requests": result.requests,
            "asked_blocks": result.asked_blocks,
            "asked_tokens": result.asked_tokens,
            "hit_blocks": result.hit_blocks,
            "hit_tokens": result.hit_tokens,
            "hit_rate": self.hit_rate,
            "hit_rate_error": self.estimate.error if self.estimate else None,
            "promoted_blocks": result.promoted_blocks,
            "expired_blocks": result.expired_blocks,
            "lost_blocks": result.lost_blocks,
            "span_s": result.span_s,
            "gpu_s_spared": worth.gpu_s(self, workload),
            "tiers": {
                name: self._tier(name, tier, workload) for name, tier in result.tiers.items()
            },
            "buckets": [
                {
                    "start_s": each.start_s,
                    "asked_blocks": each.asked_blocks,
                    "hit_blocks": each.hit_blocks,
                    _unit("held", workload): each.held_bytes,
                }
                for each in result.buckets
            ],
        }

    def _tier(self, name: str, tier: TierResult, workload: Workload) -> dict[str, Any]:
        """Amounts are of the trace; of samples, × their rate. They are in blocks if the bytes of a
        block are unknown."""
        found = {
            "hit_rate": self.rate_of(name),
            "hit_blocks": tier.hit_blocks,
            "hit_tokens": tier.hit_tokens,
            "written_blocks": tier.written_blocks,
            "evicted_blocks": tier.evicted_blocks,
            "expired_blocks": tier.expired_blocks,
            "idle_blocks": tier.idle_blocks,
            "refused_blocks": tier.refused_blocks,
            _unit("mean", workload): tier.mean_bytes,
            _unit("peak", workload): tier.peak_bytes,
        }
        if workload.block_bytes is not None:
            found |= {
                "read_bytes": tier.read_bytes,
                "written_bytes": tier.written_bytes,
                "gib_hours": tier.gib_hours,
            }
        return found


def _unit(name: str, workload: Workload) -> str:
    return f"{name}_blocks" if workload.block_bytes is None else f"{name}_bytes"


def _band(error: float | None) -> str:
    """95 % of the truths lie within two standard errors."""
    return "" if error is None else f" ± {2 * error:.4f}"


def rate(hits: int, asked: int) -> str:
    return f"{hits / asked:.4f}" if asked else NOTHING


def show_rows(rows: Sequence[Row], workload: Workload, worth: Worth) -> None:
    """A line for each setting; then what the columns mean."""
    names = list(rows[0].result.tiers)
    titles = ["policy", "hot"]
    titles += ["cold"] if "cold" in names else []
    titles += ["hit rate"]
    has_split = len(names) > 1 and rows[0].estimate is None  # samples do not tell it
    titles += [f"{name} hits" for name in names] if has_split else []
    titles += [f"{name} held" for name in names]
    titles += ["promoted"] if "cold" in names else []
    titles += ["refused"] if any(_refused(row.result) for row in rows) else []
    titles += ["GPU-s spared"] if worth.prefill_tokens_per_s else []
    lines = []
    for row in rows:
        result = row.result
        tiers = result.tiers
        cells = {
            "policy": row.policy,
            "hot": row.hot.text,
            "cold": row.cold.text if row.cold else NOTHING,
            "hit rate": f"{row.hit_rate:.4f}{_band(row.estimate.error if row.estimate else None)}",
            "promoted": count(result.promoted_blocks / workload.trace.rate),
            "refused": count(_refused(result) / workload.trace.rate),
            "GPU-s spared": count(worth.gpu_s(row, workload)),
        }
        for name, tier in tiers.items():
            if has_split:
                cells[f"{name} hits"] = f"{row.rate_of(name):.4f}"
            cells[f"{name} held"] = workload.amount(tier.mean_bytes)
        lines.append([cells[title] for title in titles])
    table(titles, lines)
    click.echo()
    click.echo("Hits: blocks of prefixes found ÷ blocks asked for. Held: the mean over time.")
    if words := worth.words(names):
        click.echo(words)


def _refused(result: Result) -> int:
    return sum(tier.refused_blocks for tier in result.tiers.values())


def show_buckets(row: Row, workload: Workload) -> None:
    names = list(row.result.tiers)
    start_s = row.result.buckets[0].start_s if row.result.buckets else 0.0
    click.echo()
    table(
        ["from", "asked", *(f"{name} hits" for name in names), *(f"{name} held" for name in names)],
        [
            [
                f"+{span(each.start_s - start_s)}",
                count(each.asked_blocks / workload.trace.rate),
                *(rate(each.hit_blocks[name], each.asked_blocks) for name in names),
                *(workload.amount(each.held_bytes[name]) for name in names),
            ]
            for each in row.result.buckets
        ],
    )


# Hit rate of a capacity in blocks, None: unlimited; and its standard error, None: it is exact.
HitRateAt = Callable[[int | None], tuple[float, float | None]]


def hit_rate_at(workload: Workload) -> HitRateAt:
    """LRU's curve: exact, or an estimate from samples."""
    if workload.samples is not None:
        estimated = sampled.curve(workload.samples)

        def from_samples(blocks: int | None) -> tuple[float, float | None]:
            found = estimated.estimate(blocks)
            return found.hit_rate, found.error

        return from_samples
    exact = lru_curve(request.ids for request in workload.trace.requests)
    return lambda blocks: (exact.hit_rate(blocks) or 0.0, None)


def show_curve(
    curve: HitRateAt, sizes: Sequence[tuple[str, int | None]], workload: Workload
) -> None:
    """`sizes`: words and blocks, None: unlimited."""
    lines = []
    for words, blocks in sizes:
        hits, error = curve(blocks)
        most = workload.distinct_blocks if blocks is None else blocks
        held = [size(most * workload.block_bytes)] if workload.block_bytes else []
        lines.append([words, *held, f"{hits:.4f}{_band(error)}"])
    table(["hot", *(["bytes"] if workload.block_bytes else []), "hit rate"], lines)


def curve_json(curve: HitRateAt, sizes: Sequence[tuple[str, int | None]]) -> list[dict[str, Any]]:
    found = [(words, blocks, *curve(blocks)) for words, blocks in sizes]
    names = ("hot", "blocks", "hit_rate", "hit_rate_error")
    return [dict(zip(names, each, strict=True)) for each in found]


def round_sizes(most: int) -> list[int]:
    """1, 2, 5, 10, … up to the first that holds `most`."""
    sizes: list[int] = []
    step = 1
    while not sizes or sizes[-1] < most:
        sizes.append((1, 2, 5)[len(sizes) % 3] * step)
        step *= 10 if len(sizes) % 3 == 0 else 1
    return sizes


def plot_curve(file: Path, curve: HitRateAt, workload: Workload) -> None:
    from neve.cli.plot import Line, draw

    most = max(2, workload.distinct_blocks)
    points = _POINTS if workload.samples is None else 50  # an estimate takes a while
    blocks = sorted({round(most ** (n / (points - 1))) for n in range(points)})
    hits = [curve(each)[0] * 100 for each in blocks]
    draw(
        file,
        [Line("lru", _axis(blocks, workload), hits)],
        title=f"LRU hit rate by size: {workload.name}",
        x_label=_axis_label(workload),
        y_label="hit rate, %",
        x_scale="log",
        has_points=False,
    )


def plot_rows(file: Path, rows: Sequence[Row], workload: Workload) -> None:
    """A line for each policy and cold size over the sizes of the hot tier.

    Raises: Misuse without a size that is limited, or if the figure can't be written.
    """
    from neve.cli.plot import Line, draw

    points: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for row in rows:
        capacity, hits = row.setting.hot.capacity_bytes, row.result.hit_rate
        if capacity is not None and hits is not None:
            blocks = capacity / row.setting.block_bytes / workload.trace.rate
            key = row.policy, row.cold.text if row.cold else ""
            points.setdefault(key, []).append((blocks, hits * 100))
    if not points:
        raise Misuse("no hot tier with a limit to draw: give --hot sizes", field="plot")
    lines = [
        Line(
            policy + (f", {cold} cold" if cold else ""),
            _axis([x for x, _ in sorted(found)], workload),
            [y for _, y in sorted(found)],
        )
        for (policy, cold), found in points.items()
    ]
    draw(
        file,
        lines,
        title=f"Hit rate by size of the hot tier: {workload.name}",
        x_label=_axis_label(workload),
        y_label="hit rate, %",
        x_scale="log",
    )


def _axis(blocks: Sequence[float], workload: Workload) -> list[float]:
    each = 1.0 if workload.block_bytes is None else workload.block_bytes / (1 << 30)
    return [number * each for number in blocks]


def _axis_label(workload: Workload) -> str:
    return "hot tier, blocks" if workload.block_bytes is None else "hot tier, GiB"
