"""What must hold for one tenant's blocks after any faults. Asks no server.

A payload is computed from its block's id, so every process can check its bytes.
"""

import random
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import shake_128

from neve.formats.block import HEADER_BYTES

CHUNK_TOKENS = 256
CHAINS = 12  # of a tenant; all its nodes work on the same ones
CHAIN_BLOCKS = 16
LEAST_BYTES, MOST_BYTES = 1 << 10, 25 << 10


def payload_bytes(id_: bytes) -> int:
    return LEAST_BYTES + int.from_bytes(id_[-2:], "big") % (MOST_BYTES - LEAST_BYTES)


def payload(id_: bytes) -> bytes:
    """The only right payload of a block. Those of even ids repeat, so that codecs save bytes."""
    size = payload_bytes(id_)
    if id_[0] % 2:
        return shake_128(id_).digest(size)
    period = size // 8 & ~3
    return (shake_128(id_).digest(period) * 9)[:size]


def stored_bytes(id_: bytes) -> int:
    return HEADER_BYTES + payload_bytes(id_)


def chain_tokens(seed: int, chain: int) -> list[int]:
    rng = random.Random(f"{seed}/{chain}")
    return [rng.randrange(50_000) for _ in range(CHAIN_BLOCKS * CHUNK_TOKENS)]


@dataclass
class Model:
    """`durable`: reported as flushed. `damaged_*`: bytes that a fault changed or took away.

    `refused`: blocks that a quota had no room for; an evicted one then gives this reason.

    `footers_damaged`: blocks whose segment's footer a fault damaged: a rebuild cannot know them.
    `taken_away`: damaged blocks whose segment was deleted: they are missing, not corrupt.
    `uncounted_bytes`: that a fault hid from the cold quota, which may be exceeded by as much.
    `memory_lost`: Valkey lost writes, so blocks that were not durable may be gone.
    `hot_only`: the policy or the cold quota keeps some stored blocks out of S3, so that they may be
    evicted for good. `cold_evicts`: a full cold tier lets durable blocks go. `may_expire`: blocks
    have an end, which clocks may reach at any time.
    """

    tried: set[bytes] = field(default_factory=set)
    stored: set[bytes] = field(default_factory=set)
    durable: set[bytes] = field(default_factory=set)
    refused: set[bytes] = field(default_factory=set)
    damaged_hot: set[bytes] = field(default_factory=set)
    damaged_cold: set[bytes] = field(default_factory=set)
    footers_damaged: set[bytes] = field(default_factory=set)
    taken_away: set[bytes] = field(default_factory=set)
    uncounted_bytes: int = 0
    memory_lost: bool = False
    hot_only: bool = False
    cold_evicts: bool = False
    may_expire: bool = False
    wrong: list[str] = field(default_factory=list)
    served: int = 0
    misses: Counter[str] = field(default_factory=Counter)

    def must_have(self) -> set[bytes]:
        """Blocks that must be served."""
        kept = set(self.durable)
        if not self.memory_lost and not self.hot_only:
            kept |= self.stored - self.damaged_hot
        if self.memory_lost:
            kept -= self.footers_damaged
        return kept - self.damaged_cold

    def lost(self, outcomes: Mapping[bytes, str | None]) -> list[bytes]:
        """Blocks that must be served but were missed. `outcomes`: None (served) or why not."""
        excuses: set[str | None] = {None}
        gone: set[bytes] = set()
        if self.cold_evicts:
            # A segment that nobody names is deleted, and with it goes what a rebuild would know.
            excuses |= {"evicted_cold", "never_stored"} if self.memory_lost else {"evicted_cold"}
            excuses.add("unflushed")  # stored again, when only pinned blocks were cold
        if self.may_expire:  # what has expired does not come back by a rebuild
            excuses |= {"expired", "never_stored"} if self.memory_lost else {"expired"}
        if self.may_expire or self.cold_evicts:
            gone = {id_ for id_ in self.refused if outcomes[id_] == "quota"}
            # Stored again, such a block has nothing but its hot copy until it is flushed.
            gone |= {id_ for id_ in self.damaged_hot if outcomes[id_] == "corrupt"}
        return [id_ for id_ in sorted(self.must_have() - gone) if outcomes[id_] not in excuses]

    def unexplained(self, outcomes: Mapping[bytes, str | None]) -> list[bytes]:
        """Durable, damaged blocks whose miss does not say so.

        Where the index was lost, or blocks expire or are evicted for good, there are other reasons.
        """
        if self.memory_lost or self.hot_only or self.may_expire:
            return []
        damaged = (self.durable & self.damaged_cold) - self.taken_away
        damaged -= {id_ for id_ in self.refused if outcomes[id_] == "quota"}
        return [id_ for id_ in sorted(damaged) if outcomes[id_] not in (None, "corrupt")]


@dataclass(frozen=True)
class Entry:
    """A block of the index, as far as accounting goes."""

    is_hot: bool
    is_cold: bool
    is_dirty: bool
    is_pinned: bool
    space_id: int
    size_bytes: int
    segment: int
    is_unstored: bool = False
    encoded_size: int = 0

    @property
    def cold_size_bytes(self) -> int:
        """What the cold copy takes in its segment."""
        return self.encoded_size or self.size_bytes


def sums(entries: Iterable[Entry]) -> dict[str, int]:
    """The values that the counters of `:u` must have."""
    totals: Counter[str] = Counter()
    for entry in entries:
        for what, has in (
            ("hot", entry.is_hot),
            ("cold", entry.is_cold),
            ("dirty", entry.is_dirty),
            ("pinned", entry.is_pinned),
            ("unstored", entry.is_unstored),
        ):
            size_bytes = entry.cold_size_bytes if what == "cold" else entry.size_bytes
            totals[f"{what}_bytes"] += size_bytes * has
            totals[f"{what}_blocks"] += has
    return dict(totals)
