"""Which prefixes Neve holds, in the engine's own terms, for routers that listen to its KV events.

A chunk is announced when every rank has stored its part, and withdrawn when a look-up or a load of
this engine finds that it is gone. What other nodes store they announce themselves; what leaves Neve
unseen by this engine is not withdrawn: a router may be promised too much, never told wrong tokens.
"""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

# Chunks that can be withdrawn, and that are on their way: beyond, the oldest are forgotten.
_MOST: Final = 1 << 16


@dataclass(frozen=True)
class ChunkStored:
    """One chunk that is stored; `hashes` are the engine's own, one for each of its blocks."""

    hashes: tuple[bytes, ...]
    parent: bytes | None
    tokens: tuple[int, ...]
    lora_id: int | None
    lora_name: str | None


@dataclass(frozen=True)
class ChunkRemoved:
    """One chunk that is not stored any more."""

    hashes: tuple[bytes, ...]


class RouterEvents:
    """Belongs to the scheduler's thread. Chunks are named by their first block's id."""

    def __init__(self, writers: int) -> None:
        """`writers`: ranks that store a part of each chunk."""
        self._writers = writers
        self._expected: OrderedDict[bytes, tuple[ChunkStored, int]] = OrderedDict()
        self._announced: OrderedDict[bytes, tuple[bytes, ...]] = OrderedDict()
        self._news: list[ChunkStored | ChunkRemoved] = []

    def expect(self, block_id: bytes, announcement: ChunkStored) -> None:
        """The chunk's parts are on their way."""
        self._expected[block_id] = announcement, self._writers
        if len(self._expected) > _MOST:
            self._expected.popitem(last=False)

    def note_stored(self, ids: Iterable[bytes]) -> None:
        """One writer's words: each id once for every writer that stored its part."""
        for block_id in ids:
            announcement, missing = self._expected.pop(block_id, (None, 0))
            if announcement is None:
                continue
            if missing > 1:
                self._expected[block_id] = announcement, missing - 1
                continue
            self._news.append(announcement)
            self._announced[block_id] = announcement.hashes
            if len(self._announced) > _MOST:
                self._announced.popitem(last=False)

    def note_lost(self, ids: Iterable[bytes]) -> None:
        """These are not stored: never were, or not any more."""
        for block_id in ids:
            self._expected.pop(block_id, None)
            hashes = self._announced.pop(block_id, None)
            if hashes is not None:
                self._news.append(ChunkRemoved(hashes))

    def take(self) -> list[ChunkStored | ChunkRemoved]:
        """What is new since the last call, in order."""
        news, self._news = self._news, []
        return news
