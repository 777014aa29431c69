"""The only place that builds names: keys in Valkey and object keys in S3.

All keys of a bucket carry one hash tag, `{t<tenant>.<bucket>.<number>}`, so a function touches one
slot. Ids stand in Valkey keys as their 16 raw bytes, the same bytes that are fields of the index.
"""

import re
from dataclasses import dataclass
from functools import cache
from itertools import count
from typing import Final
from uuid import UUID

from neve import _core

# The books of a bucket by the letter of their key: the type in Valkey. The first seven are KEYS of
# every function, the others those that functions derive.
BOOKS: Final = {
    **{"i": "hash", "l": "zset", "d": "zset", "u": "hash", "q": "hash", "x": "zset", "e": "zset"},
    **{"p": "zset", "s": "zset", "f": "zset", "r": "zset", "c": "zset"},
}
KEY_BOOKS: Final = tuple(BOOKS)[:7]
_KEY_BOOKS: Final = tuple(letter.encode() for letter in KEY_BOOKS)
SLOTS: Final = 16384
CELLS: Final = 256  # equal parts of the slots, one for each bucket; bucket 256 begins again


def bucket_of(block_id: bytes, buckets: int) -> int:
    """The bucket of a 16-byte id: its first 4 bytes, big-endian, mod `buckets`."""
    return int.from_bytes(block_id[:4], "big") % buckets


@cache
def _tag(tenant_id: int, bucket: int) -> bytes:
    """A hash tag whose slot lies in the bucket's cell.

    Plain numbers do not spread: CRC16 put all 32 buckets of a tenant on four of eight primaries.
    So the number at the end is the first that hits the cell, and cells follow each other in
    van der Corput's order (bits reversed): any first 2^n buckets divide the slots evenly.
    """
    cell = int(f"{bucket % CELLS:08b}"[::-1], 2)
    tags = (b"{t%d.%02d.%d}" % (tenant_id, bucket, number) for number in count())
    return next(tag for tag in tags if _core.slot_of(tag) * CELLS // SLOTS == cell)


_books_name = b""


def hide_books(secret: str) -> None:
    """Sets the secret name of books in the keys that this process builds. "": none.

    Functions run with their caller's rights, so a node has the right to write its tenant's books.
    It must not be able to name them: else it could change counters and entries by hand. Only the
    platform and the loaded functions know the name; nodes never call this.
    """
    global _books_name
    _books_name = secret.encode() + b":" if secret else b""


def books_name() -> bytes:
    """The part of a key between a bucket's tag and the letter of a book."""
    return _books_name


@dataclass(frozen=True)
class BucketKeys:
    """Keys of one bucket of one tenant. Its books are all but blocks."""

    tenant_id: int
    bucket: int

    @property
    def tag(self) -> bytes:
        return _tag(self.tenant_id, self.bucket)

    @property
    def arguments(self) -> tuple[bytes, ...]:
        """KEYS[1..7] of each function, which finds the books by them."""
        return tuple(self.tag + b":" + letter for letter in _KEY_BOOKS)

    @property
    def bookkeeping(self) -> tuple[bytes, ...]:
        """Keys of index, ranks, dirty, usage, quota, tombstones and looks, with `books_name`."""
        return tuple(map(self._book, _KEY_BOOKS))

    @property
    def quota(self) -> bytes:
        return self._book(b"q")

    @property
    def live_bytes(self) -> bytes:
        """ZSET: live bytes of each segment."""
        return self._book(b"s")

    @property
    def leases(self) -> bytes:
        """ZSET: when the lease of each block under flush ends."""
        return self._book(b"f")

    @property
    def cold_ranks(self) -> bytes:
        """ZSET: rank of each block that may be evicted from the cold tier."""
        return self._book(b"c")

    @property
    def recounted(self) -> bytes:
        """ZSET: sums of a recount in progress."""
        return self._book(b"r")

    @property
    def pins(self) -> bytes:
        """ZSET: the end of each pin."""
        return self._book(b"p")

    @property
    def all_bookkeeping(self) -> list[bytes]:
        """Every key of the bucket but those of blocks."""
        own = (self.pins, self.live_bytes, self.leases, self.recounted, self.cold_ranks)
        return [*self.bookkeeping, *own]

    def _book(self, letter: bytes) -> bytes:
        return self.tag + b":" + _books_name + letter

    def block(self, space_id: int, block_id: bytes) -> bytes:
        return b"%b:b:%d:%b" % (self.tag, space_id, block_id)


_TAG: Final = re.compile(rb"\{t(\d{1,10})\.(\d{2,5})\.\d+\}:", re.ASCII)


def parse_key(key: bytes) -> tuple[BucketKeys, bytes] | None:
    """The bucket of a key in Valkey, and the rest after the tag; None: no key of Neve."""
    if (found := _TAG.match(key)) is None:
        return None
    keys = BucketKeys(int(found[1]), int(found[2]))
    return (keys, key[found.end() :]) if key.startswith(keys.tag + b":") else None


OBJECTS_PREFIX = "v1/"  # of the keys of all S3 objects of the platform


def tenant_prefix(tenant_id: int) -> str:
    """Prefix of the keys of a tenant's S3 objects."""
    return f"{OBJECTS_PREFIX}t{tenant_id}/"


def segment_key(tenant_id: int, fingerprint: bytes, uuid: UUID) -> str:
    """`v1/t<tenant>/<16 hex of the space's fingerprint>/<uuid>.seg`"""
    return f"{tenant_prefix(tenant_id)}{fingerprint[:8].hex()}/{uuid}.seg"
