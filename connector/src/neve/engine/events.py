"""Which prefixes Neve holds, in the engine's own hashes, for routers that listen to its KV events.

A chunk is reported stored when every rank stored its part, and removed when one of its blocks left
Neve (`neve.engine.removals`), or a look-up or load of this engine finds it gone. Other nodes report
what they store. Reports come late: a router may expect a hit too many, never wrong tokens.

Chunks of requests with a salt or media are not reported: their hashes hold more than tokens, and a
router would take them for those of the plain prompt.
"""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

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


class _Stored(NamedTuple):
    """A reported chunk."""

    hashes: tuple[bytes, ...]
    others: tuple[bytes, ...]  # its blocks but the first


class RouterEvents:
    """Belongs to the scheduler's thread. Chunks are named by their first block's id."""

    def __init__(self, parts: int) -> None:
        """`parts`: ranks that store a part of each chunk; 0: no router listens."""
        self._parts = parts
        self._is_paused = parts == 0
        self._saving: OrderedDict[bytes, tuple[ChunkStored, int, tuple[bytes, ...]]] = OrderedDict()
        self._stored: OrderedDict[bytes, _Stored] = OrderedDict()
        self._first: dict[bytes, bytes] = {}  # other blocks of these chunks → their first
        self._events: list[ChunkStored | ChunkRemoved] = []

    def expect(self, request: Request, save: BlockSave, per_chunk: int) -> None:
        """The chunk of `per_chunk` engine blocks is being saved. No event comes of it if the engine
        has no hashes of whole engine blocks."""
        if self._is_paused:
            return
        if request.engine.salt or request.engine.media:
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
        self._saving[save.ids[0]] = event, self._parts, save.ids[1:]
        if len(self._saving) > _MOST:
            self._saving.popitem(last=False)

    def note_stored(self, ids: Iterable[bytes]) -> None:
        """Each id once for every rank that stored its part."""
        for block_id in ids:
            event, missing, others = self._saving.pop(block_id, (None, 0, ()))
            if event is None:
                continue
            if missing > 1:
                self._saving[block_id] = event, missing - 1, others
                continue
            self._events.append(event)
            self._stored[block_id] = _Stored(event.hashes, others)
            self._first.update(dict.fromkeys(others, block_id))
            if len(self._stored) > _MOST:
                self._forget(self._stored.popitem(last=False)[1])

    def note_lost(self, ids: Iterable[bytes]) -> None:
        """These chunks, by their first ids, were never stored, or are gone."""
        for block_id in ids:
            self._saving.pop(block_id, None)
            self._withdraw(block_id)

    def note_removed(self, ids: Iterable[bytes]) -> None:
        """These blocks, of any rank, left Neve."""
        for block_id in ids:
            self._withdraw(self._first.get(block_id, block_id))

    def note_unknown(self) -> None:
        """Any chunk that was stored until now may have left Neve."""
        for block_id in list(self._stored):
            self._withdraw(block_id)

    def _withdraw(self, block_id: bytes) -> None:
        stored = self._stored.pop(block_id, None)
        if stored is not None:
            self._forget(stored)
            self._events.append(ChunkRemoved(stored.hashes))

    def _forget(self, stored: _Stored) -> None:
        for other in stored.others:
            self._first.pop(other, None)

    def pause(self) -> None:
        """Forgets all chunks: after a reset, the engine's hashes may stand for other KV."""
        self._is_paused = True
        self._saving.clear()
        self._stored.clear()
        self._first.clear()
        self._events.clear()

    def resume(self) -> None:
        """The engine's hashes stand for the same KV as at the start."""
        self._is_paused = self._parts == 0

    def take(self) -> list[ChunkStored | ChunkRemoved]:
        """Events since the last call, in order."""
        events, self._events = self._events, []
        return events
