"""Weighs each tenant's keys, whatever its books count: key by key, in slices."""

import re
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

from django.conf import settings

from neve.formats.keys import BucketKeys, parse_key
from neve.index.scan import decode_entry
from storage import hot_servers

PAGE_KEYS = 1000
_OWNER = re.compile(rb"\{t(\d{1,18})\.")
_ID_BYTES = 16
_KEY_BYTES = 100  # of a key beside its value; names of blocks have a bounded length


class Round:
    """One way around all keys of all primaries."""

    def __init__(self) -> None:
        self.held: Counter[int] = Counter()  # bytes by tenant
        self._clients = hot_servers.primaries()
        self._cursor = 0

    def go_on(self, *, most_keys: int, until: float) -> bool:
        """Returns whether the round is complete. Raises valkey's errors; begin a new round then."""
        looked = 0
        while self._clients and looked < most_keys and time.monotonic() < until:
            self._cursor, keys = self._clients[0].scan(self._cursor, count=PAGE_KEYS)
            looked += PAGE_KEYS
            self._weigh(keys)
            if self._cursor == 0:
                self._clients.pop(0)
        return not self._clients

    def _weigh(self, keys: list[bytes]) -> None:
        owned = [(int(found[1]), key) for key in keys if (found := _OWNER.match(key))]
        sizes = _sizes(self._clients[0], [key for _, key in owned])
        for (tenant_id, _), size in zip(owned, sizes, strict=True):
            self.held[tenant_id] += size + _KEY_BYTES


def _sizes(client: Any, keys: list[bytes]) -> list[int]:
    """Bytes that the quota counts for blocks, memory of other keys; 0 for keys that are gone."""
    pipe = client.pipeline(transaction=False)
    for key in keys:
        is_block = b"}:b:" in key
        pipe.execute_command(*(("STRLEN", key) if is_block else ("MEMORY USAGE", key)))
    replies = pipe.execute(raise_on_error=False) if keys else []
    return [size if isinstance(size, int) else 0 for size in replies]


def remove_junk(tenant_id: int, *, until: float) -> tuple[int, int, bool]:
    """Removes the tenant's keys that are in no books. Its nodes must be cut off: no commit comes.

    Returns keys, bytes, and whether all were checked. Raises valkey's errors.
    """
    removed = removed_bytes = 0
    for client in hot_servers.primaries():
        for keys in _pages(client, tenant_id):
            sizes = dict(zip(keys, _sizes(client, keys), strict=True))
            junk = sizes.keys() - _in_books(client, sizes)
            _unlink(client, junk)
            removed += len(junk)
            removed_bytes += sum(sizes[key] for key in junk)
            if time.monotonic() >= until:
                return removed, removed_bytes, False
    return removed, removed_bytes, True


def remove_all(tenant_id: int) -> None:
    """Removes the tenant's books and blocks. Raises valkey's errors."""
    for client in hot_servers.primaries():
        for keys in _pages(client, tenant_id):
            _unlink(client, set(keys))


def held_bytes(tenant_id: int) -> int:
    """Raises valkey's errors."""
    return sum(
        sum(_sizes(client, keys)) + len(keys) * _KEY_BYTES
        for client in hot_servers.primaries()
        for keys in _pages(client, tenant_id)
    )


def _pages(client: Any, tenant_id: int) -> Iterator[list[bytes]]:
    cursor = -1
    while cursor:
        cursor, keys = client.scan(max(cursor, 0), match=b"{t%d.*" % tenant_id, count=PAGE_KEYS)
        if keys:
            yield keys


def _in_books(client: Any, sizes: dict[bytes, int]) -> set[bytes]:
    """Keys that are books, or blocks that the books have with this size."""
    known, blocks = set(), []
    for key in sizes:
        found = parse_key(key)
        if found is None or found[0].bucket >= settings.ENV.hot_buckets:
            continue
        keys, rest = found
        if key in keys.all_bookkeeping:
            known.add(key)
        elif rest.startswith(b"b:"):
            blocks.append((key, keys, rest[-_ID_BYTES:]))
    pipe = client.pipeline(transaction=False)
    for _, keys, id_ in blocks:
        pipe.hget(keys.bookkeeping[0], id_)
    replies = pipe.execute(raise_on_error=False) if blocks else []
    for (key, keys, id_), raw in zip(blocks, replies, strict=True):
        if isinstance(raw, bytes) and _owns(keys, id_, raw, key, sizes[key]):
            known.add(key)
    return known


def _owns(keys: BucketKeys, id_: bytes, raw: bytes, key: bytes, size: int) -> bool:
    try:
        entry = decode_entry(id_, raw)
    except Exception:  # a damaged entry owns nothing; reconcile repairs it
        return False
    return (
        entry is not None
        and entry.is_hot
        and entry.size_bytes == size
        and keys.block(entry.space_id, id_) == key
    )


def _unlink(client: Any, keys: set[bytes]) -> None:
    pipe = client.pipeline(transaction=False)
    for key in keys:
        pipe.unlink(key)
    if keys:
        pipe.execute()
