"""Which prompts a prefill pool should compute now: the routing threshold. Pure.

A prompt with more uncached tokens than the threshold goes to the pool, others are computed where
they are decoded. The threshold is the larger of two lengths:

- **sooner**: from here on the KV of a prompt is at the decode node sooner than the decode node
  would have computed it. What waits in either place counts, and so do bytes that wait for the link.
- **sustained**: pool and link keep up with the prompts above it, at the present rate of arrival
  (equation 3 of arXiv 2604.15039). Where the decode nodes could not keep up with the rest, the
  threshold with the largest throughput instead (equation 7).

So with idle machines it is a question of latency; as the pool's queue or the link's backlog grows
it rises, as the decode nodes' queues grow it falls, and under overload it is the paper's optimum.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Final

import numpy as np

from neve.errors import Misuse
from neve.planner.breakeven import MARGIN, Store, pairs
from neve.planner.parts import PrefixBytes
from neve.planner.prfaas import Clusters, Curve, Lengths, best_threshold, point

_GRID: Final = 96  # lengths tried
_HALVINGS: Final = 24  # of the sustained threshold's range
# Share of a capacity that arrivals may take: a queue grows without bound as they come to all of it.
BUSY: Final = 0.9
_UNLIMITED: Final = 1e12


@dataclass(frozen=True)
class Site:
    """Nodes that compute prompts. `wait_s`: until a new prompt begins on the least loaded one."""

    prefill: Curve
    nodes: int = 1
    wait_s: float = 0.0


@dataclass(frozen=True)
class Link:
    """From a pool's nodes to where decode nodes read. `speed`: as measured, with the bytes that
    wait; `kv`: what a prompt sends. `overhead_s`: of a hand-over, beyond computing and sending,
    such as the load by the decode node. `step_tokens`: KV is sent behind each step of so many
    tokens, while the next one is computed."""

    speed: Store
    kv: PrefixBytes
    overhead_s: float = 0.0
    step_tokens: int = 8192

    def seconds(self, tokens: Any, pool: Site) -> Any:
        """Seconds until the KV of a prompt that is sent to `pool` now is at the decode nodes; takes
        arrays.

        Of a chain of equal steps either computing or sending never pauses: all is computed, then
        the last step sent, or the first step is computed, then all sent.
        """
        speed, step = self.speed, np.minimum(tokens, self.step_tokens)
        link_wait_s = speed.queue_bytes / speed.bytes_per_s
        all_s, step_s = (
            (self.kv.fixed + self.kv.per_token * each) / speed.bytes_per_s
            for each in (tokens, step)
        )
        computed_s, begun_s = (pool.wait_s + pool.prefill.at(each) for each in (tokens, step))
        done_s: Any = np.maximum(
            np.maximum(computed_s, link_wait_s) + step_s, np.maximum(begun_s, link_wait_s) + all_s
        )
        return done_s + speed.round_trip_s + self.overhead_s


@dataclass(frozen=True)
class Threshold:
    """`tokens`: the larger of the two others; inf: no prompt goes to the pool."""

    sooner: float
    sustained: float

    @property
    def tokens(self) -> float:
        return max(self.sooner, self.sustained)


def sooner_from(local: Site, pool: Site, link: Link, *, most_tokens: int) -> float:
    """The shortest prompt from which on, up to `most_tokens`, the pool is faster; inf: none."""

    def is_sooner(tokens: Any) -> Any:
        here_s = local.wait_s + local.prefill.at(tokens)
        return link.seconds(tokens, pool) < (1 - MARGIN) * here_s

    lengths: Any = np.unique(np.geomspace(1, most_tokens, _GRID).round())
    later = np.flatnonzero(~is_sooner(lengths))
    if not len(later):
        return 0.0
    if later[-1] == len(lengths) - 1:
        return math.inf
    low, high = float(lengths[later[-1]]), float(lengths[later[-1] + 1])
    while high - low > max(1.0, 0.002 * high):
        middle = (low + high) / 2
        low, high = (low, middle) if is_sooner(middle) else (middle, high)
    return low


def sustained_from(
    local: Site, pool: Site, link: Link, lengths: Lengths, *, arrivals_per_s: float
) -> float:
    """The smallest threshold with which pool and link keep up with `arrivals_per_s`; if the decode
    nodes then don't, the one with the largest throughput. `lengths`: uncached, of all prompts."""
    clusters = Clusters(
        remote=pool.prefill,
        local=local.prefill,
        kv_fixed_bytes=link.kv.fixed,
        kv_bytes_per_token=link.kv.per_token,
        decode_per_s=_UNLIMITED,
        remote_instances=pool.nodes,
        local_instances=local.nodes + 1,
        baseline_instances=2,
        link_bytes_per_s=link.speed.bytes_per_s,
    )
    wanted = arrivals_per_s / BUSY

    def keeps_up(tokens: float) -> bool:
        found = point(clusters, lengths, tokens, local.nodes, by_each_length=True)
        return min(found.remote_per_s, found.link_per_s) >= wanted

    if keeps_up(0.0):
        return 0.0
    low, high = 0.0, lengths.most
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if keeps_up(middle) else (middle, high)
    rest = point(clusters, lengths, high, local.nodes, by_each_length=True)
    if rest.local_per_s >= wanted:
        return high
    best = best_threshold(clusters, lengths, local.nodes, by_each_length=True)
    return best.threshold_tokens


def measured_curve(samples: Iterable[tuple[float, float, float]]) -> Curve | None:
    """Least squares through (cached tokens, computed tokens, seconds), no term below 0; weighs
    samples by 1 ÷ seconds, as long times vary more. None without a sample."""
    each = [sample for sample in samples if sample[1] > 0 and sample[2] > 0]
    if not each:
        return None
    rows = np.array(
        [(1.0, tokens, pairs(int(cached), int(cached + tokens))) for cached, tokens, _ in each]
    )
    seconds = np.array([sample[2] for sample in each])
    weights = 1 / np.sqrt(seconds)
    best, least = (0.0, float((seconds / rows[:, 1]).mean()), 0.0), math.inf
    # One length alone tells a speed, two a line: a fixed part needs others to stand out from.
    most_terms = min(3, len({int(sample[1]) for sample in each}))
    for count in range(1, most_terms + 1):
        for terms in combinations(range(3), count):
            if terms in ((0,), (0, 2)) or (most_terms == 1 and terms == (2,)):
                continue
            found, *_ = np.linalg.lstsq(
                rows[:, terms] * weights[:, None], seconds * weights, rcond=None
            )
            error = float((((rows[:, terms] @ found) - seconds) ** 2 * weights**2).sum())
            if (found >= 0).all() and error < least * 0.999:
                whole = [0.0, 0.0, 0.0]
                for term, value in zip(terms, found, strict=True):
                    whole[term] = float(value)
                best, least = (whole[0], whole[1], whole[2]), error
    return Curve(best[0], best[1], best[2] / 2)


def behind(curve: Curve, cached_tokens: float) -> Curve:
    """The curve of prompts whose first `cached_tokens` are in memory: attention visits them too."""
    return Curve(
        curve.fixed_s,
        curve.s_per_token + 2 * curve.s_per_token2 * cached_tokens,
        curve.s_per_token2,
    )


def curve_through(points: Sequence[tuple[float, float]]) -> Curve:
    """Through given (tokens, seconds). Raises `Misuse` as `Curve.through` does, and for a prompt
    that would take no time."""
    curve = Curve.through(points)
    if curve.at(1) < 0:
        raise Misuse("the shortest prompts would take no time", field="points")
    return curve
