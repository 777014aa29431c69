"""The hot Valkey as its administrator: functions, an ACL user per node key, quota numbers.

Everything here may be repeated: a restarted Valkey forgets its ACL users, so the boot and each
handshake provision anew. Users of keys that are no longer usable are removed at once, and again by
`align_users`, should Valkey have been down.
"""

import hashlib
import hmac
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db import transaction
from django.db.models import QuerySet
from valkey.exceptions import ResponseError, ValkeyError

from base.problems import Problem
from neve.formats.ids import ID_BYTES
from neve.formats.keys import BucketKeys, books_name, parse_key
from neve.index.library import LIBRARY, load_functions
from neve.index.recount import BucketAudit, Mended
from neve.index.tier import HotTier
from retention.rulebook import rulebook_of
from storage.hot_bounds import keep_no_logs, missing_bounds
from storage.hot_servers import admin, is_cluster, memory, on_each, primaries, servers
from tenants.keys import usable_node_keys
from tenants.models import ApiKey, Tenant
from tenants.scope import tenant_scope

log = logging.getLogger("neve.hot")

# Values of a power of two plus a header fall into jemalloc's next size class, a quarter larger; the
# index takes the rest. Source: jemalloc, size classes (four to each doubling).
MEMORY_PER_BYTE = 1.3

# What a node needs: its own calls, and what the functions that it calls run in its name. Each costs
# the server as little as one key does: no command here takes many keys of blocks.
# A name of a connection is memory that nobody counts; HELLO takes one all the same (tiering.watch).
NODE_COMMANDS = ("ping", "hello", "auth", "time")
BLOCK_COMMANDS = ("get", "set", "strlen", "persist", "pexpire")
BOOK_COMMANDS = (
    *("hget", "hmget", "hset", "hdel", "hincrby", "hgetall"),
    *("zadd", "zincrby", "zrem", "zrange", "zscore", "zmscore", "zcard", "zcount", "zpopmin"),
)
# Pins, lifetimes, flushes and restoring are the platform's: a node asks for them over HTTP.
NODE_FUNCTIONS = ("match", "commit", "touch", "promote", "forget", "usage")


INDEX_LOST = "neve:lost"  # SET: tenants whose index is to be restored from their segments


def execute(*args: Any) -> Any:
    """One command about one bucket. Raises valkey's errors.

    A tenant's hands reach its own bookkeeping. Where they make the command fail, the bucket is
    mended, and the command repeated once: no task and no page fails by what one tenant wrote.
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
    """A write of the platform's own notes, also on a full server: what makes it well again must
    not wait for room that only it can make. Raises valkey's errors."""
    return admin().eval(_ALSO_WHEN_FULL, 1, key, command, *values)


_ALSO_WHEN_FULL = "#!lua flags=allow-oom\nreturn redis.call(ARGV[1], KEYS[1], unpack(ARGV, 2))"

# Errors of commands on a key of another type, and of functions that met what no function writes.
_DAMAGE = re.compile(
    r"WRONGTYPE|wrong kind of value|^(?!OOM|NOPERM|MISCONF|READONLY).*user_function"
)


def _bucket_of(args: Sequence[Any]) -> BucketKeys | None:
    """The bucket of the first key that a command names."""
    names = (found for arg in args if isinstance(arg, bytes) and (found := parse_key(arg)))
    return next((keys for keys, _ in names), None)


def mend(keys: BucketKeys) -> Mended:
    """Removes what makes functions fail on this bucket (`neve.index.recount`).

    Raises valkey's errors.
    """
    mended = BucketAudit(admin().execute_command, keys.tenant_id, keys.bucket).mend()
    if mended.keys or mended.values:
        log.warning(
            "bucket_mended tenant=%s bucket=%s keys=%s values=%s index_lost=%s",
            *(keys.tenant_id, keys.bucket, mended.keys, mended.values, mended.index_lost),
        )
    if mended.index_lost:
        note("SADD", INDEX_LOST, keys.tenant_id)
    return mended


def mend_tenant(tenant_id: int) -> None:
    """All its buckets: a millisecond each."""
    for bucket in range(settings.ENV.hot_buckets):
        mend(BucketKeys(tenant_id, bucket))


def hot_tier(tenant_id: int) -> HotTier:
    return HotTier(execute, tenant_id, settings.ENV.hot_buckets)


@contextmanager
def required() -> Iterator[None]:
    """Inside, a Valkey that does not answer is a problem document instead of a bug."""
    try:
        yield
    except ValkeyError as error:
        log.warning("hot_tier_unavailable error=%s", error)
        raise Problem("hot-tier-unavailable", "The hot tier did not answer.") from error


def username(key: ApiKey) -> str:
    return f"t{key.tenant_id}.k{key.pk}"


_USERNAME = re.compile(r"t(\d+)(\.k\d+)?")  # without a key: as earlier releases made them


def tenant_of(username: str) -> int | None:
    """Whose node has this Valkey user; None: nobody's."""
    found = _USERNAME.fullmatch(username)
    return int(found[1]) if found else None


def password(key: ApiKey) -> str:
    """Derived, not stored: any web process can make the key's Valkey user again.

    `hot_generation` changes the password without a change of the key.
    """
    what = f"valkey:{key.tenant_id}:{key.pk}:{key.hot_generation}"
    return hmac.new(settings.ENV.key_pepper.encode(), what.encode(), hashlib.sha256).hexdigest()


def provision() -> int:
    """Functions, every tenant's numbers and all users. Returns the number of tenants.

    Raises ImproperlyConfigured when a Valkey evicts on its own, with the command that fixes it.
    """
    require_noeviction()
    for client in servers():
        keep_no_logs(client)
    warn_if_unbounded()
    load_missing_functions()
    tenants = list(Tenant.objects.all())
    for tenant in tenants:
        try:
            provision_tenant(tenant)
        except ResponseError:  # what one tenant holds stops nobody else
            log.exception("provision_failed tenant=%s", tenant.pk)
    for key in _keys_in_use():
        provision_user(key)
    align_users()
    warn_if_short(promised_bytes())
    if is_cluster() and settings.ENV.hot_buckets < len(primaries()):
        log.warning(
            "hot_buckets_few buckets=%s primaries=%s: set NEVE_HOT_BUCKETS, or a tenant's blocks "
            "stand on some of the primaries only",
            *(settings.ENV.hot_buckets, len(primaries())),
        )
    return len(tenants)


def promised_bytes(*, without: int | None = None) -> int:
    """The sum of active tenants' hot quotas, perhaps `without` one of them."""
    rows = Tenant.objects.filter(is_active=True)
    if without is not None:
        rows = rows.exclude(pk=without)
    # Here, not in the database, whose sum of integers may overflow and then raises.
    return sum(quota or 0 for quota in rows.values_list("quota__hot_bytes", flat=True))


def capacity_bytes() -> int | None:
    """How many bytes of blocks the servers have room for in all; None without a limit.

    Raises valkey's errors.
    """
    limit = memory().max_bytes
    return int(limit / MEMORY_PER_BYTE) if limit else None


def scarce_room_bytes() -> int | None:
    """How many bytes of blocks still fit, where quotas promise more than there is; None elsewhere.

    Raises valkey's errors.
    """
    held = memory()
    if not held.max_bytes or promised_bytes() * MEMORY_PER_BYTE <= held.max_bytes:
        return None
    return int(max(0, held.max_bytes - held.used_bytes) / MEMORY_PER_BYTE)


def warn_if_short(quota_bytes: int) -> None:
    """Says so when hot quotas promise more than the servers have: writes fail for everybody."""
    limit = memory().max_bytes
    needed = int(quota_bytes * MEMORY_PER_BYTE)
    if 0 < limit < needed:
        log.warning(
            "hot_memory_short maxmemory=%s quotas=%s: raise maxmemory to %s or lower the quotas",
            *(limit, quota_bytes, needed),
        )


def require_noeviction() -> None:
    for client in servers():
        policy = client.info("memory")["maxmemory_policy"]
        if policy != "noeviction":
            raise ImproperlyConfigured(
                f"The hot Valkey has maxmemory-policy {policy}, so it would drop blocks behind "
                f"Neve's back. Fix it with:\n  "
                f"{_config_set(client, 'maxmemory-policy', 'noeviction')}"
            )


def load_missing_functions() -> None:
    """Into each primary; replicas have them from theirs."""
    for client in primaries():
        load_functions(client)


def warn_if_unbounded() -> None:
    """Says so when one client could take what all share, with the command that ends it."""
    for client in servers():
        for option, value in missing_bounds(client).items():
            fix = _config_set(client, option, value)
            log.warning("hot_clients_unbounded option=%s: run\n  %s", option, fix)


def _config_set(client: Any, option: str, value: str) -> str:
    where = client.connection_pool.connection_kwargs
    host, port = where.get("host"), where.get("port")
    return f"valkey-cli -h {host} -p {port} --askpass CONFIG SET {option} {value}"


def provision_tenant(tenant: Tenant) -> None:
    """The functions, and the tenant's numbers in `:q`.

    Users of a tenant that is inactive or cut off are removed.
    """
    if not tenant.is_active or tenant.cut_off_at is not None:
        remove_users(name for name, owner in _node_users() if owner == tenant.pk)
    if not tenant.is_active:
        return
    for client in primaries():
        if not client.execute_command("FUNCTION", "LIST", "LIBRARYNAME", LIBRARY):
            load_functions(client)
    book = rulebook_of(tenant.pk)
    with tenant_scope(tenant.pk):
        hot_tier(tenant.pk).set_policy(
            hot_bytes=tenant.quota.hot_bytes,
            cold_bytes=tenant.quota.cold_bytes,
            terms=book.policy.for_blocks(),
            spaces=book.spaces(),
            eviction=book.eviction,
            promote_window_s=book.promote_window_s,
            cold_evicts=book.cold_evicts,
        )


def provision_user(key: ApiKey) -> None:
    """The ACL user of a usable node key. Connections that it has already go on.

    On replicas too: one that becomes a primary knows its users.
    """
    command = ("ACL", "SETUSER", username(key), *acl_rules(key))
    on_each(servers(), lambda client: client.execute_command(*command))


def remove_users(names: Iterable[str]) -> int:
    """Valkey ends the connections of these users at once. Returns how many there were."""
    if not (names := list(names)):
        return 0
    command = ("ACL", "DELUSER", *names)
    everywhere = servers(failed=True)  # it may still serve those that reach it
    return max(on_each(everywhere, lambda client: int(client.execute_command(*command))))


def align_users() -> int:
    """Removes users of revoked, expired and unknown keys; adds those that a server lacks.

    Returns how many it removed. A server that was away, or is new in the cluster, is put right.
    """
    # Users before keys: a new key's user is no stranger, a revoked key's does not come back.
    there = on_each(servers(), lambda client: (client, _users_of(client)))
    usable = {username(key) for key in usable_node_keys()}
    used = {username(key): key for key in _keys_in_use()}
    removed: set[str] = set()
    for client, names in there:
        if stale := names - usable:
            client.execute_command("ACL", "DELUSER", *stale)
            removed |= stale
        for name in used.keys() - names:
            client.execute_command("ACL", "SETUSER", name, *acl_rules(used[name]))
    return len(removed)


def _keys_in_use() -> QuerySet[ApiKey]:
    """Node keys with an open session: others get their user with the next handshake."""
    open_sessions = usable_node_keys().filter(sessions__isnull=False, sessions__ended_at=None)
    return open_sessions.distinct()


def _users_of(client: Any) -> set[str]:
    """The ACL users that the platform made for nodes in this server."""
    raw = client.execute_command("ACL", "USERS")
    names = (name.decode() if isinstance(name, bytes) else str(name) for name in raw)
    return {name for name in names if _USERNAME.fullmatch(name)}


def _node_users() -> Iterator[tuple[str, int]]:
    """Name and tenant of each of them, in any server."""
    for name in set().union(*on_each(servers(), _users_of)):
        if found := _USERNAME.fullmatch(name):
            yield name, int(found[1])


def acl_rules(key: ApiKey) -> list[str]:
    """What a node may do by itself: read and write single blocks, and call NODE_FUNCTIONS.

    Functions run with the rights of their caller, so it has the right to write its tenant's books,
    too, but not the name of any (`neve.formats.keys.hide_books`). `:q` can be read, never written.
    Calling a function counts as writing all its KEYS; so the call itself, and only it, is granted
    on all the tenant's keys by a selector of its own.

    Blocks' keys are as long as `neve.formats.keys` makes them: names take memory too, and the
    platform reads them all. `:me` tells the functions whose call it is that brings no KEYS.

    Valkey cannot ask that a SET has an end, or that somebody commits it: `tiering.watch` finds
    bytes that are in no books.
    What stands in the books all the same and makes the platform's calls fail is mended (`execute`).
    """
    calls = (f"+fcall|neve_{name}" for name in NODE_FUNCTIONS)
    assert key.tenant_id is not None  # a node's key
    own, books = f"{{t{key.tenant_id}.*}}", books_name().decode()
    blocks = " ".join(f"~{pattern}" for pattern in _block_patterns(key.tenant_id))
    calls_on = " ".join(f"~{tag}:?" for tag in _tag_patterns(key.tenant_id))
    return [
        "reset",
        "on",
        f">{password(key)}",
        *(f"+{command}" for command in NODE_COMMANDS),
        f"({blocks} {_grant(BLOCK_COMMANDS)})",
        f"(~{own}:{books}[ilduxepsrc] %R~{own}:{books}q {_grant(BOOK_COMMANDS)})",
        f"({calls_on} {blocks} {' '.join(calls)})",
        f"(~{{t{key.tenant_id}.}}:me +strlen)",
    ]


def _tag_patterns(tenant_id: int) -> list[str]:
    """Of the tags of a tenant's buckets: as many as they have lengths, at most a handful."""
    tags = [BucketKeys(tenant_id, n).tag.decode() for n in range(settings.ENV.hot_buckets)]
    if len(tags) == 1:
        return tags
    own = f"{{t{tenant_id}."
    shapes = (tag.removeprefix(own)[:-1].split(".") for tag in tags)
    return sorted({f"{own}{'?' * len(a)}.{'?' * len(b)}}}" for a, b in shapes})


def _block_patterns(tenant_id: int) -> list[str]:
    """For each length that a space's number may have: an entry of the index gives it 32 bits."""
    digits = range(1, len(str(1 << 32)) + 1)
    tags = _tag_patterns(tenant_id)
    return [f"{tag}:b:{'?' * n}:{'?' * ID_BYTES}" for n in digits for tag in tags]


def _grant(commands: Iterable[str]) -> str:
    return " ".join(f"+{command}" for command in commands)


def provision_on_commit(tenant_id: int) -> None:
    """After the transaction; a Valkey that is down does not undo what people decided."""
    _on_commit("provision", tenant_id, lambda: provision_tenant(Tenant.objects.get(pk=tenant_id)))


def remove_users_on_commit(key: ApiKey) -> None:
    """After the transaction. Should Valkey be down, `align_users` does it later."""
    _on_commit("remove_users", key.tenant_id, lambda: remove_users([username(key)]))


def remove_unused_users_on_commit(key_ids: Iterable[int | None]) -> None:
    """After the transaction that ended sessions: users of these keys that have no open one."""
    keys = usable_node_keys().filter(pk__in=[pk for pk in key_ids if pk is not None])
    for key in keys.exclude(pk__in=_keys_in_use().values("pk")):
        remove_users_on_commit(key)


def _on_commit(action: str, tenant_id: int | None, act: Callable[[], object]) -> None:
    def apply() -> None:
        try:
            act()
        except ValkeyError as error:
            log.warning("%s_failed tenant=%s error=%s", action, tenant_id, error)

    transaction.on_commit(apply)
