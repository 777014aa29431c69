"""Reads the entries of the block index in slices, never all at once.

For workers and tests; nodes call `HotTier.match`. docs/formats/hot-tier.md specifies the entry.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import isinf
from typing import NamedTuple

from neve.formats.ids import ID_BYTES
from neve.formats.keys import BucketKeys, bucket_of
from neve.index.entry import HALF, RANK_US, State, as_current, reading
from neve.index.entry import is_sound as is_sound_entry
from neve.index.tier import MOST_TS, Execute, Usage

PAGE_ENTRIES = 1000  # of one HSCAN: about 0.3 ms of the server's time
_HOT, _COLD, _DIRTY, _GONE, _UNSTORED, _ = map(int, State)
_READ = reading(
    *("state", "space", "size", "expires", "pinned", "segment", "stored", "idle", "priority"),
    *("held", "cold_size", "offset"),
)


class IndexEntry(NamedTuple):
    """A block in either tier; it may have expired. Times: seconds since 1970.

    `held`: contexts' terms hold for it. `is_unstored`: only hot, since the cold tier refused it.
    """

    id: bytes
    is_hot: bool
    is_cold: bool
    is_dirty: bool
    space_id: int
    size_bytes: int
    expires_s: int
    pinned_s: int
    segment: int
    stored_s: int
    idle_s: int
    priority: int
    held: bool
    offset: int = 0
    is_unstored: bool = False
    encoded_size: int = 0

    @property
    def cold_size_bytes(self) -> int:
        """What the cold copy takes in its segment."""
        return self.encoded_size or self.size_bytes

    def is_expired(self, now_s: float) -> bool:
        return 0 < self.expires_s <= now_s and self.pinned_s <= now_s


class Page(NamedTuple):
    """About PAGE_ENTRIES blocks of one bucket, and where the next page begins; None: the end."""

    entries: list[IndexEntry]
    next: "Place | None"


class Place(NamedTuple):
    """Where a scan goes on, also in another process."""

    bucket: int
    cursor: int


BEGINNING = Place(0, 0)


def scan(
    execute: Execute,
    tenant_id: int,
    buckets: int,
    start: Place = BEGINNING,
    *,
    damaged: Callable[[bytes], object] = lambda field: None,
) -> Iterator[Page]:
    """Pages of an index. An entry that exists during the whole scan is returned, perhaps twice.

    `damaged` gets each field that holds no entry: a hostile node may write such.
    """
    place: Place | None = start
    while place is not None:
        index = BucketKeys(tenant_id, place.bucket).bookkeeping[0]
        cursor, items = execute("HSCAN", index, place.cursor, "COUNT", PAGE_ENTRIES)
        entries = []
        for id_, raw in _pairs(items):
            if not is_sound(id_, raw):
                damaged(id_)
            elif entry := decode_entry(id_, raw):
                entries.append(entry)
        if int(cursor):
            place = Place(place.bucket, int(cursor))
        else:
            place = Place(place.bucket + 1, 0) if place.bucket + 1 < buckets else None
        yield Page(entries, place)


def entries_of(
    execute: Execute, tenant_id: int, buckets: int, ids: Sequence[bytes]
) -> list[IndexEntry | None]:
    """In the order of `ids`; None for blocks that are not stored. One HMGET for each bucket and
    PAGE_ENTRIES ids."""
    by_bucket: dict[int, list[int]] = {}
    for n, id_ in enumerate(ids):
        by_bucket.setdefault(bucket_of(id_, buckets), []).append(n)
    found: list[IndexEntry | None] = [None] * len(ids)
    for bucket, places in by_bucket.items():
        index = BucketKeys(tenant_id, bucket).bookkeeping[0]
        for at in range(0, len(places), PAGE_ENTRIES):
            some = places[at : at + PAGE_ENTRIES]
            values = execute("HMGET", index, *(ids[n] for n in some))
            for n, raw in zip(some, values, strict=True):
                if raw is not None and is_sound(ids[n], raw):
                    found[n] = decode_entry(ids[n], raw)
    return found


def gone_s(execute: Execute, keys: BucketKeys, ids: list[bytes]) -> list[float | None]:
    """When each block became a tombstone, seconds since 1970; None for others, and for those that
    the bucket forgot."""
    if not ids:
        return []
    times = execute("ZMSCORE", keys.bookkeeping[5], *ids)
    return [
        None if at is None or not 0 <= float(at) / 1e6 < MOST_TS else float(at) / 1e6
        for at in times
    ]


def last_used_s(execute: Execute, keys: BucketKeys, ids: list[bytes]) -> list[int | None]:
    """When each block was used last, seconds since 1970; None for blocks not evictable now."""
    ranks = execute("ZMSCORE", keys.bookkeeping[1], *ids)
    return [_used_s(rank) for rank in ranks]


def _used_s(rank: bytes | float | None) -> int | None:
    """None for an infinite rank: a hostile node may write one."""
    return None if rank is None or isinf(float(rank)) else int(float(rank) % HALF * RANK_US / 1e6)


def is_sound(id_: bytes, raw: bytes) -> bool:
    """Whether functions can have written it."""
    return len(id_) == ID_BYTES and is_sound_entry(raw)


def decode_entry(id_: bytes, raw: bytes) -> IndexEntry | None:
    """None for a tombstone. `raw` must be sound."""
    values = _READ.unpack(as_current(raw))
    state, space, size, expires, pinned, segment, stored, idle, priority, *rest = values
    held, cold_size, at = rest
    if state & _GONE:
        return None
    return IndexEntry(
        id_,
        bool(state & _HOT),
        bool(state & _COLD),
        bool(state & _DIRTY),
        space,
        size,
        expires,
        pinned,
        segment,
        stored,
        idle,
        priority,
        bool(held),
        at,
        bool(state & _UNSTORED),
        cold_size,
    )


def recount(execute: Execute, tenant_id: int, buckets: int) -> Usage:
    """The usage that the entries add up to; exact while nobody writes."""
    sums = dict.fromkeys(("hot", "cold", "dirty", "pinned", "unstored"), 0)
    blocks = dict(sums)
    for page in scan(execute, tenant_id, buckets):
        for entry in page.entries:
            held = (entry.is_hot, entry.is_cold, entry.is_dirty, entry.pinned_s > 0)
            states = (*held, entry.is_unstored)
            for name, holds in zip(sums, states, strict=True):
                size = entry.cold_size_bytes if name == "cold" else entry.size_bytes
                sums[name] += holds * size
                blocks[name] += holds
    return Usage(
        **{f"{name}_bytes": count for name, count in sums.items()},
        **{f"{name}_blocks": count for name, count in blocks.items()},
    )


def _pairs(items: Mapping[bytes, bytes] | list[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """Fields and values: valkey-py returns a mapping, the core the flat array of the server."""
    if isinstance(items, Mapping):
        return iter(items.items())
    values = iter(items)
    return zip(values, values, strict=True)
