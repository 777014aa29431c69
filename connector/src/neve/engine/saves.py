"""Saves, seen from the scheduler: which chunks that a step completes are copied out and stored.

Belongs to the scheduler's thread. `neve.engine.saver` carries saves out.
"""

from collections.abc import Iterable, Sequence

from neve.engine.canary import Canary
from neve.engine.groups import engine_blocks_of
from neve.engine.step import BlockSave
from neve.engine.table import RequestTable


class Saves:
    """With `saves` False only the canary's chunks are copied out, to be compared."""

    def __init__(self, table: RequestTable, canary: Canary, *, saves: bool) -> None:
        self._table = table
        self._canary = canary
        self._saves = saves
        # Request id → computed tokens from which on `plan` has something to do; missing: ask it.
        self.due_at: dict[str, int] = {}

    def plan(
        self, request_id: str, computed_tokens: int, engine_blocks: Sequence[Sequence[int]]
    ) -> list[BlockSave]:
        """Whole chunks among the first `computed_tokens` that were neither saved nor found yet.

        Only tokens whose ids are final count: rejected drafts are not in the engine's sequence.
        """
        request = self._table.requests.get(request_id)
        if request is None:
            return []
        unproven = request.unproven and self._canary.closed
        stores = self._saves and request.may_save and not (unproven or self._canary.alone)
        if not (stores or request.to_compare):
            return []
        chain = self._table.chain_of(request)
        if chain is None:
            return []
        chunks = min(computed_tokens, len(request.tokens)) // chain.chunk_tokens
        chain.extend(chunks)
        plans = []
        for chunk in range(request.next_save, chunks):
            compares = chunk in request.to_compare
            row = request.to_compare.pop(chunk, ())
            for number, group in enumerate(self._table.groups):
                ids = self._table.of_group(chain.ids[chunk], number)
                blocks = engine_blocks_of(group, engine_blocks, chunk, chain.chunk_tokens)
                if group.window is not None and 0 in blocks:
                    continue  # the engine gave this window's KV back
                found = [at for at in self._table.of_group(row, number) if at is not None]
                is_new = stores and ids[0] not in self._table.stored
                if is_new or len(found) == len(ids):
                    if not is_new:
                        self._canary.expect(ids[0], number)
                        request.comparing.add(number)
                    plans.append(
                        BlockSave(
                            request_id,
                            ids,
                            self._table.of_group(chain.parents(chunk), number),
                            chain.chunk_tokens,
                            blocks,
                            chunk,
                            () if is_new else tuple(found),
                            number,
                        )
                    )
                if stores:
                    self._table.stored.add(ids[0], own=is_new)
            if compares and not request.to_compare:
                self._canary.complete(request.comparing)
        request.next_save = max(request.next_save, chunks)
        self.due_at[request_id] = (request.next_save + 1) * chain.chunk_tokens
        return plans

    def note_unsaved(self, block_ids: Iterable[bytes]) -> None:
        """First ids of chunks that were dropped or refused: a later request may save them."""
        self._table.stored.discard(block_ids)
