"""The index entry and the numbers around it: the only place that says them.

`connector/generate_layout.py` writes them out for the functions in Valkey
(index/functions/layout.lua) and for the C++ core (src/core/layout.h). tests/neve/test_layout.py
holds both to this module, and docs/formats/hot-tier.md, which specifies the entry.
"""

import struct
from enum import IntFlag
from typing import Final, NamedTuple

from neve.errors import MissReason


class Field(NamedTuple):
    """`code`: of `struct`, little-endian (B 1 byte, H 2, I 4, Q 8)."""

    name: str
    code: str
    meaning: str

    @property
    def bytes(self) -> int:
        return struct.calcsize(f"<{self.code}")


class State(IntFlag):
    """Where a block is. The last two: of a hot, clean block without a cold copy."""

    HOT = 1
    COLD = 2
    DIRTY = 4  # hot, and not yet in S3
    GONE = 8  # a tombstone: only `reason` counts
    UNSTORED = 16  # the cold tier had no room for it
    LET_GO = 32  # the cold tier evicted its copy


PLACE_BITS: Final = 15  # HOT … GONE. Only these combinations are ever written:
PLACES: Final = frozenset(
    map(int, (State.HOT, State.COLD, State.HOT | State.COLD, State.HOT | State.DIRTY, State.GONE))
)

# Why an entry is GONE, by number.
REASONS: Final = (
    MissReason.NEVER_STORED,
    MissReason.EVICTED,
    MissReason.EXPIRED,
    MissReason.QUOTA,
    MissReason.CORRUPT,
    MissReason.IDLE,
    MissReason.EVICTED_COLD,
    MissReason.UNFLUSHED,
)

# Version 1 is read wherever it still stands, and never written. Nodes of release 0.2.0 read it.
FIELDS_1: Final = (
    Field("state", "B", "bits, below"),
    Field(
        "reason",
        "B",
        "of a tombstone: why the block left; else: number of its recount",
    ),
    Field("touched", "H", "notes of reads and uses, below"),
    Field("space", "I", "number of the space"),
    Field("size", "I", "bytes of the block, header included"),
    Field("tokens", "I", "tokens whose KV this is"),
    Field("expires", "I", "end of its life, s; 0: none"),
    Field("pinned", "I", "end of its pin, s; 0: none"),
    Field("segment", "I", "number of the segment that holds the cold copy; 0: none"),
    Field("offset", "I", "of the cold copy in the segment"),
    Field("stored", "I", "when it was committed, s"),
    Field("idle", "I", "it leaves the hot tier when unused for so long, s; 0: no limit"),
    Field("priority", "B", "0 leaves first"),
    Field("held", "B", "1: contexts' terms hold for it, not its space's"),
)
FIELDS: Final = (
    *(field for field in FIELDS_1 if field.name != "offset"),
    Field("kind", "B", "0: KV of a whole prefix; 1: of a piece (reserved)"),
    Field("hot_codec", "B", "how the value in Valkey is encoded; 0: not at all (others reserved)"),
    Field("cold_codec", "B", "how the cold copy is encoded; 0: not at all; 1: byte planes, zstd"),
    Field("cold_size", "I", "bytes of the cold copy, header included; 0: as `size`"),
    Field("offset", "Q", "of the cold copy in the segment"),
)
ENTRY_1: Final = struct.Struct("<" + "".join(field.code for field in FIELDS_1))
ENTRY: Final = struct.Struct("<" + "".join(field.code for field in FIELDS))

# Ranks, in `:l` and `:c`: priority × BAND + (HALF unless on probation) + last use in units of
# 10 µs since 1970, which fit until 2049.
BAND: Final = 500_000_000_000_000
HALF: Final = BAND // 2
RANK_US: Final = 10


def reading(*names: str) -> struct.Struct:
    """Unpacks these fields of an entry, named in the order of `FIELDS`, and skips the others."""
    assert names == tuple(field.name for field in FIELDS if field.name in names)
    codes = (f.code if f.name in names else f"{f.bytes}x" for f in FIELDS)
    return struct.Struct("<" + "".join(codes))


def is_sound(raw: bytes) -> bool:
    """Whether functions of this version or of version 1 can have written the entry."""
    return len(raw) in (ENTRY.size, ENTRY_1.size) and raw[0] & PLACE_BITS in PLACES


def as_current(raw: bytes) -> bytes:
    """An entry of version 1 in the form of today's; any other as it is."""
    if len(raw) != ENTRY_1.size:
        return raw
    values = dict(zip((f.name for f in FIELDS_1), ENTRY_1.unpack(raw), strict=True))
    return ENTRY.pack(*(values.get(field.name, 0) for field in FIELDS))
