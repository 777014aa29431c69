"""What the hot Valkey must bound, so that no client takes what belongs to all.

deploy/valkey-hot.conf sets it, with the reasons; an operator's own Valkey may lack it.
"""

from collections.abc import Callable
from typing import Any

from valkey.exceptions import ResponseError

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
