"""Finds, loads and stores pages of an engine's own host memory, under the engine's keys.

For engines that call from threads of their own and wait for the answer; `neve.engine.tier_store` is
for those that poll. Bytes move between the pages themselves and the network, without a copy.
"""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

from neve.datapath.client import BlockRef, Client
from neve.datapath.payload import Payload
from neve.engine.saver import PUT_DEADLINE_S
from neve.errors import MissReason, NeveError
from neve.index.tier import Location

# Keys of one question: a chain that ends early is not asked for to its end.
ASKED_KEYS: Final = 1024
# An engine that finds nothing may ask for the same chain again and again while it waits.
REPEAT_S: Final = 2.0


class PageStore:
    """For any thread. No call raises for trouble in storage: pages are missed, or not stored.

    A call waits for its deadline at most. While `client` returns None (not connected), and after
    `stop`, nothing is found and nothing stored. Keys must be cryptographic hashes of whole
    prefixes.
    """

    def __init__(
        self,
        client: Callable[[], Client | None],
        *,
        match_deadline_s: float,
        load_deadline_s: float,
    ) -> None:
        self._connected = client
        self._match_deadline_s = match_deadline_s
        self._load_deadline_s = load_deadline_s
        self._stopped = False
        self._lock = threading.Lock()
        self._missed: tuple[bytes, float] = (b"", 0.0)  # last key of a chain, and when

    def stop(self) -> None:
        """For good: the engine's KV is not what its keys say any more."""
        self._stopped = True

    def find(self, keys: Sequence[bytes]) -> int:
        """How many of a chain's keys are stored, from the first on."""
        client = self._client()
        if client is None or not keys:
            return 0
        end = time.monotonic() + self._match_deadline_s
        ids = self._ids(client, keys)
        found, miss = 0, None
        while miss is None and found < len(ids):
            asked = ids[found : found + ASKED_KEYS]
            match = client.match_again(asked, deadline_s=max(0.0, end - time.monotonic()))
            found, miss = found + len(match.locations), match.miss
        if not (found == 0 and self._is_repeated(keys[-1])):
            self._count(client, len(ids), found, miss)
        return found

    def load(self, keys: Sequence[bytes], pages: Sequence[Payload]) -> list[bool]:
        """Which pages were filled. Another page may hold garbage. No page is written to later."""
        client = self._client()
        if client is None:
            return [False] * len(keys)
        end = time.monotonic() + self._load_deadline_s
        ids = self._ids(client, keys)
        places = client.match_again(ids, deadline_s=self._match_deadline_s).locations
        found = len(places)
        transfer = client.get_many(
            ids[:found],
            pages[:found],
            locations=places,
            deadline_s=max(0.001, end - time.monotonic()),
        )
        filled = [outcome is None for outcome in transfer.wait()]
        return filled + [False] * (len(keys) - found)

    def store(
        self, keys: Sequence[bytes], pages: Sequence[Payload], tokens: int, *, before: bytes | None
    ) -> list[bool]:
        """Which pages are stored, each of `tokens` tokens. `before`: key of the page in front of
        the first one, if it is known. Pages that are stored already are not sent."""
        client = self._client()
        if client is None:
            return [False] * len(keys)
        ids = self._ids(client, keys)
        parent = client.hasher.root() if before is None else self._ids(client, [before])[0]
        try:
            places = client.locate_again(ids, deadline_s=self._match_deadline_s)
        except NeveError:  # the index can't be asked: the breaker counts it
            return [False] * len(keys)
        stored = [isinstance(place, Location) for place in places]
        new = [n for n, is_stored in enumerate(stored) if not is_stored]
        parents = [parent, *ids]
        transfer = client.put_many(
            [BlockRef(ids[n], parents[n], tokens) for n in new],
            [pages[n] for n in new],
            deadline_s=PUT_DEADLINE_S,
        )
        for n, outcome in zip(new, transfer.wait(), strict=True):
            stored[n] = outcome is None
        return stored

    def _client(self) -> Client | None:
        return None if self._stopped else self._connected()

    @staticmethod
    def _ids(client: Client, keys: Sequence[bytes]) -> list[bytes]:
        return [client.hasher.of_key(key) for key in keys]

    def _is_repeated(self, key: bytes) -> bool:
        """Whether the chain that ends with `key` was missed just before."""
        now = time.monotonic()
        with self._lock:
            before, self._missed = self._missed, (key, now)
        return before[0] == key and now - before[1] < REPEAT_S

    @staticmethod
    def _count(client: Client, asked: int, found: int, miss: MissReason | None) -> None:
        tokens = asked * client.session.chunk_tokens
        client.stats.count(requested_blocks=asked, requested_tokens=tokens)
        if miss is not None:
            client.stats.miss(miss, asked - found)
