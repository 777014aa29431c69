"""Samples of block accesses: which ids are sampled, and the bytes of a heartbeat's batch.

A node samples a block if the keyed hash of its id is below `rate` × 2⁶⁴. So every access of a
sampled block is there, from whichever node of the tenant (spatial sampling), and the samples of a
lower rate are a part of those of a higher one. Published ids are keyed hashes: without the key they
do not lead back to block ids. Neither tokens nor names of requests are there.

A batch, version 1; `v` is an unsigned LEB128 of up to 9 bytes:

    u8 version   u8 rate_log   v block_bytes (0: unknown)   v dropped
    v classes,   for each: v class   v requests   v blocks          exact totals, see `Totals`
    v requests,  for each, in order of time:
        v ms     the first: before the sending; others: after the one before
        v asked_blocks   v sampled blocks
        v places, each less the one before (the first: itself)
        u64 ids, little-endian

Source: Waldspurger et al., "Efficient MRC Construction with SHARDS", FAST'15.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Final

import numpy as np

from neve.errors import Corrupt, Misuse
from neve.formats.ids import ID_BYTES

KEY_BYTES: Final = 32
LENGTH_CLASSES: Final = 24
MOST_BLOCKS: Final = (1 << LENGTH_CLASSES) - 1  # of one chain
LOWEST_RATE_LOG: Final = 12  # rates are 2⁻ⁿ for n = 0 … 12
VERSION: Final = 1
MOST_BATCH_BYTES: Final = 24 << 10
MOST_AGE_S: Final = 3600.0
MOST_COUNT: Final = 2**53
_PUBLISHED_BYTES: Final = 8


class IdSampler:
    """Chooses blocks by their ids. Immutable.

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

    `asked_blocks`: all blocks that it asked for, sampled or not. `places`: index of each sampled
    block among them, ascending from 0; `ids`: its published id. `block_bytes` 0: unknown.
    """

    at_s: float
    asked_blocks: int
    places: tuple[int, ...]
    ids: tuple[int, ...]
    block_bytes: int = 0
    space: str = ""

    def within(self, rate_log: int) -> "SampledRequest | None":
        """The request as of the rate 2^-`rate_log`; None without a sampled block."""
        pairs = zip(self.places, self.ids, strict=True)
        kept = [(place, id_) for place, id_ in pairs if is_within(id_, rate_log)]
        if not kept:
            return None
        places, ids = zip(*kept, strict=True)
        return replace(self, places=places, ids=ids)


def _none() -> tuple[int, ...]:
    return (0,) * LENGTH_CLASSES


@dataclass(frozen=True)
class Totals:
    """Of all requests, sampled or not, by length: class k asked for 2ᵏ … 2ᵏ⁺¹-1 blocks."""

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
        """Accesses of blocks at index 2^`place_log` of their request or later."""
        return sum(self.blocks[place_log:]) - sum(self.requests[place_log:]) * (1 << place_log)

    def __add__(self, other: "Totals") -> "Totals":
        return Totals(
            tuple(a + b for a, b in zip(self.requests, other.requests, strict=True)),
            tuple(a + b for a, b in zip(self.blocks, other.blocks, strict=True)),
        )


@dataclass(frozen=True)
class Batch:
    """Samples of one node between two heartbeats. Times are relative to the sending: at most 0.

    `dropped`: requests that were lost on the node. Lowering the rate loses none.
    """

    rate_log: int
    requests: Sequence[SampledRequest]
    totals: Totals
    block_bytes: int = 0
    dropped: int = 0

    def encode(self) -> bytes:
        """Raises: Misuse for more than MOST_BATCH_BYTES."""
        out = bytearray((VERSION, self.rate_log))
        _put(out, self.block_bytes, self.dropped)
        classes = [k for k in range(LENGTH_CLASSES) if self.totals.requests[k]]
        _put(out, len(classes))
        for k in classes:
            _put(out, k, self.totals.requests[k], self.totals.blocks[k])
        _put(out, len(self.requests))
        before_ms = 0
        for number, each in enumerate(self.requests):
            at_ms = round(each.at_s * 1000)
            _put(out, -at_ms if number == 0 else at_ms - before_ms)
            before_ms = at_ms
            _put(out, each.asked_blocks, len(each.ids), each.places[0])
            _put(out, *(b - a for a, b in zip(each.places, each.places[1:], strict=False)))
            for id_ in each.ids:
                out += id_.to_bytes(_PUBLISHED_BYTES, "little")
        if len(out) > MOST_BATCH_BYTES:
            raise Misuse(f"{len(out)} bytes; at most {MOST_BATCH_BYTES}", field="samples")
        return bytes(out)


def decode(data: bytes) -> Batch:
    """Reads a batch from a node, which may be hostile. Raises: Corrupt with what is wrong."""
    if len(data) > MOST_BATCH_BYTES:
        raise Corrupt(f"{len(data)} bytes; at most {MOST_BATCH_BYTES}")
    if len(data) < 2 or data[0] != VERSION:
        raise Corrupt(f"no batch of version {VERSION}")
    rate_log = data[1]
    if rate_log > LOWEST_RATE_LOG:
        raise Corrupt(f"rate_log {rate_log}; at most {LOWEST_RATE_LOG}")
    reader = _Reader(data, 2)
    block_bytes, dropped = reader.number(), reader.number()
    totals = _totals(reader)
    requests: list[SampledRequest] = []
    at_ms = 0
    for _ in range(reader.number(len(data))):
        step = reader.number(round(MOST_AGE_S * 1000))
        at_ms = at_ms + step if requests else -step
        asked = reader.number(MOST_BLOCKS)
        count = reader.number(len(data) // _PUBLISHED_BYTES)
        if not 0 < count <= asked or at_ms > 0:
            raise Corrupt(f"a request with {count} of {asked} blocks at {at_ms} ms")
        places = tuple(reader.places(count, asked))
        ids = tuple(reader.published() for _ in range(count))
        if not all(is_within(id_, rate_log) for id_ in ids):
            raise Corrupt(f"an id that is not sampled at rate_log {rate_log}")
        requests.append(SampledRequest(at_ms / 1000, asked, places, ids, block_bytes))
    if not reader.is_at_end:
        raise Corrupt("bytes behind the last request")
    if len(requests) > sum(totals.requests) or _asked(requests) > totals.asked_blocks:
        raise Corrupt("more sampled requests than requests")
    return Batch(rate_log, requests, totals, block_bytes, dropped)


def _asked(requests: Sequence[SampledRequest]) -> int:
    return sum(each.asked_blocks for each in requests)


def _totals(reader: "_Reader") -> Totals:
    requests, blocks = [0] * LENGTH_CLASSES, [0] * LENGTH_CLASSES
    least = 0
    for _ in range(reader.number(LENGTH_CLASSES)):
        k = reader.number(LENGTH_CLASSES - 1)
        requests[k], blocks[k] = reader.number(), reader.number()
        if k < least or not requests[k] << k <= blocks[k] < requests[k] << (k + 1):
            raise Corrupt(f"totals of class {k}: {requests[k]} requests, {blocks[k]} blocks")
        least = k + 1
    return Totals(tuple(requests), tuple(blocks))


def _put(out: bytearray, *numbers: int) -> None:
    for number in numbers:
        rest = number
        while rest > 0x7F:
            out.append(rest & 0x7F | 0x80)
            rest >>= 7
        out.append(rest)


class _Reader:
    """Reads numbers of a batch. Raises: Corrupt."""

    def __init__(self, data: bytes, at: int) -> None:
        self._data = data
        self._at = at

    @property
    def is_at_end(self) -> bool:
        return self._at == len(self._data)

    def number(self, most: int = MOST_COUNT) -> int:
        value = 0
        for shift in range(0, 63, 7):
            byte = self._bytes(1)[0]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if value > most:
                    raise Corrupt(f"{value}; at most {most}")
                return value
        raise Corrupt("a number of more than 9 bytes")

    def places(self, count: int, asked: int) -> Iterator[int]:
        place = -1
        for n in range(count):
            step = self.number(MOST_BLOCKS)
            place = step if n == 0 else place + step
            if (n and not step) or place >= asked:
                raise Corrupt(f"place {place} of {asked} blocks")
            yield place

    def published(self) -> int:
        return int.from_bytes(self._bytes(_PUBLISHED_BYTES), "little")

    def _bytes(self, count: int) -> bytes:
        found = self._data[self._at : self._at + count]
        if len(found) < count:
            raise Corrupt("it ends within a request")
        self._at += count
        return found
