"""Set-up of the hot Valkey: no eviction of its own, Neve's functions, bounds on clients.

deploy/valkey-hot.conf sets the options, with the reasons; an operator's own Valkey may lack them.
"""

from collections.abc import Callable
from typing import Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from valkey.exceptions import ResponseError

from base import log_events
from neve.index.library import LIBRARY, load_functions
from storage.hot import MEMORY_PER_BYTE
from storage.hot_servers import is_cluster, memory, primaries, servers

MIB = 1 << 20

# Option → what the file sets, and whether another value will do as well.
_BOUNDS: dict[str, tuple[str, Callable[[str], bool]]] = {
    "maxmemory-clients": ("10%", lambda value: value != "0"),
    "proto-max-bulk-len": ("65mb", lambda value: int(value) <= 128 * MIB),
    "client-query-buffer-limit": ("66mb", lambda value: int(value) <= 128 * MIB),
    "client-output-buffer-limit": (
        '"normal 130mb 66mb 30"',
        lambda value: not value.startswith("normal 0 0"),
    ),
    "timeout": ("300", lambda value: 0 < int(value) <= 3600),
    "tcp-keepalive": ("60", lambda value: 0 < int(value) <= 300),
}

# Servers keep the last entries of these logs whole, with connections' names and keys of up to
# 64 MiB, in memory that counts for no tenant. The latter two: from 8.1 on.
_LOGS = {
    "acllog-max-len": "0",
    "slowlog-max-len": "0",
    "commandlog-large-request-max-len": "0",
    "commandlog-large-reply-max-len": "0",
}


def prepare_servers() -> None:
    """Functions into every primary, no logs of commands anywhere; warns of options that are wrong.

    May be repeated. Raises ImproperlyConfigured when a Valkey evicts on its own, with the command
    that fixes it, and valkey's errors.
    """
    require_noeviction()
    for client in servers():
        keep_no_logs(client)
    warn_if_unbounded()
    for client in primaries():  # replicas have the functions from theirs
        load_functions(client)
    if is_cluster() and settings.ENV.hot_buckets < len(primaries()):
        log_events.HOT_BUCKETS_FEW.log(buckets=settings.ENV.hot_buckets, primaries=len(primaries()))


def load_missing_functions() -> None:
    """Into primaries that have none: cheaper than to load and compare. Raises valkey's errors."""
    for client in primaries():
        if not client.execute_command("FUNCTION", "LIST", "LIBRARYNAME", LIBRARY):
            load_functions(client)


def require_noeviction() -> None:
    """Raises ImproperlyConfigured and valkey's errors."""
    for client in servers():
        policy = client.info("memory")["maxmemory_policy"]
        if policy != "noeviction":
            raise ImproperlyConfigured(
                f"The hot Valkey has maxmemory-policy {policy}, so it would drop blocks behind "
                f"Neve's back. Fix it with:\n  "
                f"{_config_set(client, 'maxmemory-policy', 'noeviction')}"
            )


def keep_no_logs(client: Any) -> None:
    """Ends and empties the server's own logs of commands. Raises valkey's connection errors."""
    try:
        for option, value in _LOGS.items():
            if client.config_get(option).get(option, value) != value:
                client.config_set(option, value)
        client.execute_command("ACL", "LOG", "RESET")
        client.slowlog_reset()
    except ResponseError as error:
        log_events.HOT_LOGS_UNBOUNDED.log(error=error)


def warn_if_unbounded() -> None:
    """Warns when one client could take memory that all share, with the command that bounds it."""
    for client in servers():
        for option, value in _missing_bounds(client).items():
            fix = _config_set(client, option, value)
            log_events.HOT_CLIENTS_UNBOUNDED.log(option=option, fix=fix)


def warn_if_short(quota_bytes: int) -> None:
    """Warns when hot quotas promise more than the servers have: writes fail for everybody."""
    limit = memory().max_bytes
    needed = int(quota_bytes * MEMORY_PER_BYTE)
    if 0 < limit < needed:
        log_events.HOT_MEMORY_SHORT.log(maxmemory=limit, quotas=quota_bytes, needed=needed)


def _missing_bounds(client: Any) -> dict[str, str]:
    """Options that bound too little or nothing, and what to set them to. Raises valkey's errors.

    Empty for a server that shows nobody its configuration, as some hosted ones do.
    """
    try:
        values = {name: str(client.config_get(name).get(name, "")) for name in _BOUNDS}
    except ResponseError:
        return {}
    return {
        name: fix
        for name, (fix, is_bound) in _BOUNDS.items()
        if values[name] and not is_bound(values[name])
    }


def _config_set(client: Any, option: str, value: str) -> str:
    where = client.connection_pool.connection_kwargs
    host, port = where.get("host"), where.get("port")
    return f"valkey-cli -h {host} -p {port} --askpass CONFIG SET {option} {value}"
