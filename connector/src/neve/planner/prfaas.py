"""Prefill as a service: long prompts computed by another cluster, their KV sent over a link. Pure.

A cluster of *remote* instances computes prompts with more than `threshold` uncached tokens and
sends their KV to a *local* cluster, whose instances compute the short prompts or decode. The
throughput model is that of arXiv 2604.15039 (equations 3 to 8), with the remote instances N, the
local prefill and decode instances Np and Nd, the share p of prompts above the threshold, and the
mean lengths `long` above and `short` up to it:

    remote  = min(N / T_remote(long), link / S(long))        requests/s            (3)
    local   = Np / T_local(short)                                                  (4)
    decode  = Nd × batch / (step seconds × output tokens)                          (5)
    whole   = min(remote / p, local / (1 - p), decode)                             (6)

`solve` tries every split of the local instances and every threshold, and takes the fastest; at
that point remote / p = local / (1 - p) if neither link nor decode limits (7).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol, Self

import numpy as np

from neve.errors import Misuse

_GRID: Final = 200  # thresholds tried before the best is refined
_REFINED: Final = 3  # refinements, each of `_GRID` thresholds between the best one's neighbours


class Lengths(Protocol):
    """Distribution of uncached prompt lengths, in tokens."""

    @property
    def least(self) -> float: ...
    @property
    def most(self) -> float: ...
    def moments(self, low: float, high: float) -> tuple[float, float, float]:
        """Sums of probability, probability × length and probability × length², of lengths in
        (low, high]."""


@dataclass(frozen=True)
class LogNormal:
    """exp(normal(mu, sigma)), cut to `least` … `most` tokens."""

    mu: float
    sigma: float
    least: float
    most: float

    def __post_init__(self) -> None:
        if self.sigma <= 0:
            raise Misuse(f"{self.sigma:g} is not above 0", field="sigma")
        if not 0 < self.least < self.most:
            raise Misuse(f"{self.least:g}:{self.most:g} is no range above 0", field="lengths")

    def moments(self, low: float, high: float) -> tuple[float, float, float]:
        whole = self._moment(0, self.least, self.most)
        low, high = max(low, self.least), min(high, self.most)
        if whole <= 0:
            raise Misuse("no length lies in this range", field="lengths")
        if low >= high:
            return 0.0, 0.0, 0.0
        first, second, third = (self._moment(order, low, high) / whole for order in range(3))
        return first, second, third

    def _moment(self, order: int, low: float, high: float) -> float:
        def below(tokens: float) -> float:
            z = (math.log(tokens) - self.mu) / self.sigma - order * self.sigma
            return (1 + math.erf(z / math.sqrt(2))) / 2

        scale = math.exp(order * self.mu + (order * self.sigma) ** 2 / 2)
        return scale * (below(high) - below(low))


class Measured:
    """Lengths of requests, for example of a trace. Raises `Misuse` with none above 0."""

    def __init__(self, lengths: Sequence[int]) -> None:
        found = np.sort(np.asarray([length for length in lengths if length > 0], dtype=np.float64))
        if not len(found):
            raise Misuse("no prompt has uncached tokens", field="lengths")
        self._sorted = found
        self._sums = [np.concatenate(([0.0], np.cumsum(found**k))) / len(found) for k in range(3)]

    @property
    def least(self) -> float:
        return float(self._sorted[0])

    @property
    def most(self) -> float:
        return float(self._sorted[-1])

    def moments(self, low: float, high: float) -> tuple[float, float, float]:
        # `least` itself counts as above it, so that (least, most] is everything.
        left = 0 if low <= self.least else int(np.searchsorted(self._sorted, low, side="right"))
        right = int(np.searchsorted(self._sorted, high, side="right"))
        first, second, third = (float(part[max(left, right)] - part[left]) for part in self._sums)
        return first, second, third


@dataclass(frozen=True)
class Curve:
    """Prefill of one instance: `fixed_s` + `s_per_token` × tokens + `s_per_token2` × tokens²."""

    fixed_s: float
    s_per_token: float
    s_per_token2: float = 0.0

    @classmethod
    def through(cls, points: Sequence[tuple[float, float]]) -> Self:
        """Least squares through measured (tokens, seconds): a constant speed from one point, a line
        from two, a parabola from three.

        Raises `Misuse` without points, or if the fit falls with the length somewhere between them.
        """
        if not points:
            raise Misuse("needs at least one measured length", field="points")
        tokens = np.array([point[0] for point in points], dtype=np.float64)
        seconds = np.array([point[1] for point in points], dtype=np.float64)
        if (tokens <= 0).any() or (seconds <= 0).any():
            raise Misuse("tokens and seconds must be above 0", field="points")
        if len(points) == 1:
            return cls(0.0, float(seconds[0] / tokens[0]))
        terms = [float(one) for one in np.polyfit(tokens, seconds, min(2, len(points) - 1))[::-1]]
        curve = cls(terms[0], terms[1], terms[2] if len(terms) > 2 else 0.0)
        for end in (tokens.min(), tokens.max()):
            if curve.s_per_token + 2 * curve.s_per_token2 * end < 0:
                raise Misuse("longer prompts take less time in them", field="points")
        return curve

    def at(self, tokens: float) -> float:
        return self.fixed_s + self.s_per_token * tokens + self.s_per_token2 * tokens * tokens

    def mean(self, moments: tuple[float, float, float]) -> float:
        """Mean seconds of the prompts with these moments; 0 of none."""
        share, first, second = moments
        if share <= 0:
            return 0.0
        return self.fixed_s + (self.s_per_token * first + self.s_per_token2 * second) / share

    def scaled(self, factor: float, extra_s: float) -> "Curve":
        return Curve(
            factor * self.fixed_s + extra_s, factor * self.s_per_token, factor * self.s_per_token2
        )


def scaled_to(
    curve: Curve, lengths: Lengths, *, mean_s: float, share: float, share_s: float
) -> Curve:
    """The curve of slower or faster machines of which two figures are known: the mean prefill time
    of prompts of `lengths`, and the time that `share` of them don't exceed (0.9: P90).

    It is `curve` × a factor + a constant. Raises `Misuse` if no rising curve has both figures.
    """
    mean = curve.mean(lengths.moments(lengths.least, lengths.most))
    at_share = curve.at(quantile(lengths, share))
    if at_share <= mean or share_s <= mean_s:
        raise Misuse("must be above the mean", field="local_p90_s")
    factor = (share_s - mean_s) / (at_share - mean)
    found = curve.scaled(factor, mean_s - factor * mean)
    if found.at(lengths.least) <= 0:
        raise Misuse("the shortest prompt would take no time", field="local_p90_s")
    return found


def quantile(lengths: Lengths, share: float) -> float:
    """Length that `share` of the prompts don't exceed."""
    low, high = lengths.least, lengths.most
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if lengths.moments(0, middle)[0] < share else (low, middle)
    return high


@dataclass(frozen=True)
class Clusters:
    """`remote`, `local`: prefill of one instance. `kv_fixed_bytes` + `kv_bytes_per_token` × tokens
    is sent for a prompt. `decode_per_s`: requests/s that one decoding instance finishes. `link`:
    bytes/s. `baseline_instances`: machines like the local ones, without any remote ones."""

    remote: Curve
    local: Curve
    kv_fixed_bytes: float
    kv_bytes_per_token: float
    decode_per_s: float
    remote_instances: int
    local_instances: int
    baseline_instances: int
    link_bytes_per_s: float

    def __post_init__(self) -> None:
        for name, least in (
            ("remote_instances", 1), ("local_instances", 2), ("baseline_instances", 2),
        ):  # fmt: skip
            if getattr(self, name) < least:
                raise Misuse(f"needs at least {least}", field=name)
        for name in ("decode_per_s", "link_bytes_per_s"):
            if getattr(self, name) <= 0:
                raise Misuse("must be above 0", field=name)


@dataclass(frozen=True)
class Point:
    """Throughput at one threshold and split, in requests/s of the whole system that each part could
    sustain, and what they add up to."""

    threshold_tokens: float
    prefill_instances: int
    decode_instances: int
    offloaded: float  # share of requests
    long_tokens: float  # mean
    short_tokens: float
    remote_per_s: float  # whole requests/s if only the remote machines limited
    link_per_s: float
    local_per_s: float
    decode_per_s: float
    egress_bytes_per_s: float  # at `requests_per_s`
    prefill_mean_s: float  # of all prompts, without waiting or transfer

    @property
    def requests_per_s(self) -> float:
        return min(self.remote_per_s, self.link_per_s, self.local_per_s, self.decode_per_s)

    @property
    def limits(self) -> tuple[str, ...]:
        """Parts within 1 % of the least, the tightest first."""
        parts = {
            "remote prefill": self.remote_per_s,
            "link": self.link_per_s,
            "local prefill": self.local_per_s,
            "decode": self.decode_per_s,
        }
        least = self.requests_per_s
        tight = [name for name, rate in parts.items() if rate <= 1.01 * least]
        return tuple(sorted(tight, key=lambda name: parts[name]))


@dataclass(frozen=True)
class Baseline:
    """Machines of one kind: prompts of all lengths are computed by `prefill_instances`."""

    prefill_instances: int
    decode_instances: int
    requests_per_s: float


@dataclass(frozen=True)
class Answer:
    best: Point
    baseline: Baseline
    mean_tokens: float

    @property
    def gain(self) -> float:
        """1.5: half as many requests/s again."""
        return self.best.requests_per_s / self.baseline.requests_per_s

    def gain_at_equal_cost(self, remote_price: float, clusters: Clusters) -> float:
        """`remote_price`: of a remote instance, in local ones."""
        cost = remote_price * clusters.remote_instances + clusters.local_instances
        return self.gain * clusters.baseline_instances / cost


def point(
    clusters: Clusters,
    lengths: Lengths,
    threshold: float,
    prefill: int,
    *,
    by_each_length: bool = False,
) -> Point:
    """Throughput at one threshold and split. The paper takes the prefill time at the mean length;
    `by_each_length` takes the mean of the times of all lengths, which is longer."""
    above = lengths.moments(threshold, lengths.most)
    upto = lengths.moments(lengths.least, threshold)
    if threshold <= lengths.least:
        above, upto = lengths.moments(lengths.least, lengths.most), (0.0, 0.0, 0.0)
    long, short = _mean(above), _mean(upto)

    def busy(curve: Curve, part: tuple[float, float, float], mean: float) -> float:
        """Seconds of an instance for a request of the whole system."""
        return part[0] * (curve.mean(part) if by_each_length else curve.at(mean))

    sent = above[0] * (clusters.kv_fixed_bytes + clusters.kv_bytes_per_token * long)
    decode = clusters.local_instances - prefill
    found = Point(
        threshold_tokens=threshold,
        prefill_instances=prefill,
        decode_instances=decode,
        offloaded=above[0],
        long_tokens=long,
        short_tokens=short,
        remote_per_s=_rate(clusters.remote_instances, busy(clusters.remote, above, long)),
        link_per_s=_rate(clusters.link_bytes_per_s, sent),
        local_per_s=_rate(prefill, busy(clusters.local, upto, short)),
        decode_per_s=decode * clusters.decode_per_s,
        egress_bytes_per_s=0.0,
        prefill_mean_s=above[0] * clusters.remote.mean(above) + upto[0] * clusters.local.mean(upto),
    )
    return replace(found, egress_bytes_per_s=found.requests_per_s * sent)


def baseline(clusters: Clusters, lengths: Lengths, *, by_each_length: bool = False) -> Baseline:
    """The fastest split of `baseline_instances` local machines between prefill and decode."""
    whole = lengths.moments(lengths.least, lengths.most)
    each = clusters.local.mean(whole) if by_each_length else clusters.local.at(_mean(whole))

    def rate(prefill: int) -> float:
        decode = clusters.baseline_instances - prefill
        return min(prefill / each, decode * clusters.decode_per_s)

    best = max(range(1, clusters.baseline_instances), key=rate)
    return Baseline(best, clusters.baseline_instances - best, rate(best))


def solve(clusters: Clusters, lengths: Lengths, *, by_each_length: bool = False) -> Answer:
    """The fastest threshold and split. Cost: some 800 thresholds for each local instance."""

    # Without local prefill every prompt goes out: a threshold of 0.
    found = [point(clusters, lengths, 0.0, 0, by_each_length=by_each_length)]
    found += [
        best_threshold(clusters, lengths, prefill, by_each_length=by_each_length)
        for prefill in range(1, clusters.local_instances)
    ]
    return Answer(
        max(found, key=lambda one: one.requests_per_s),
        baseline(clusters, lengths, by_each_length=by_each_length),
        _mean(lengths.moments(lengths.least, lengths.most)),
    )


def best_threshold(
    clusters: Clusters, lengths: Lengths, prefill: int, *, by_each_length: bool = False
) -> Point:
    """The fastest threshold with `prefill` local instances. Cost: some 800 thresholds."""
    return _best(
        lambda tokens: point(clusters, lengths, tokens, prefill, by_each_length=by_each_length),
        lengths,
    )


def thresholds(
    clusters: Clusters, lengths: Lengths, prefill: int, *, count: int = 60
) -> list[Point]:
    """Points at evenly spaced thresholds up to the 90th percentile, for a figure."""
    high = quantile(lengths, 0.9)
    return [
        point(clusters, lengths, float(tokens), prefill)
        for tokens in np.linspace(lengths.least, high, count)
    ]


def _best(at: Callable[[float], Point], lengths: Lengths) -> Point:
    low, high = lengths.least, lengths.most
    best = at(low)
    for _ in range(1 + _REFINED):
        tried = [float(one) for one in np.geomspace(low, high, _GRID)]
        found = [at(tokens) for tokens in tried]
        place = max(range(_GRID), key=lambda n: found[n].requests_per_s)
        best = max(best, found[place], key=lambda one: one.requests_per_s)
        low, high = tried[max(0, place - 1)], tried[min(_GRID - 1, place + 1)]
    return best


def _rate(capacity: float, need: float) -> float:
    return capacity / need if need > 0 else math.inf


def _mean(moments: tuple[float, float, float]) -> float:
    return moments[1] / moments[0] if moments[0] > 0 else 0.0
