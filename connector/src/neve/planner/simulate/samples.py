"""Samples of real traffic: accesses of some block ids, chosen by a keyed hash, and exact totals.

A node samples a block if the keyed hash of its id is below `rate` × 2⁶⁴. So every access of a
sampled block is there, from whichever node of the tenant (spatial sampling), and the samples of a
lower rate are a part of those of a higher one. Published ids are keyed hashes: without the key they
do not lead back to block ids.

Rules: pure; no clock.
Source: Waldspurger et al., "Efficient MRC Construction with SHARDS", FAST'15.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import accumulate, pairwise
from typing import Any, Final

import numpy as np

from neve.errors import Misuse
from neve.formats.ids import ID_BYTES
from neve.planner.simulate.requests import BlockRequest

KEY_BYTES: Final = 32
LENGTH_CLASSES: Final = 24
MOST_BLOCKS: Final = (1 << LENGTH_CLASSES) - 1  # of one chain
LOWEST_RATE_LOG: Final = 12  # rates are 2⁻ⁿ for n = 0 … 12
LINES_VERSION: Final = 1


class IdSampler:
    """Chooses blocks by their ids. Immutable; about 0.1 µs a block and 1 µs a sampled one.

    The upper 16 bits of a published id decide whether it is sampled: a product of the block id with
    the key, since block ids are cryptographic hashes already. The other 48 bits are BLAKE2b's.
    """

    def __init__(self, key: bytes, *, rate_log: int) -> None:
        """Samples at the rate 2^-`rate_log`. Raises: Misuse."""
        if len(key) != KEY_BYTES:
            raise Misuse(f"need {KEY_BYTES} bytes, got {len(key)}", field="key")
        if not 0 <= rate_log <= LOWEST_RATE_LOG:
            raise Misuse(f"need 0 to {LOWEST_RATE_LOG}, got {rate_log}", field="rate_log")
        self.key = key
        self.rate_log = rate_log
        factors = np.frombuffer(blake2b(key, digest_size=16, person=b"neve.select").digest(), "<u8")
        self._factors = factors | np.uint64(1)
        self._bound = np.uint64(1 << (64 - rate_log)) if rate_log else None

    def choose(self, ids: bytes) -> list[tuple[int, int]]:
        """Of block ids, ID_BYTES each, one after the other: (index, published id) of each sampled
        one, ascending."""
        halves = np.frombuffer(ids, "<u8").reshape(-1, 2)
        mixed = halves[:, 0] * self._factors[0] + halves[:, 1] * self._factors[1]  # modulo 2⁶⁴
        chosen = range(len(mixed)) if self._bound is None else np.flatnonzero(mixed < self._bound)
        return [
            (int(n), self._published(ids[n * ID_BYTES : (n + 1) * ID_BYTES], int(mixed[n])))
            for n in chosen
        ]

    def _published(self, id_: bytes, mixed: int) -> int:
        tail = blake2b(id_, key=self.key, digest_size=6, person=b"neve.sample").digest()
        return mixed >> 48 << 48 | int.from_bytes(tail, "little")


def is_within(published: int, rate_log: int) -> bool:
    """Whether a sampled id belongs to the samples of the rate 2^-`rate_log`."""
    return published >> (64 - rate_log) == 0


@dataclass(frozen=True, slots=True)
class SampledRequest:
    """A request with at least one sampled block.

    `asked_blocks`: all blocks of its chain, sampled or not. `places`: index of each sampled block
    in the chain, ascending from 0; `ids`: its published id.
    """

    at_s: float
    asked_blocks: int
    places: tuple[int, ...]
    ids: tuple[int, ...]
    block_bytes: int = 1
    space: str = ""


def _none() -> tuple[int, ...]:
    return (0,) * LENGTH_CLASSES


@dataclass(frozen=True)
class Totals:
    """Of all requests, sampled or not, by length: class k has chains of 2ᵏ … 2ᵏ⁺¹-1 blocks."""

    requests: tuple[int, ...] = field(default_factory=_none)
    blocks: tuple[int, ...] = field(default_factory=_none)

    @classmethod
    def of(cls, lengths: Iterable[int]) -> "Totals":
        """Of requests of so many blocks each; 0 counts nothing, more than MOST_BLOCKS as these."""
        requests, blocks = [0] * LENGTH_CLASSES, [0] * LENGTH_CLASSES
        for length in lengths:
            if length > 0:
                capped = min(length, MOST_BLOCKS)
                requests[capped.bit_length() - 1] += 1
                blocks[capped.bit_length() - 1] += capped
        return cls(tuple(requests), tuple(blocks))

    @property
    def asked_blocks(self) -> int:
        return sum(self.blocks)

    def beyond(self, place_log: int) -> int:
        """Accesses of blocks at index 2^`place_log` of their chain or later."""
        return sum(self.blocks[place_log:]) - sum(self.requests[place_log:]) * (1 << place_log)

    def __add__(self, other: "Totals") -> "Totals":
        return Totals(
            tuple(a + b for a, b in zip(self.requests, other.requests, strict=True)),
            tuple(a + b for a, b in zip(self.blocks, other.blocks, strict=True)),
        )


@dataclass(frozen=True)
class Samples:
    """A window of one tenant's samples, all at the rate 2^-`rate_log`, in order of time."""

    rate_log: int
    requests: Sequence[SampledRequest]
    totals: Totals

    @property
    def rate(self) -> float:
        return 2.0**-self.rate_log

    def at(self, rate_log: int) -> "Samples":
        """The samples of a lower rate among these. Raises: Misuse for a higher rate."""
        if rate_log < self.rate_log:
            raise Misuse(f"need at least {self.rate_log}, got {rate_log}", field="rate_log")
        if rate_log == self.rate_log:
            return self
        kept = (thinned(each, lambda id_: is_within(id_, rate_log)) for each in self.requests)
        return Samples(rate_log, [each for each in kept if each is not None], self.totals)

    def as_requests(self) -> Iterator[BlockRequest]:
        """The sampled blocks only, for a simulation whose capacities are × `rate`."""
        return (BlockRequest(each.ids, each.at_s) for each in self.requests)


def thinned(request: SampledRequest, keep: Callable[[int], bool]) -> SampledRequest | None:
    """The request with the sampled blocks for which `keep(id)` is true; None without any."""
    kept = [pair for pair in zip(request.places, request.ids, strict=True) if keep(pair[1])]
    if not kept:
        return None
    places, ids = zip(*kept, strict=True)
    return SampledRequest(
        request.at_s, request.asked_blocks, places, ids, request.block_bytes, request.space
    )


def joined(parts: Sequence[Samples]) -> Samples:
    """Samples of several nodes or times as one window, at the lowest of their rates.

    Raises: Misuse without any part.
    """
    if not parts:
        raise Misuse("no samples in this window", field="samples")
    rate_log = max(part.rate_log for part in parts)
    requests = [each for part in parts for each in part.at(rate_log).requests]
    requests.sort(key=lambda each: each.at_s)
    totals = list(accumulate((part.totals for part in parts), Totals.__add__))[-1]
    return Samples(rate_log, requests, totals)


def sample(requests: Iterable[BlockRequest], *, rate_log: int, key: bytes) -> Samples:
    """Samples a whole trace at the rate 2^-`rate_log`, as nodes do with real traffic."""
    sampler = IdSampler(key, rate_log=rate_log)
    published: dict[int, int | None] = {}
    found, lengths = [], []
    for request in requests:
        lengths.append(len(request.ids))
        new = [id_ for id_ in request.ids if id_ not in published]
        published.update(dict.fromkeys(new))
        chosen = sampler.choose(b"".join(map(block_id, new)))
        published.update({new[n]: id_ for n, id_ in chosen})
        every = enumerate(map(published.__getitem__, request.ids))
        kept = [(n, id_) for n, id_ in every if id_ is not None]
        if kept:
            places, ids = zip(*kept, strict=True)
            found.append(SampledRequest(request.at_s, len(request.ids), places, ids))
    return Samples(rate_log, found, Totals.of(lengths))


def block_id(number: int) -> bytes:
    """A block id as nodes have them, for the number of a block in a trace."""
    return blake2b(number.to_bytes(16, "little", signed=True), digest_size=ID_BYTES).digest()


def write_lines(samples: Samples, about: Mapping[str, Any] | None = None) -> Iterator[str]:
    """JSON Lines: a header {"neve_samples": 1, "rate_log", "totals", …`about`}, then a request a
    line: {"timestamp": ms, "asked_blocks", "places", "hash_ids", "block_bytes", "space"}."""
    totals = {"requests": samples.totals.requests, "blocks": samples.totals.blocks}
    header = {"neve_samples": LINES_VERSION, "rate_log": samples.rate_log, "totals": totals}
    yield json.dumps({**header, **(about or {})}, separators=(",", ":")) + "\n"
    for each in samples.requests:
        line = {
            "timestamp": round(each.at_s * 1000),
            "asked_blocks": each.asked_blocks,
            "places": each.places,
            "hash_ids": each.ids,
            "block_bytes": each.block_bytes,
            "space": each.space,
        }
        yield json.dumps(line, separators=(",", ":")) + "\n"


def read_lines(lines: Iterable[str]) -> Samples:
    """Reads the lines of `write_lines`. Raises: Misuse with the line's number and what is wrong."""
    requests: list[SampledRequest] = []
    header: tuple[int, Totals] | None = None
    for number, text in enumerate(lines, 1):
        if not text.strip():
            continue
        try:
            line = json.loads(text)
            if header is None:
                header = _header(line)
            else:
                requests.append(_request(line))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            words = f"needs {error}" if isinstance(error, KeyError) else str(error)
            raise Misuse(f"line {number}: {words}", field="samples") from error
    if header is None:
        raise Misuse('need a first line with "neve_samples"', field="samples")
    return Samples(header[0], requests, header[1])


def _header(line: Mapping[str, Any]) -> tuple[int, Totals]:
    if line["neve_samples"] != LINES_VERSION:
        raise ValueError(f"need version {LINES_VERSION}, got {line['neve_samples']!r}")
    rate_log, totals = line["rate_log"], line["totals"]
    if type(rate_log) is not int or not 0 <= rate_log <= LOWEST_RATE_LOG:
        raise ValueError(f"rate_log: need 0 to {LOWEST_RATE_LOG}, got {rate_log!r}")
    counts = [_whole(totals[name], name) for name in ("requests", "blocks")]
    if any(len(each) != LENGTH_CLASSES for each in counts):
        raise ValueError(f"totals: need {LENGTH_CLASSES} numbers each")
    return rate_log, Totals(*counts)


def _request(line: Mapping[str, Any]) -> SampledRequest:
    places, ids = _whole(line["places"], "places"), _whole(line["hash_ids"], "hash_ids")
    asked = line["asked_blocks"]
    if type(asked) is not int or not ids or len(places) != len(ids):
        raise ValueError("need asked_blocks, and as many places as hash_ids")
    if any(a >= b for a, b in pairwise(places)) or places[-1] >= asked:
        raise ValueError("places: need ascending numbers below asked_blocks")
    at_s, block_bytes = float(line["timestamp"]) / 1000, int(line.get("block_bytes", 1))
    return SampledRequest(at_s, asked, places, ids, block_bytes, str(line.get("space", "")))


def _whole(numbers: Any, name: str) -> tuple[int, ...]:
    if not isinstance(numbers, list) or any(type(n) is not int or n < 0 for n in numbers):
        raise ValueError(f"{name}: need whole numbers")
    return tuple(numbers)
