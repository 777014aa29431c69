"""Which blocks of a space left both tiers, for readers that ask again and again.

A cursor is one time for each bucket; `neve.index.tier.HotTier.removals` says what they mean.
"""

import base64
import binascii
import struct
from dataclasses import dataclass

from neve.errors import Misuse
from neve.formats.keys import MOST_BUCKETS
from storage.hot import hot_tier

MOST_CURSOR = MOST_BUCKETS * 8 * 4 // 3  # characters
PAGE_IDS = 1000  # of each bucket, besides what one call removed


@dataclass(frozen=True)
class Removals:
    """`is_reset`: earlier removals are not all known any more; what the reader knows is void."""

    ids: list[bytes]
    cursor: str
    is_reset: bool


def removals_behind(tenant_id: int, space_id: int, cursor: str | None = None) -> Removals:
    """Removals behind the cursor; None: begins now.

    Raises Misuse for a text that is no cursor, and valkey's errors.
    """
    marks = None if cursor is None else marks_of(cursor)
    found = hot_tier(tenant_id).removals(space_id, marks, PAGE_IDS)
    return Removals(found.ids, _cursor(found.marks), found.is_reset)


def _cursor(marks: tuple[int, ...]) -> str:
    packed = struct.pack(f">{len(marks)}Q", *marks)
    return base64.urlsafe_b64encode(packed).decode().rstrip("=")


def marks_of(cursor: str) -> tuple[int, ...]:
    """Raises Misuse."""
    if len(cursor) > MOST_CURSOR:
        raise Misuse(f"a cursor has at most {MOST_CURSOR} characters", field="after")
    try:
        packed = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        marks = struct.unpack(f">{len(packed) // 8}Q", packed)
    except (binascii.Error, struct.error, ValueError) as error:
        raise Misuse(f"no cursor of removals: {cursor[:60]!r}", field="after") from error
    if not marks or max(marks) >= 1 << 53 or _cursor(marks) != cursor:
        raise Misuse(f"no cursor of removals: {cursor[:60]!r}", field="after")
    return marks
