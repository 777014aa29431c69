"""Index entries of version 1, as release 0.2.0 wrote and read them. Frozen: never update."""

import struct

from neve.index import entry

# state, reason, touched, space, size, tokens, expires, pinned, segment, offset, stored, idle,
# priority, held
ENTRY = struct.Struct("<BBHIIIIIIIIIBB")
ROW = struct.Struct("<BB6xI8xIII10x")  # state, reason, size, pinned, segment, offset
REASONS = (
    *("never_stored", "evicted", "expired", "quota", "corrupt", "idle", "evicted_cold"),
    "unflushed",
)


def as_version_1(raw: bytes) -> bytes:
    """Convert a current entry to version 1."""
    *before, stored, idle, priority, held, _, _, _, _, offset = entry.ENTRY.unpack(raw)
    return ENTRY.pack(*before, offset, stored, idle, priority, held)


def answers(reply: bytes) -> list[str | tuple[str, int, int, int]]:
    """Parse a reply of `neve_match` as release 0.2.0 does: per block, a miss reason or (tier, size,
    segment, offset)."""
    return [
        ("hot" if state & 1 else "cold", size, segment, offset) if state else REASONS[reason]
        for state, reason, size, _, segment, offset in ROW.iter_unpack(reply)
    ]
