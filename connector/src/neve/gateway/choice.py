"""Which node gets a request: the one that holds its prefix, unless it is too busy. Pure.

Source: SGLang's router, sgl-router/src/policies/cache_aware.rs: by prefix while loads are
balanced, to the shortest queue once (max - min) > an absolute threshold and max > a relative one
times min. Here the holder stands in for the maximum, so that a third node's queue does not matter.
Preble (arXiv 2407.00023, E2) weighs the same way: exploit a cached prefix while it is the larger
part of the prompt, else explore.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from neve.errors import Misuse
from neve.gateway.nodes import Load


@dataclass(frozen=True)
class Margin:
    """How much more the holder may have to do than the least loaded node.

    `requests`: in flight, beyond the least loaded node's. `ratio`: of both nodes' requests; the
    holder is left only if both are exceeded. `stored_requests`: in place of `requests` for a
    prefix that Neve holds: any node loads it instead of computing it, so leaving costs less.
    `least_share`: a prefix below this share of the prompt does not bind.
    """

    requests: int = 8
    ratio: float = 1.5
    stored_requests: int = 4
    least_share: float = 0.1

    def __post_init__(self) -> None:
        if self.requests < 0:
            raise Misuse(f"{self.requests} is below 0", field="requests")
        if self.stored_requests < 0:
            raise Misuse(f"{self.stored_requests} is below 0", field="stored_requests")
        if self.ratio < 1:
            raise Misuse(f"{self.ratio:g} is below 1", field="ratio")
        if not 0 <= self.least_share <= 1:
            raise Misuse(f"{self.least_share:g} is not from 0 to 1", field="least_share")


@dataclass(frozen=True)
class Choice:
    """`reason`: holder (it has the longest prefix), load (the holder is too busy), new (nobody
    holds a prefix worth it), only (there was no choice)."""

    node: str
    reason: str


def choose(
    loads: Mapping[str, Load],
    held: Mapping[str, int],
    pieces: int,
    *,
    is_stored: bool = False,
    margin: Margin = Margin(),
) -> Choice:
    """Chooses among the nodes of `loads`, at least one.

    Args:
        held: how many leading pieces of the prompt a node holds; names beyond `loads` are ignored.
        pieces: of the whole prompt.
        is_stored: Neve holds at least as much as any node.
    """
    if not loads:
        raise Misuse("no node to choose from", field="loads")
    least = _least_loaded(list(loads), loads)
    if len(loads) == 1:
        return Choice(least, "only")
    most = max((held.get(name, 0) for name in loads), default=0)
    if not most or most < margin.least_share * pieces:
        return Choice(least, "new")
    holders = [name for name in loads if held.get(name, 0) == most]
    holder = _least_loaded(holders, loads)
    busy, idle = loads[holder].in_flight, loads[least].in_flight
    allowed = margin.stored_requests if is_stored else margin.requests
    if busy - idle > allowed and busy > margin.ratio * idle:
        return Choice(least, "load")
    return Choice(holder, "holder")


def _least_loaded(names: Sequence[str], loads: Mapping[str, Load]) -> str:
    """Of equals, the one whose turn is longest ago."""
    return min(names, key=lambda name: (loads[name].in_flight, loads[name].turn, name))
