"""The speeds that nodes measured, as one: the median of each, or the mean of a link's seconds.

Heartbeats carry them by the names of `neve.node.stats.SPEEDS`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import harmonic_mean, median
from typing import Final

from neve.index.tier import Tier
from neve.planner.breakeven import Prefill, Store


@dataclass(frozen=True)
class Speeds:
    """`prefill`: None before a node measured it; likewise `stores` have measured tiers only.
    `nodes`: how many measured anything."""

    prefill: Prefill | None = None
    stores: Mapping[Tier, Store] = field(default_factory=dict)
    nodes: int = 0


LEAST: Final = 1e-18  # of a speed; what is less is none: quotients would be infinite


def measured(node: Mapping[str, float], name: str) -> float | None:
    """A speed of a node, which may be hostile; None if it has none."""
    value = node.get(name)
    return None if value is None or 0 < value < LEAST else value


def medians(nodes: Sequence[Mapping[str, float]]) -> Speeds:
    """`nodes`: what each measured. A speed that a node lacks is the median of the others'."""

    def middle(name: str) -> float:
        each = (measured(node, name) for node in nodes)
        known = [value for value in each if value is not None]
        return median(known) if known else 0.0

    prefill = Prefill(middle("prefill_s_per_token"), middle("prefill_s_per_pair"))
    stores = {
        tier: Store(bytes_per_s, middle(f"{tier}_round_trip_s"))
        for tier in Tier
        if (bytes_per_s := middle(f"{tier}_bytes_per_s")) > 0
    }
    is_known = prefill.s_per_token > 0 or prefill.s_per_pair > 0
    return Speeds(prefill if is_known else None, stores, sum(bool(node) for node in nodes))


def mean_bytes_per_s(nodes: Sequence[Mapping[str, float]], tier: Tier) -> float | None:
    """Speed of a tier at which a byte takes as long as at the mean of the nodes that measured it.

    Their harmonic mean: nodes behind a slow link are not outvoted by many near the tier, since what
    they wait is most of all waiting. None: no node measured it.
    """
    each = [measured(node, f"{tier.value}_bytes_per_s") for node in nodes]
    known = [value for value in each if value]
    return harmonic_mean(known) if known else None
