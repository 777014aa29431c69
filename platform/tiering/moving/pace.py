"""Bounds the bytes a second of moves into one store, of all workers together.

A clock on valkey-bus says when the store is free again; each taker moves it on.
"""

import time
from typing import Final

from base.counting import bus

# KEYS[1]: when the store is free, and when that was noted, in ms. ARGV[1]: ms that these bytes
# take. Returns how many ms to wait first. A clock that was set back since the note sets both back.
_TAKE: Final = """
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local noted = redis.call('HMGET', KEYS[1], 'free', 'at')
local ahead = math.max(0, tonumber(noted[2] or '0') - now)
local free = math.max(now, tonumber(noted[1] or '0') - ahead)
redis.call('HSET', KEYS[1], 'free', string.format('%.0f', free + ARGV[1]),
  'at', string.format('%.0f', now))
redis.call('PEXPIRE', KEYS[1], 600000)
return free - now
"""


class Pace:
    """Of moves into store `store_id` (None: the default)."""

    def __init__(self, store_id: int | None, bytes_per_s: int) -> None:
        self._key = f"neve:move_pace:{store_id or 0}"
        self._bytes_per_s = bytes_per_s

    def take(self, size_bytes: int) -> None:
        """Waits until so many bytes may be moved. Raises redis's errors."""
        took_ms = size_bytes * 1000 // self._bytes_per_s
        time.sleep(int(bus().eval(_TAKE, 1, self._key, took_ms)) / 1000)
