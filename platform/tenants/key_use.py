"""The last use of each API key: noted on the bus, written to the database by a worker.

A request that reads must not need the database's write lock, which another process may hold. A bus
that is down loses the note; the key's next use a minute later notes it again.
"""

import time
from datetime import datetime

from django.core.cache import caches
from django.db.models import Q
from django.utils import timezone
from redis.exceptions import RedisError

from base import log_events
from tenants.models import ApiKey

NOTE_EVERY_S = 60.0  # a process notes a key at most so often
KEPT_S = 86400  # a worker that was down for longer misses the note
BATCH = 500

# One for all threads: `caches` would connect anew for each request, which has its own thread.
_notes = caches.create_connection("default")
_noted: dict[str, float] = {}  # prefix -> time.monotonic()


def note(key: ApiKey) -> None:
    """Never fails, and costs a round trip to the bus once a minute."""
    now = time.monotonic()
    if now - _noted.get(key.prefix, float("-inf")) < NOTE_EVERY_S:
        return
    _noted[key.prefix] = now
    try:
        _notes.set(_name(key.prefix), timezone.now().isoformat(), KEPT_S)
    except RedisError as error:
        log_events.KEY_USE_NOT_NOTED.log(key=key.prefix, error=error)


def write_down() -> int:
    """Moves notes into `last_used_at`. Returns how many keys were used since the last call.

    Raises the bus's errors.
    """
    prefixes = list(ApiKey.unscoped.filter(revoked_at=None).values_list("prefix", flat=True))
    batches = (prefixes[first : first + BATCH] for first in range(0, len(prefixes), BATCH))
    return sum(map(_write, batches))


def _write(prefixes: list[str]) -> int:
    found = _notes.get_many(map(_name, prefixes))
    written = 0
    for prefix in prefixes:
        if (text := found.get(_name(prefix))) is not None:
            at = datetime.fromisoformat(text)
            earlier = Q(last_used_at=None) | Q(last_used_at__lt=at)
            written += ApiKey.unscoped.filter(earlier, prefix=prefix).update(last_used_at=at)
    return written


def _name(prefix: str) -> str:
    return f"key-used:{prefix}"
