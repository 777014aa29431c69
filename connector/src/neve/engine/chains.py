"""The block ids of one request, hashed as its tokens become known."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from neve.formats.ids import BlockHasher


@dataclass(frozen=True)
class Media:
    """One multimodal item: the id of its content, and the prompt tokens that it fills."""

    identifier: bytes
    offset: int
    length: int


@dataclass(frozen=True)
class Origin:
    """What decides a request's KV besides its tokens."""

    salt: bytes = b""
    lora: bytes = b""
    media: tuple[Media, ...] = ()


class Chain:
    """`ids`: for each chunk a tuple with one id a column (see `neve.engine.sharding`).

    `tokens` is the engine's own growing sequence (prompt, then output), never a copy. Extend only
    over final tokens. `extend` may be called by any thread; a thread reads `ids` after its own
    `extend`.
    """

    def __init__(
        self,
        tokens: Sequence[int],
        hashers: Sequence[BlockHasher],
        origin: Origin,
        *,
        shards: int = 1,
        groups: int = 1,
    ) -> None:
        """`hashers` has one entry a space, which has `shards` columns, or a column for each of
        several `groups`."""
        self.tokens = tokens
        self.ids: list[tuple[bytes, ...]] = []
        self._hashers = hashers
        self._media = origin.media
        self._shards = shards
        self._groups = groups
        # Of each space, the last hashed id, from which its columns' ids are derived.
        self._last = [h.root(salt=origin.salt, lora=origin.lora) for h in hashers]
        self._root = tuple(chain.from_iterable(map(self._columns, hashers, self._last)))
        self.chunk_tokens = hashers[0].chunk_tokens
        self._growing = threading.Lock()

    def extend(self, chunks: int) -> None:
        """Hashes the ids of the first `chunks` chunks, except those that are known."""
        with self._growing:
            have = len(self.ids)
            if chunks <= have:
                return
            size = self.chunk_tokens
            tokens = list(self.tokens[have * size : chunks * size])
            extras = self._extras(have, chunks)
            per_space = []
            for number, hasher in enumerate(self._hashers):
                ids = hasher.chain(tokens, parent=self._last[number], extras=extras)
                self._last[number] = ids[-1]
                if len(self._root) == 1:  # thousands of chunks, each with one id
                    self.ids += [(id_,) for id_ in ids]
                    return
                per_space.append([self._columns(hasher, id_) for id_ in ids])
            every = zip(*per_space, strict=True)
            self.ids += [tuple(chain.from_iterable(columns)) for columns in every]

    def parents(self, chunk: int) -> tuple[bytes, ...]:
        """The ids before chunk number `chunk`, one a column."""
        return self.ids[chunk - 1] if chunk else self._root

    def _columns(self, hasher: BlockHasher, id_: bytes) -> list[bytes]:
        if self._shards > 1:
            return hasher.of_heads(id_, self._shards)
        return hasher.of_groups(id_, self._groups)

    def _extras(self, first: int, end: int) -> dict[int, bytes]:
        """Chunk index relative to `first` → ids and offsets of the media that it overlaps."""
        extras: dict[int, bytes] = {}
        for item in self._media:
            packed = (
                len(item.identifier).to_bytes(4, "little")
                + item.identifier
                + item.offset.to_bytes(8, "little")
                + item.length.to_bytes(8, "little")
            )
            last = (item.offset + max(item.length, 1) - 1) // self.chunk_tokens
            for chunk in range(max(item.offset // self.chunk_tokens, first), min(last + 1, end)):
                extras[chunk - first] = extras.get(chunk - first, b"") + packed
        return extras
