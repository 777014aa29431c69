"""What the hot Valkey must bound, so that no client takes what belongs to all.

deploy/valkey-hot.conf sets it, with the reasons; an operator's own Valkey may lack it.
"""

import logging
from collections.abc import Callable
from typing import Any

from valkey.exceptions import ResponseError

log = logging.getLogger("neve.hot")

MIB = 1 << 20

# Option → what the file sets, and whether another value will do as well.
_WANTED: dict[str, tuple[str, Callable[[str], bool]]] = {
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


# Servers keep the last entries of these whole, with names of connections and keys of up to
# 64 MiB, in memory that blocks lack and that counts as nobody's. The latter two: from 8.1 on.
_LOGS = {
    "acllog-max-len": "0",
    "slowlog-max-len": "0",
    "commandlog-large-request-max-len": "0",
    "commandlog-large-reply-max-len": "0",
}


def keep_no_logs(client: Any) -> None:
    """Ends and empties the server's own logs of commands. Raises valkey's connection errors."""
    try:
        for option, value in _LOGS.items():
            if client.config_get(option).get(option, value) != value:
                client.config_set(option, value)
        client.execute_command("ACL", "LOG", "RESET")
        client.slowlog_reset()
    except ResponseError as error:
        log.warning("hot_logs_unbounded error=%s", error)


def missing_bounds(client: Any) -> dict[str, str]:
    """Options that bound too little or nothing, and what to set them to. Raises valkey's errors.

    Empty for a server that tells nobody its configuration, as some hosted ones do.
    """
    try:
        told = {name: str(client.config_get(name).get(name, "")) for name in _WANTED}
    except ResponseError:
        return {}
    return {
        name: wanted
        for name, (wanted, is_bound) in _WANTED.items()
        if told[name] and not is_bound(told[name])
    }
