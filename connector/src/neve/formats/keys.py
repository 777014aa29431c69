"""Builds all keys in Valkey and all object keys in S3; no other module does.

All keys of a bucket carry one hash tag, `{t<tenant>.<bucket>.<number>}`, so a function touches one
slot. Valkey keys and the index's fields contain block ids as 16 raw bytes.
"""

import re
from dataclasses import dataclass
from functools import cache
from itertools import count
from typing import Final
from uuid import UUID

from neve import _core

# Books of a bucket: letter in the key → type in Valkey. Callers pass the first seven as KEYS of
# every function; functions derive the other keys.
BOOKS: Final = {
    **{"i": "hash", "l": "zset", "d": "zset", "u": "hash", "q": "hash", "x": "zset", "e": "zset"},
    **{"p": "zset", "s": "zset", "f": "zset", "r": "zset", "c": "zset"},
}
KEY_BOOKS: Final = tuple(BOOKS)[:7]
_KEY_BOOKS: Final = tuple(letter.encode() for letter in KEY_BOOKS)
SLOTS: Final = 16384
MOST_BUCKETS: Final = 1536  # of a tenant; a cursor of removals has a time of each
CELLS: Final = 256  # equal parts of the slots; bucket n uses the cell of n mod 256


def bucket_of(block_id: bytes, buckets: int) -> int:
    """The bucket of a 16-byte id: its first 4 bytes, big-endian, mod `buckets`."""
    return int.from_bytes(block_id[:4], "big") % buckets


@cache
def _tag(tenant_id: int, bucket: int) -> bytes:
    """A hash tag whose slot lies in the bucket's cell.

    Plain numbers spread badly: CRC16 put all 32 buckets of a tenant on four of eight primaries.
    So the tag ends with the first number that hits the cell, and buckets use cells in van der
    Corput's order (bits reversed): any first 2^n buckets divide the slots evenly.
    """
    cell = int(f"{bucket % CELLS:08b}"[::-1], 2)
    tags = (b"{t%d.%02d.%d}" % (tenant_id, bucket, number) for number in count())
    return next(tag for tag in tags if _core.slot_of(tag) * CELLS // SLOTS == cell)


_books_name = b""


def hide_books(secret: str) -> None:
    """Sets the secret part of books' keys in this process; "": none.

    Functions run with their caller's rights, so a node may write its tenant's books. If it knew
    their keys, it could change counters and entries by hand. Only the platform and the loaded
    functions know the secret; nodes never call this.
    """
    global _books_name
    _books_name = secret.encode() + b":" if secret else b""


def books_name() -> bytes:
    """The secret part of a book's key, between the bucket's tag and the book's letter."""
    return _books_name


@dataclass(frozen=True)
class BucketKeys:
    """Keys of one bucket of one tenant. Books are all of its keys except blocks."""

    tenant_id: int
    bucket: int

    @property
    def tag(self) -> bytes:
        return _tag(self.tenant_id, self.bucket)

    @property
    def arguments(self) -> tuple[bytes, ...]:
        """KEYS[1..7] of each function, from which it derives the books' keys."""
        return tuple(self.tag + b":" + letter for letter in _KEY_BOOKS)

    @property
    def bookkeeping(self) -> tuple[bytes, ...]:
        """Keys, with `books_name`, of index, ranks, dirty, usage, quota, tombstones and looks."""
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
        """ZSET: end of the lease of each block under flush."""
        return self._book(b"f")

    @property
    def cold_ranks(self) -> bytes:
        """ZSET: rank of each evictable block of the cold tier."""
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
        """All keys of the bucket except keys of blocks."""
        own = (self.pins, self.live_bytes, self.leases, self.recounted, self.cold_ranks)
        return [*self.bookkeeping, *own]

    def _book(self, letter: bytes) -> bytes:
        return self.tag + b":" + _books_name + letter

    def block(self, space_id: int, block_id: bytes) -> bytes:
        return b"%b:b:%d:%b" % (self.tag, space_id, block_id)


_TAG: Final = re.compile(rb"\{t(\d{1,10})\.(\d{2,5})\.\d+\}:", re.ASCII)


def parse_key(key: bytes) -> tuple[BucketKeys, bytes] | None:
    """Returns (bucket, rest of the key after the tag); None: not a key of Neve."""
    if (found := _TAG.match(key)) is None:
        return None
    keys = BucketKeys(int(found[1]), int(found[2]))
    return (keys, key[found.end() :]) if key.startswith(keys.tag + b":") else None


OBJECTS_PREFIX = "v1/"  # prefix of all S3 object keys of the platform


def tenant_prefix(tenant_id: int) -> str:
    """Prefix of the keys of a tenant's S3 objects."""
    return f"{OBJECTS_PREFIX}t{tenant_id}/"


def samples_prefix(tenant_id: int) -> str:
    """Prefix of the keys of a tenant's files of samples."""
    return f"{tenant_prefix(tenant_id)}samples/"


_SAMPLES: Final = re.compile(rf"{re.escape(OBJECTS_PREFIX)}t\d{{1,18}}/samples/", re.ASCII)


def is_of_samples(object_key: str) -> bool:
    """Whether an object is a file of samples, which no segment's row names."""
    return _SAMPLES.match(object_key) is not None


def segment_key(tenant_id: int, fingerprint: bytes, uuid: UUID) -> str:
    """`v1/t<tenant>/<16 hex of the space's fingerprint>/<uuid>.seg`"""
    return f"{tenant_prefix(tenant_id)}{fingerprint[:8].hex()}/{uuid}.seg"
