"""Windows of samples of traffic, and their JSON Lines. `neve.formats.samples` says what is sampled.

Rules: pure; no clock.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import pairwise
from typing import Any, Final

from neve.errors import Misuse
from neve.formats.ids import ID_BYTES
from neve.formats.samples import (
    LENGTH_CLASSES,
    LOWEST_RATE_LOG,
    MOST_BLOCKS,
    MOST_COUNT,
    IdSampler,
    SampledRequest,
    Totals,
)
from neve.planner.simulate.requests import BlockRequest

LINES_VERSION: Final = 1
MOST_MS: Final = 1e15  # of a time


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
        return Samples(rate_log, _within(self.requests, rate_log), self.totals)

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


def gathered(parts: Iterable[Samples], *, most_accesses: int) -> Samples:
    """Samples of several nodes or times as one window, at the lowest of their rates.

    Holds at most `most_accesses` sampled accesses: of more, the rate is halved as often as needed.
    The first part that is too much even at the lowest rate, and those behind it, are left out.
    """
    rate_log, count, totals = 0, 0, Totals()
    requests: list[SampledRequest] = []
    for part in parts:
        more = list(part.requests)
        lowered = max(rate_log, part.rate_log)
        while True:
            if lowered > rate_log:
                requests, rate_log = _within(requests, lowered), lowered
                count = _accesses(requests)
            more = _within(more, rate_log)
            if count + _accesses(more) <= most_accesses or rate_log == LOWEST_RATE_LOG:
                break
            lowered = rate_log + 1
        if count + _accesses(more) > most_accesses:
            break
        requests += more
        count += _accesses(more)
        totals += part.totals
    requests.sort(key=lambda each: each.at_s)
    return Samples(rate_log, requests, totals)


def _within(requests: Iterable[SampledRequest], rate_log: int) -> list[SampledRequest]:
    kept = (each.within(rate_log) for each in requests)
    return [each for each in kept if each is not None]


def _accesses(requests: Iterable[SampledRequest]) -> int:
    return sum(len(each.ids) for each in requests)


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
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
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
    at_ms, block_bytes = line["timestamp"], line.get("block_bytes", 0)
    if type(at_ms) not in (int, float) or not 0 <= at_ms <= MOST_MS:
        raise ValueError(f"timestamp: need milliseconds from 0 to {MOST_MS:g}")
    if not (asked <= MOST_BLOCKS and max(ids) < 2**64):
        raise ValueError(f"need at most {MOST_BLOCKS} asked_blocks, and hash_ids below 2⁶⁴")
    if type(block_bytes) is not int or not 0 <= block_bytes <= MOST_COUNT:
        raise ValueError("block_bytes: need a whole number")
    return SampledRequest(at_ms / 1000, asked, places, ids, block_bytes, str(line.get("space", "")))


def _whole(numbers: Any, name: str) -> tuple[int, ...]:
    if not isinstance(numbers, list) or any(type(n) is not int or n < 0 for n in numbers):
        raise ValueError(f"{name}: need whole numbers")
    return tuple(numbers)
