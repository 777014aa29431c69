"""Loads, seen from the scheduler: planned once the engine allocated blocks, ended by the workers.

Belongs to the scheduler's thread. `neve.engine.loader` carries loads out.
"""

from collections.abc import Iterable, Sequence

from neve.engine.load_policy import LoadPolicy
from neve.engine.step import BlockLoad, LoadPlan
from neve.engine.table import RequestTable
from neve.engine.telemetry import Telemetry


class Loads:
    """At most one load of a request is under way."""

    def __init__(self, table: RequestTable, policy: LoadPolicy, telemetry: Telemetry) -> None:
        self._table = table
        self._policy = policy
        self._telemetry = telemetry

    def plan(self, request_id: str, external_tokens: int, engine_blocks: Sequence[int]) -> LoadPlan:
        """The load of `external_tokens` after the local ones, into the request's engine blocks.

        Follows a `Lookups.matched_tokens` that answered at least so many.
        """
        request = self._table.requests[request_id]
        lookup, request.lookup = request.lookup, None
        assert lookup is not None
        assert lookup.choice is not None
        assert request.chain is not None
        size = request.chain.chunk_tokens
        block_tokens = self._table.engine_block_tokens
        per_chunk = size // block_tokens
        end_tokens = request.local_tokens + external_tokens
        first = request.local_tokens // size
        blocks = [
            BlockLoad(
                ids=request.chain.ids[chunk],
                locations=lookup.found[chunk - lookup.start],
                engine_blocks=tuple(engine_blocks[chunk * per_chunk : (chunk + 1) * per_chunk]),
                skip=max(0, request.local_tokens - chunk * size) // block_tokens,
            )
            for chunk in range(first, -(-end_tokens // size))
        ]
        self._policy.note_decision(lookup.choice)
        deadline_s = self._policy.deadline_s(lookup.choice)
        request.loading = LoadPlan(request_id, first, tuple(blocks), deadline_s)
        request.failed_chunk = None
        self._policy.begin_load(request.loading)
        return request.loading

    def note_failures(self, engine_blocks: Iterable[int]) -> None:
        """Some rank could not fill these engine blocks, which belong to loads under way."""
        failed = frozenset(engine_blocks)
        for request in self._table.requests.values() if failed else ():
            if request.loading is None:
                continue
            for number, block in enumerate(request.loading.blocks):
                if not failed.isdisjoint(block.written):
                    earlier = request.failed_chunk
                    request.failed_chunk = number if earlier is None else min(earlier, number)
                    break

    def note_ended(self, request_id: str) -> None:
        """Every rank ended this request's load, well or not."""
        request = self._table.requests.get(request_id)
        if request is None or request.loading is None:
            self._policy.end_load(request_id, None)  # the request was aborted meanwhile
            return
        plan, request.loading = request.loading, None
        good = len(plan.blocks) if request.failed_chunk is None else request.failed_chunk
        self._policy.end_load(request_id, good)
        assert request.chain is not None
        size = request.chain.chunk_tokens
        for chunk, block in enumerate(plan.blocks[:good], plan.first_chunk):
            tier = block.locations[0].tier
            tokens = len(block.written) * self._table.engine_block_tokens
            # After a preemption, output tokens are loaded too: they are no reused prompt tokens.
            output_tokens = max(0, (chunk + 1) * size - request.engine.prompt_tokens)
            request.reused[chunk] = tier, max(0, tokens - output_tokens)
            self._telemetry.count("hit_tokens", tokens, tier)
        if good < len(plan.blocks):
            # Another look-up would find the same blocks and fail the same way, for ever.
            request.may_load = False
            for block in plan.blocks[good:]:
                self._table.stored.lose(block.ids[0])
