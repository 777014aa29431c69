"""Bounds the bytes a second of moves into one store, of all workers together.

A clock on valkey-bus says when the store is free again; each taker moves it on.
"""

import time
from typing import Final

from base.counting import bus

# KEYS[1]: the store's clock. ARGV[1]: ms that these bytes take. Returns how many ms to wait first.
_TAKE: Final = """
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local free = math.max(now, tonumber(redis.call('GET', KEYS[1]) or '0'))
redis.call('SET', KEYS[1], string.format('%.0f', free + ARGV[1]), 'PX', 600000)
return free - now
"""


class Pace:
    """Of moves into store `store_id` (None: the default)."""

    def __init__(self, store_id: int | None, bytes_per_s: int) -> None:
        self._key = f"neve:moves:{store_id or 0}"
        self._bytes_per_s = bytes_per_s

    def take(self, size_bytes: int) -> None:
        """Waits until so many bytes may be moved. Raises redis's errors."""
        took_ms = size_bytes * 1000 // self._bytes_per_s
        time.sleep(int(bus().eval(_TAKE, 1, self._key, took_ms)) / 1000)
