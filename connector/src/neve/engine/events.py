"""Which prefixes Neve holds, in the engine's own hashes, for routers that listen to its KV events.

A chunk is reported stored when every rank stored its part, and removed when a look-up or load of
this engine finds it gone. Other nodes report what they store. A chunk that leaves Neve unseen by
this engine is not reported: a router may then expect a hit too many, never wrong tokens.
"""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from neve.engine.step import BlockSave
from neve.engine.table import Request

# Chunks whose removal can be reported, and chunks being stored: the oldest beyond are forgotten.
_MOST: Final = 1 << 16


@dataclass(frozen=True)
class ChunkStored:
    """`hashes`: the engine's own, one for each engine block. `parent`: the hash before them."""

    hashes: tuple[bytes, ...]
    parent: bytes | None
    tokens: tuple[int, ...]
    lora_id: int | None
    lora_name: str | None


@dataclass(frozen=True)
class ChunkRemoved:
    hashes: tuple[bytes, ...]


class RouterEvents:
    """Belongs to the scheduler's thread. Chunks are named by their first block's id."""

    def __init__(self, parts: int) -> None:
        """`parts`: ranks that store a part of each chunk; 0: no router listens."""
        self._parts = parts
        self._is_paused = parts == 0
        self._saving: OrderedDict[bytes, tuple[ChunkStored, int]] = OrderedDict()
        self._stored: OrderedDict[bytes, tuple[bytes, ...]] = OrderedDict()
        self._events: list[ChunkStored | ChunkRemoved] = []

    def expect(self, request: Request, save: BlockSave, per_chunk: int) -> None:
        """The chunk of `per_chunk` engine blocks is being saved. No event comes of it if the engine
        has no hashes of whole engine blocks."""
        if self._is_paused:
            return
        hashes = request.engine.engine_hashes()
        if len(hashes) != len(request.tokens) * per_chunk // save.tokens:
            return
        first, lora = save.chunk * per_chunk, request.engine.lora
        event = ChunkStored(
            hashes=tuple(hashes[first : first + per_chunk]),
            parent=hashes[first - 1] if first else None,
            tokens=tuple(request.tokens[save.chunk * save.tokens : (save.chunk + 1) * save.tokens]),
            lora_id=lora.id if lora is not None else None,
            lora_name=lora.name if lora is not None else None,
        )
        self._saving[save.ids[0]] = event, self._parts
        if len(self._saving) > _MOST:
            self._saving.popitem(last=False)

    def note_stored(self, ids: Iterable[bytes]) -> None:
        """Each id once for every rank that stored its part."""
        for block_id in ids:
            event, missing = self._saving.pop(block_id, (None, 0))
            if event is None:
                continue
            if missing > 1:
                self._saving[block_id] = event, missing - 1
                continue
            self._events.append(event)
            self._stored[block_id] = event.hashes
            if len(self._stored) > _MOST:
                self._stored.popitem(last=False)

    def note_lost(self, ids: Iterable[bytes]) -> None:
        """These chunks were never stored, or are gone."""
        for block_id in ids:
            self._saving.pop(block_id, None)
            hashes = self._stored.pop(block_id, None)
            if hashes is not None:
                self._events.append(ChunkRemoved(hashes))

    def pause(self) -> None:
        """Forgets all chunks: after a reset, the engine's hashes may stand for other KV."""
        self._is_paused = True
        self._saving.clear()
        self._stored.clear()
        self._events.clear()

    def resume(self) -> None:
        """The engine's hashes stand for the same KV as at the start."""
        self._is_paused = self._parts == 0

    def take(self) -> list[ChunkStored | ChunkRemoved]:
        """Events since the last call, in order."""
        events, self._events = self._events, []
        return events
