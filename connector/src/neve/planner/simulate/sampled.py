"""Estimates from samples of traffic: the whole LRU curve, or any simulated setting, with errors.

Sampled blocks are simulated with capacities × rate (SHARDS). Hits follow from three facts:

1. Misses are counted, not hits, and the exact number of asked blocks is known (SHARDS-adj). So a
   block of every request, such as a system prompt's first one, counts alike whether it is sampled
   or not: it hardly ever misses.
2. A request hits a prefix. If its first sampled miss is block p of n, then p and all n-p-1 blocks
   behind it are misses, and 1/rate - 1 before it on average: the sampling is geometric, so the sum
   over requests is unbiased, and less scattered than counts of sampled misses.
3. The same estimate of all blocks beyond a place, instead of the missed ones, is compared with
   their exact number; that error, times a regression's slope, corrects the misses. The place lies
   behind blocks that many requests share.

The error is that of a jackknife over groups of ids: it includes the simulation. It does not know
whether traffic changes after the window.

Sources: Waldspurger et al., FAST'15 (SHARDS); Särndal et al., Model Assisted Survey Sampling,
section 6.4 (regression estimator); Wolter, Introduction to Variance Estimation, chapter 4.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
import numpy.typing as npt

from neve.errors import Misuse
from neve.formats.samples import SampledRequest, Totals
from neve.planner.simulate.curve import Stack
from neve.planner.simulate.requests import BlockRequest
from neve.planner.simulate.samples import Samples, thinned

GROUPS: Final = 16  # of ids, each left out once
_HEAD_LOGS: Final = range(10)  # the regression is on blocks from place 1, 2, 4, … or 512 on
# Blocks at places 2ⁿ … 2ⁿ⁺¹-1 that are missing beyond so many of their standard errors are taken
# for blocks of many requests which happen not to be sampled: they correct nothing. The regression
# begins behind places where they are CLEARLY missing.
_MISSING: Final = 2.0
_CLEARLY: Final = 4.0
_LEAST_CLUSTERS: Final = 20

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Estimate:
    """`hit_rate`: hits ÷ blocks asked for, 0 to 1. `error`: its standard error; about two thirds of
    truths lie within one, 95 % within two. `tiers`: hits of each tier ÷ blocks asked for.

    `without`: the same hit rate with a group of ids left out, for errors of differences.
    """

    hit_rate: float
    error: float
    rate: float
    tiers: tuple[float, ...] = ()
    without: tuple[float, ...] = ()

    def gain_over(self, other: "Estimate") -> tuple[float, float]:
        """Returns (difference of the hit rates, its standard error). Both are of the same samples,
        so the difference is more certain than each of them."""
        pairs = zip(self.without, other.without, strict=True)
        differences = [mine - its for mine, its in pairs]
        return self.hit_rate - other.hit_rate, _error(differences, self.rate)


@dataclass(frozen=True)
class _Beyond:
    """Blocks from one place on. Requests with the same first sampled block there are a cluster:
    their estimates err together. `sums`: estimated blocks by cluster; `squares`: of the sums;
    `gap`: exact - estimated blocks of all requests."""

    cluster: Ints  # by request
    sums: Floats
    squares: float
    gap: float


class _View:
    """Sampled accesses as arrays; those of one request lie together, first to last."""

    def __init__(self, requests: Sequence[SampledRequest], totals: Totals, rate: float) -> None:
        self.requests = requests
        self.rate = rate
        self.totals = totals
        counts = np.array([len(each.ids) for each in requests], dtype=np.int64)
        self.starts: Ints = np.cumsum(counts) - counts
        self._asked = np.array([each.asked_blocks for each in requests], dtype=np.int64)
        self._of: Ints = np.repeat(np.arange(len(requests)), counts)
        self._places = np.array([n for each in requests for n in each.places], dtype=np.int64)
        ids = np.array([n for each in requests for n in each.ids], dtype=np.uint64)
        unique, numbers = np.unique(ids, return_inverse=True)
        self._ids: Ints = numbers.astype(np.int64)
        self._most = len(unique)
        self._cluster: Ints = self._ids[self.starts]
        shared = [self._shared(log) for log in _HEAD_LOGS]
        first = max((log + 1 for log, found in enumerate(shared) if found is None), default=0)
        beyond = [self._beyond(log, sum(filter(None, shared[log:]))) for log in _HEAD_LOGS[first:]]
        self._beyonds = [each for each in beyond if each is not None]

    def missed_blocks(self, missed: Bools) -> float:
        """Estimate for all requests. `missed`: by access; the first miss of a request counts."""
        asked = self.totals.asked_blocks
        estimated = self._behind(self._firsts(missed))
        correction, least = 0.0, float((self._sums(self._cluster, estimated) ** 2).sum())
        for each in self._beyonds:
            sums = self._sums(each.cluster, estimated)
            slope = float((sums * each.sums).sum()) / each.squares
            rest = float(((sums - slope * each.sums) ** 2).sum())
            if rest < least:
                correction, least = slope * each.gap, rest
        return min(float(asked), max(float(missed.sum()), float(estimated.sum()) + correction))

    def _sums(self, cluster: Ints, values: Floats) -> Floats:
        """Sums of requests' values by their cluster."""
        return np.bincount(cluster, weights=values, minlength=self._most).astype(np.float64)

    def _firsts(self, chosen: Bools) -> Ints:
        """The first chosen access of each request that has one."""
        found = np.flatnonzero(chosen)
        of = self._of[found]
        return found[np.r_[True, of[1:] != of[:-1]]] if len(found) else found

    def _behind(self, firsts: Ints) -> Floats:
        """By request: blocks behind its first chosen one, and those before that, see above."""
        of = self._of[firsts]
        values = np.zeros(len(self._asked))
        values[of] = self._asked[of] - self._places[firsts] - 1 + 1 / self.rate
        return values

    def _shared(self, place_log: int) -> float | None:
        """Accesses at places 2ⁿ … 2ⁿ⁺¹-1 of blocks of many requests that are not sampled, as far
        as chance does not explain them; None: clearly there are some."""
        there = (self._places >= 1 << place_log) & (self._places < 2 << place_log)
        accesses = np.bincount(self._ids[there], minlength=1).astype(np.float64)
        exact = self.totals.beyond(place_log) - self.totals.beyond(place_log + 1)
        missing = exact * self.rate - float(accesses.sum())
        error = max(1.0, float((accesses**2).sum()) ** 0.5)
        if missing > _CLEARLY * error:
            return None
        return float(max(0.0, missing - _MISSING * error) / self.rate)

    def _beyond(self, place_log: int, shared: float) -> _Beyond | None:
        firsts = self._firsts(self._places >= 1 << place_log)
        estimated = self._behind(firsts)
        cluster = self._cluster.copy()
        cluster[self._of[firsts]] = self._ids[firsts]
        sums = self._sums(cluster, estimated)
        squares = float((sums**2).sum())
        gap = self.totals.beyond(place_log) - shared - float(estimated.sum())
        if np.count_nonzero(sums) < _LEAST_CLUSTERS:
            return None
        return _Beyond(cluster, sums, squares, gap)


def _whole(samples: Samples) -> _View:
    """Raises: Misuse without samples."""
    if not samples.requests or not samples.totals.asked_blocks:
        raise Misuse("no samples in this window", field="samples")
    return _View(samples.requests, samples.totals, samples.rate)


def _rests(samples: Samples) -> Iterator[_View]:
    """The samples without each group of ids; of too few samples, none."""
    if len(samples.requests) < GROUPS:
        return
    for group in range(GROUPS):
        kept = (thinned(each, partial(_is_not_of, group)) for each in samples.requests)
        rest = [each for each in kept if each is not None]
        if rest:  # one block may be all there is
            yield _View(rest, samples.totals, samples.rate * (1 - 1 / GROUPS))


def _is_not_of(group: int, id_: int) -> bool:
    return id_ % GROUPS != group


def _error(without: Sequence[float], rate: float) -> float:
    """Standard error, from values that each lack one group; as good as unknown if they are few."""
    if len(without) < GROUPS:
        return float((1 - rate) ** 0.5)
    values = np.array(without)
    count = len(values)
    spread = (count - 1) / count * float(((values - values.mean()) ** 2).sum())
    return float((spread * (1 - rate)) ** 0.5)


class Curve:
    """The LRU hit rate at every capacity."""

    def __init__(self, samples: Samples) -> None:
        self.rate = samples.rate
        self._samples = samples
        self._whole = _whole(samples)
        self._needs = _needs(self._whole)
        self._rests: list[tuple[_View, Floats]] | None = None  # made when an error is wanted

    def hit_rate(self, capacity_blocks: int | None) -> float:
        """None: unlimited. Raises: Misuse for a capacity below 1."""
        return _hit_rate(self._whole, self._needs, capacity_blocks)

    def error(self, capacity_blocks: int | None) -> float:
        """Standard error of `hit_rate`."""
        return self.estimate(capacity_blocks).error

    def estimate(self, capacity_blocks: int | None) -> Estimate:
        """Raises: Misuse for a capacity below 1."""
        hit_rate = self.hit_rate(capacity_blocks)
        if self._rests is None:
            self._rests = [(view, _needs(view)) for view in _rests(self._samples)]
        without = [_hit_rate(view, needs, capacity_blocks) for view, needs in self._rests]
        error = _error(without, self.rate)
        return Estimate(hit_rate, error, self.rate, (hit_rate,), tuple(without))


def _hit_rate(view: _View, needs: Floats, capacity_blocks: int | None) -> float:
    if capacity_blocks is not None and capacity_blocks < 1:
        raise Misuse(f"need at least 1, got {capacity_blocks}", field="capacity_blocks")
    most = np.finfo(np.float64).max if capacity_blocks is None else capacity_blocks
    return 1 - view.missed_blocks(needs > most) / view.totals.asked_blocks


def _needs(view: _View) -> Floats:
    """By access: the capacity in blocks from which on it is a hit; infinite for a new block."""
    stack, needs = Stack(), []
    for request in view.requests:
        most = 1.0
        for id_ in request.ids:
            need = stack.need(id_)
            most = max(most, float("inf") if need is None else (need - 1) / view.rate + 1)
            needs.append(most)
        for id_ in request.ids:
            stack.use(id_, 1)
    return np.array(needs)


def curve(samples: Samples) -> Curve:
    """The LRU curve. Raises: Misuse without samples."""
    return Curve(samples)


# Plays requests of sampled blocks on tiers whose capacities are × the given rate. Answers, for each
# request in order, its hit blocks by tier; together they are a prefix of the request.
Play = Callable[[Sequence[BlockRequest], float], Sequence[Sequence[int]]]


def estimate(samples: Samples, play: Play) -> Estimate:
    """The hit rate of any simulated setting. Calls `play` GROUPS + 1 times, for the error.

    Raises: Misuse without samples.
    """
    hit_rate, tiers = _played(_whole(samples), play)
    without = tuple(_played(view, play)[0] for view in _rests(samples))
    return Estimate(hit_rate, _error(without, samples.rate), samples.rate, tiers, without)


def _played(view: _View, play: Play) -> tuple[float, tuple[float, ...]]:
    requests = [BlockRequest(each.ids, each.at_s) for each in view.requests]
    hits = np.array(play(requests, view.rate), dtype=np.int64).reshape(len(requests), -1)
    prefix = hits.sum(axis=1)
    missed = np.zeros(sum(len(each.ids) for each in requests), dtype=np.bool_)
    lengths = np.array([len(each.ids) for each in requests])
    has_miss = prefix < lengths
    missed[view.starts[has_miss] + prefix[has_miss]] = True
    hit_rate = 1 - view.missed_blocks(missed) / view.totals.asked_blocks
    by_tier = hits.sum(axis=0)
    shares = by_tier / max(1, int(by_tier.sum()))
    return hit_rate, tuple(float(share * hit_rate) for share in shares)
