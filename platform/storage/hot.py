"""The hot Valkey as its administrator: a tenant's tier, repairs of its books, the room for blocks.

Servers one by one: `storage.hot_servers`. Their configuration: `storage.hot_setup`. Nodes' users:
`storage.hot_users`.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from django.conf import settings
from django.db import transaction
from valkey.exceptions import ResponseError, ValkeyError

from base import log_events
from base.problems import Problem
from neve.formats.keys import BucketKeys, bucket_of, parse_key
from neve.index.recount import BucketAudit, Mended
from neve.index.scan import (
    BEGINNING,
    IndexEntry,
    Page,
    Place,
    decode_entry,
    gone_s,
    is_sound,
    scan,
)
from neve.index.tier import HotTier
from storage.hot_servers import admin, memory

# Values of a power of two plus a header fall into jemalloc's next size class, a quarter larger; the
# index takes the rest. Source: jemalloc, size classes (four to each doubling).
MEMORY_PER_BYTE = 1.3

INDEX_LOST = "neve:lost"  # SET: tenants whose index is to be restored from their segments


def hot_tier(tenant_id: int) -> HotTier:
    return HotTier(execute, tenant_id, settings.ENV.hot_buckets)


def scan_tenant(
    tenant_id: int,
    start: Place = BEGINNING,
    *,
    damaged: Callable[[bytes], object] = lambda field: None,
) -> Iterator[Page]:
    """Pages of the tenant's index: `neve.index.scan.scan`."""
    return scan(execute, tenant_id, settings.ENV.hot_buckets, start, damaged=damaged)


def entry_of(tenant_id: int, id_: bytes) -> IndexEntry | None:
    """The index entry of a block in either tier. Raises valkey's errors."""
    keys = BucketKeys(tenant_id, bucket_of(id_, settings.ENV.hot_buckets))
    raw = execute("HGET", keys.bookkeeping[0], id_)
    return decode_entry(id_, raw) if raw is not None and is_sound(id_, raw) else None


def gone_at(tenant_id: int, ids: Sequence[bytes]) -> dict[bytes, datetime]:
    """When those of the blocks left that the index remembers. A call for each bucket concerned.

    Raises valkey's errors.
    """
    buckets: dict[int, list[bytes]] = {}
    for id_ in ids:
        buckets.setdefault(bucket_of(id_, settings.ENV.hot_buckets), []).append(id_)
    found = {}
    for bucket, members in buckets.items():
        times = gone_s(execute, BucketKeys(tenant_id, bucket), members)
        for id_, at_s in zip(members, times, strict=True):
            if at_s is not None:
                found[id_] = datetime.fromtimestamp(at_s, UTC)
    return found


def execute(*args: Any) -> Any:
    """One command on one bucket. Raises valkey's errors.

    A tenant's nodes can write their own bucket's books. Where damage makes the command fail, the
    bucket is mended and the command repeated once, so that no tenant breaks a task or a page.
    """
    try:
        return admin().execute_command(*args)
    except ResponseError as error:
        keys = _bucket_of(args)
        if keys is None or not _DAMAGE.search(str(error)):
            raise
        mend(keys)
        return admin().execute_command(*args)


def note(command: str, key: str, *values: Any) -> Any:
    """A write of the platform's own notes, also on a full server: a repair must not wait for room
    that only the repair can make. Raises valkey's errors."""
    return admin().eval(_ALSO_WHEN_FULL, 1, key, command, *values)


_ALSO_WHEN_FULL = "#!lua flags=allow-oom\nreturn redis.call(ARGV[1], KEYS[1], unpack(ARGV, 2))"

# Errors of commands on a key of another type, and of functions that met a value they never write.
_DAMAGE = re.compile(
    r"WRONGTYPE|wrong kind of value|^(?!OOM|NOPERM|MISCONF|READONLY).*user_function"
)


def _bucket_of(args: Sequence[Any]) -> BucketKeys | None:
    """The bucket of the first key that a command names."""
    names = (found for arg in args if isinstance(arg, bytes) and (found := parse_key(arg)))
    return next((keys for keys, _ in names), None)


def mend(keys: BucketKeys) -> Mended:
    """Removes keys and values that make functions fail on this bucket (`neve.index.recount`).

    Raises valkey's errors.
    """
    mended = BucketAudit(admin().execute_command, keys.tenant_id, keys.bucket).mend()
    if mended.keys or mended.values:
        log_events.BUCKET_MENDED.log(
            tenant_id=keys.tenant_id,
            bucket=keys.bucket,
            keys=mended.keys,
            values=mended.values,
            index_lost=mended.index_lost,
        )
    if mended.index_lost:
        note("SADD", INDEX_LOST, keys.tenant_id)
    return mended


def mend_tenant(tenant_id: int) -> None:
    """All its buckets: a millisecond each."""
    for bucket in range(settings.ENV.hot_buckets):
        mend(BucketKeys(tenant_id, bucket))


def capacity_bytes() -> int | None:
    """How many bytes of blocks the servers have room for in all; None without a limit.

    Raises valkey's errors.
    """
    limit = memory().max_bytes
    return int(limit / MEMORY_PER_BYTE) if limit else None


@contextmanager
def required() -> Iterator[None]:
    """Inside, a Valkey that does not answer is a problem document instead of a bug."""
    try:
        yield
    except ValkeyError as error:
        log_events.HOT_TIER_UNAVAILABLE.log(error=error)
        raise Problem("hot-tier-unavailable", "The hot tier did not answer.") from error


def on_commit(action: str, tenant_id: int | None, act: Callable[[], object]) -> None:
    """Calls `act` after the transaction. A Valkey that is down is logged: the change stays."""

    def apply() -> None:
        try:
            act()
        except ValkeyError as error:
            log_events.HOT_CHANGE_FAILED.log(action=action, tenant_id=tenant_id, error=error)

    transaction.on_commit(apply)
