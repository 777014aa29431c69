"""Estimates from samples of traffic: the whole LRU curve, or any simulated setting, with errors."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from neve.errors import Misuse
from neve.planner.simulate.requests import BlockRequest
from neve.planner.simulate.samples import Samples


@dataclass(frozen=True)
class Estimate:
    """`hit_rate`: hits ÷ blocks asked for, 0 to 1. `error`: its standard error. `tiers`: share of
    hits ÷ blocks asked for by tier, in the order of the simulation's answer."""

    hit_rate: float
    error: float
    tiers: tuple[float, ...] = ()


class Curve:
    """The LRU hit rate at every capacity in blocks."""

    def hit_rate(self, capacity_blocks: int | None) -> float:
        """None: unlimited. Raises: Misuse for a capacity below 1."""
        return self.estimate(capacity_blocks).hit_rate

    def error(self, capacity_blocks: int | None) -> float:
        """Standard error of `hit_rate`."""
        return self.estimate(capacity_blocks).error

    def estimate(self, capacity_blocks: int | None) -> Estimate:
        raise Misuse("not there yet")


def curve(samples: Samples) -> Curve:
    """The LRU curve. Raises: Misuse without samples."""
    raise Misuse("not there yet")


# Plays requests of sampled blocks on tiers whose capacities are × the given rate. Answers, for each
# request, its hit blocks by tier.
Play = Callable[[Sequence[BlockRequest], float], Sequence[Sequence[int]]]


def estimate(samples: Samples, play: Play) -> Estimate:
    """The hit rate of any simulated setting. Calls `play` a few times, for the error."""
    raise Misuse("not there yet")
