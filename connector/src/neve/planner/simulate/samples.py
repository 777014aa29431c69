"""Samples of real traffic: accesses of some block ids, chosen by a keyed hash, and exact totals.

A node samples an id if its keyed hash is below `rate` × 2⁶⁴, so that all accesses of a sampled id
are there, from every node of the tenant (spatial sampling). Ids are the keyed hashes themselves:
they cannot be turned back into block ids or prompts.

Source: Waldspurger et al., "Efficient MRC Construction with SHARDS", FAST'15.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from neve.errors import Misuse
from neve.planner.simulate.requests import BlockRequest

LENGTH_CLASSES: Final = 24  # a chain has fewer than 2²⁴ blocks


@dataclass(frozen=True, slots=True)
class SampledRequest:
    """A request with at least one sampled block.

    `asked_blocks`: all blocks of its chain, sampled or not. `places`: index of each sampled block
    in the chain, ascending from 0; `ids`: its keyed id, below 2⁶⁴.
    """

    at_s: float
    asked_blocks: int
    places: tuple[int, ...]
    ids: tuple[int, ...]
    block_bytes: int = 1
    space: str = ""


@dataclass(frozen=True)
class Totals:
    """Of all requests, sampled or not, by length: class k has chains of 2ᵏ … 2ᵏ⁺¹-1 blocks."""

    requests: tuple[int, ...] = (0,) * LENGTH_CLASSES
    blocks: tuple[int, ...] = (0,) * LENGTH_CLASSES

    @property
    def asked_blocks(self) -> int:
        return sum(self.blocks)


@dataclass(frozen=True)
class Samples:
    """A window of one tenant's samples, all at one `rate` (0 < rate ≤ 1), in order of time."""

    rate: float
    requests: Sequence[SampledRequest]
    totals: Totals = field(default_factory=Totals)

    def as_requests(self) -> Iterator[BlockRequest]:
        """The sampled blocks only, for a simulation whose capacities are × `rate`."""
        return (BlockRequest(each.ids, each.at_s) for each in self.requests)


def sample(requests: Iterable[BlockRequest], *, rate: float, key: bytes) -> Samples:
    """Samples a whole trace, as nodes do with real traffic."""
    raise Misuse("not there yet")


def read_lines(lines: Iterable[str]) -> Samples:
    """Reads the JSON Lines of `write_lines`. Raises: Misuse with the line's number."""
    raise Misuse("not there yet")


def write_lines(samples: Samples, about: dict[str, Any] | None = None) -> Iterator[str]:
    """A header {"neve_samples": 1, "rate", "totals"} and a line per request: {"timestamp" (ms),
    "asked_blocks", "places", "hash_ids", "block_bytes", "space"}."""
    raise Misuse("not there yet")
