"""Saves, seen from the scheduler: which chunks that a step completes are copied out and stored.

Belongs to the scheduler's thread. `neve.engine.saver` carries saves out.
"""

from collections.abc import Iterable, Iterator, Sequence

from neve.engine.canary import Canary
from neve.engine.chains import Chain
from neve.engine.groups import engine_blocks_of
from neve.engine.step import BlockSave, OfferedState
from neve.engine.table import Request, RequestTable
from neve.formats.parts import PartKind
from neve.index.tier import Location


class Saves:
    """With `saves` False only the canary's chunks are copied out, to be compared.

    `state_every_tokens`: of the states that the engine offers, keep those of chunks that reach a
    multiple of this, and the last one of each prompt; None: all.
    """

    def __init__(
        self,
        table: RequestTable,
        canary: Canary,
        *,
        saves: bool,
        state_every_tokens: int | None = None,
    ) -> None:
        self._table = table
        self._canary = canary
        self._saves = saves
        self._state_every_tokens = state_every_tokens
        # Request id → computed tokens from which on `plan` has something to do; missing: ask it.
        self.due_at: dict[str, int] = {}

    def plan(
        self,
        request_id: str,
        computed_tokens: int,
        engine_blocks: Sequence[Sequence[int]],
        states: Sequence[OfferedState] = (),
    ) -> list[BlockSave]:
        """Whole chunks among the first `computed_tokens` that were neither saved nor found yet, and
        the offered `states`.

        Only tokens whose ids are final count: rejected drafts are not in the engine's sequence.
        """
        request = self._table.requests.get(request_id)
        if request is None:
            return []
        unproven = request.unproven and self._canary.closed
        stores = self._saves and request.may_save and not (unproven or self._canary.alone)
        if not (stores or request.to_compare):
            return []
        chain = self._table.chain_to_save(request)
        if chain is None:
            return []
        may_share = self._table.may_share(request)
        if request.probes and not may_share:
            request.to_compare.clear()  # KV of the family itself would prove nothing
        stores = stores and not request.probes and may_share
        chunks = min(computed_tokens, len(request.tokens)) // chain.chunk_tokens
        chain.extend(chunks)
        plans = []
        first = request.next_save
        if not (self._table.is_split or request.to_compare or request.probes):
            # Thousands of them after a load: the engine waits meanwhile.
            while stores and first < chunks and chain.ids[first][0] in self._table.stored:
                first += 1
        for chunk in range(first, chunks):
            compares = chunk in request.to_compare
            row = request.to_compare.pop(chunk, ())
            for number, group in enumerate(self._table.groups):
                if group.kind is PartKind.STATE:
                    continue  # never by its place in the block table
                ids = self._table.of_group(chain.ids[chunk], number)
                blocks = engine_blocks_of(group, engine_blocks, chunk, chain.chunk_tokens)
                if group.frees and 0 in blocks:
                    continue  # the engine gave this KV back
                found = [at for at in self._table.of_group(row, number) if at is not None]
                is_new = stores and ids[0] not in self._table.stored
                if is_new or len(found) == len(ids):
                    if request.probes:
                        self._expect_proof(request, chunk, number, ids[0])
                    elif not is_new:
                        self._canary.expect(ids[0], number)
                        request.comparing.add(number)
                    stored = () if is_new else tuple(found)
                    plans.append(self._save(request, chain, chunk, number, blocks, stored))
                if stores:
                    self._table.stored.add(ids[0], own=is_new)
            if compares and not (request.to_compare or request.probes):
                self._canary.complete(request.comparing)
        request.next_save = max(request.next_save, chunks)
        self.due_at[request_id] = (request.next_save + 1) * chain.chunk_tokens
        if stores and states:
            plans += self._states(request, chain, chunks, states)
        return plans

    def _states(
        self, request: Request, chain: Chain, chunks: int, states: Sequence[OfferedState]
    ) -> Iterator[BlockSave]:
        """Saves of the offered states at ends of the request's first `chunks` chunks. A state that
        was loaded is offered again, and is known to be stored."""
        for number, block, tokens in states:
            group, chunk = self._table.group_of.get(number), tokens // chain.chunk_tokens - 1
            if group is None or tokens % chain.chunk_tokens or not 0 <= chunk < chunks:
                continue
            ids = self._table.of_group(chain.ids[chunk], group)
            if ids[0] in self._table.stored or not self._keeps(request, tokens, chain.chunk_tokens):
                continue
            self._table.stored.add(ids[0], own=True)
            yield self._save(request, chain, chunk, group, (block,))

    def _keeps(self, request: Request, tokens: int, chunk_tokens: int) -> bool:
        """Whether the state after `tokens` tokens is one that operators want to have stored."""
        every = self._state_every_tokens
        if every is None or tokens // every > (tokens - chunk_tokens) // every:
            return True
        # At least one token of a prompt is computed, so a state at its very end is not its last.
        return tokens == (request.engine.prompt_tokens - 1) // chunk_tokens * chunk_tokens

    def _save(
        self,
        request: Request,
        chain: Chain,
        chunk: int,
        group: int,
        blocks: tuple[int, ...],
        stored: tuple[Location, ...] = (),
    ) -> BlockSave:
        return BlockSave(
            request.engine.request_id,
            self._table.of_group(chain.ids[chunk], group),
            self._table.of_group(chain.parents(chunk), group),
            chain.chunk_tokens,
            blocks,
            chunk,
            stored,
            group,
            bits=request.probes,
        )

    def _expect_proof(self, request: Request, chunk: int, group: int, block_id: bytes) -> None:
        assert self._table.attestation is not None
        assert request.chain is not None
        prompt = request.chain.ids[0][0]
        self._table.attestation.proof.expect(block_id, group=group, chunk=chunk, prompt=prompt)

    def note_unsaved(self, block_ids: Iterable[bytes]) -> None:
        """First ids of chunks that were dropped or refused: a later request may save them."""
        self._table.stored.discard(block_ids)
