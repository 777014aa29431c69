"""Counts the platform's requests to S3 by tenant and space, for the cost of storage.

Each attempt counts, also one that fails, as stores charge. Sums of all processes stand on
valkey-bus in a hash for each tenant (`base.counting`): field `<space>:<class>`, where the space is
the 16 hex digits of object keys (empty: requests for the whole tenant). Requests without a
tenant's prefix are the platform's own and are not counted. Nodes count their own GETs.
"""

import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from redis.exceptions import RedisError

from base.counting import PROCESS, bus
from neve.formats.keys import OBJECTS_PREFIX

CLASSES: Final = ("puts", "gets", "read_bytes")
_OBJECT: Final = re.compile(rf"{re.escape(OBJECTS_PREFIX)}t(\d{{1,18}})(?:/([0-9a-f]{{16}})?)?")
_RANGE: Final = re.compile(r"bytes=(\d{1,18})-(\d{1,18})")


def count(request: Any, *, bucket: str, **_: Any) -> None:
    """Receives botocore's `before-send.s3`. Must return None, so that the request is sent."""
    headers = {str(name).lower(): value for name, value in request.headers.items()}
    for key, field, amount in counts_of(request.method, request.url, headers, bucket):
        PROCESS.add(field, amount, key)


def counts_of(
    method: str, url: str, headers: Mapping[str, str | bytes], bucket: str
) -> list[tuple[str, str, int]]:
    """(hash, field, amount) of one request; empty: it is free, or belongs to no tenant."""
    parts = urlsplit(url)
    query = parse_qs(parts.query, keep_blank_values=True)
    object_key = parts.path.removeprefix(f"/{bucket}").lstrip("/")
    is_list = not object_key
    found = _OBJECT.match(query.get("prefix", [""])[0] if is_list else object_key)
    if found is None or method == "DELETE" or (method == "POST" and "delete" in query):
        return []
    tenant_id, space = found.groups(default="")
    reads = method in ("GET", "HEAD") and not is_list
    counts = [(key_of(int(tenant_id)), f"{space}:{'gets' if reads else 'puts'}", 1)]
    given = headers.get("range", "")
    asked = _RANGE.fullmatch(given.decode("latin-1") if isinstance(given, bytes) else given)
    if method == "GET" and asked is not None:
        size_bytes = int(asked[2]) - int(asked[1]) + 1
        counts.append((key_of(int(tenant_id)), f"{space}:read_bytes", max(0, size_bytes)))
    return counts


def key_of(tenant_id: int) -> str:
    return f"neve:s3:{tenant_id}"


def totals(tenant_id: int) -> dict[str, int] | None:
    """By field, since the bus lost its memory last. None: the bus does not answer."""
    try:
        found = bus().hgetall(key_of(tenant_id))
    except RedisError:
        return None
    return {field.decode(): round(float(total)) for field, total in found.items()}  # type: ignore[union-attr]
