"""Loads, seen from the scheduler: planned once the engine allocated blocks, ended by the workers.

Belongs to the scheduler's thread. `neve.engine.loader` carries loads out.
"""

from collections.abc import Iterable, Sequence

from neve.engine.groups import blocks_to_skip, engine_blocks_of
from neve.engine.load_policy import LoadPolicy
from neve.engine.step import BlockLoad, LoadPlan
from neve.engine.table import Request, RequestTable, Row
from neve.engine.telemetry import Telemetry
from neve.formats.block import HEADER_BYTES
from neve.formats.parts import PartKind
from neve.index.tier import Tier
from neve.planner.choice import counted_as


class Loads:
    """At most one load of a request is under way."""

    def __init__(
        self, table: RequestTable, policy: LoadPolicy, telemetry: Telemetry, *, gpus: int = 1
    ) -> None:
        """`gpus`: of the engine, TP × PP."""
        self._table = table
        self._policy = policy
        self._telemetry = telemetry
        self._gpus = gpus

    def plan(
        self, request_id: str, external_tokens: int, engine_blocks: Sequence[Sequence[int]]
    ) -> LoadPlan:
        """The load of `external_tokens` after the local ones, into the request's engine blocks, one
        list for each KV cache group.

        Follows a `Lookups.matched_tokens` that answered at least so many; with several groups,
        exactly so many. Raises `ValueError` otherwise.
        """
        request = self._table.requests[request_id]
        lookup, request.lookup = request.lookup, None
        assert lookup is not None
        assert lookup.choice is not None
        assert request.chain is not None
        size = request.chain.chunk_tokens
        first = request.local_tokens // size
        end_tokens = request.local_tokens + external_tokens
        chunks = -(-end_tokens // size) - first
        rows = lookup.found[first - lookup.start :][:chunks]
        resume = self._table.resume(request, rows, first=first)
        if resume.chunks != chunks or (self._table.is_split and end_tokens % size):
            raise ValueError(f"{external_tokens} tokens are no end of {resume.chunks} found chunks")
        if self._table.is_split:
            blocks = [
                self._block(request, group, chunk, rows[chunk - first], engine_blocks, end_tokens)
                for group, needed in enumerate(resume.needed)
                for chunk in range(first + chunks - needed, first + chunks)
            ]
            blocks = _counted(blocks, external_tokens)
        else:
            blocks = self._whole_blocks(request, first, rows, engine_blocks)
        self._policy.note_decision(lookup.choice)
        self._table.count({counted_as(lookup.choice.decision): 1})
        deadline_s = self._policy.deadline_s(lookup.choice)
        request.loading = LoadPlan(
            request_id, first, tuple(blocks), deadline_s, whole=self._table.is_split
        )
        request.failed_chunk = None
        self._policy.begin_load(request.loading)
        return request.loading

    def _whole_blocks(
        self,
        request: Request,
        first: int,
        rows: Sequence[Row],
        engine_blocks: Sequence[Sequence[int]],
    ) -> list[BlockLoad]:
        """As `_block`, for tables of one group that sees all tokens: a long prompt has thousands
        of chunks, and the engine waits meanwhile."""
        assert request.chain is not None
        (group,), size = self._table.groups, request.chain.chunk_tokens
        each = size // group.block_tokens
        filled = tuple(engine_blocks[group.number][first * each : (first + len(rows)) * each])
        skip = (request.local_tokens - first * size) // group.block_tokens  # of the first chunk
        return [
            BlockLoad(ids, row, filled[n * each : (n + 1) * each], 0 if n else skip)  # type: ignore[arg-type]  # rows are complete
            for n, (ids, row) in enumerate(
                zip(request.chain.ids[first : first + len(rows)], rows, strict=True)
            )
        ]

    def _block(
        self,
        request: Request,
        number: int,
        chunk: int,
        row: Row,
        engine_blocks: Sequence[Sequence[int]],
        end_tokens: int,
    ) -> BlockLoad:
        """The load of one group's block of a chunk."""
        assert request.chain is not None
        group, size = self._table.groups[number], request.chain.chunk_tokens
        locations = self._table.of_group(row, number)
        block = BlockLoad(
            ids=self._table.of_group(request.chain.ids[chunk], number),
            locations=tuple(location for location in locations if location is not None),
            engine_blocks=engine_blocks_of(group, engine_blocks, chunk, size),
            skip=blocks_to_skip(
                group, chunk, size, end_tokens=end_tokens, local_tokens=request.local_tokens
            ),
            group=number,
        )
        if group.frees and 0 in block.written:
            raise ValueError(f"group {number} has no engine block for a part of chunk {chunk}")
        return block

    def note_failed(self, request_ids: Iterable[str]) -> None:
        """Loads of several KV cache groups failed: the engine computes all of these requests."""
        for request_id in request_ids:
            request = self._table.requests.get(request_id)
            if request is not None and request.loading is not None:
                request.failed_chunk = 0

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
        took_s = self._policy.end_load(request_id, good)
        assert request.chain is not None
        loaded_tokens = self._tokens(plan.blocks[:good])
        self._count_worth(request, loaded_tokens, took_s)
        seen = request.seen
        seen.loaded_tokens += loaded_tokens
        seen.load_s = took_s + (seen.load_s or 0.0)
        seen.failed = seen.failed or good < len(plan.blocks)
        if plan.whole and good:
            self._note_reused(request, plan)
        self._count_family(request, plan.blocks[:good])
        size, hit_tokens = request.chain.chunk_tokens, dict.fromkeys(Tier, 0)
        for chunk, block in enumerate(() if plan.whole else plan.blocks[:good], plan.first_chunk):
            tier = block.locations[0].nearest
            tokens = len(block.written) * self._table.engine_block_tokens
            # After a preemption, output tokens are loaded too: they are no reused prompt tokens.
            output_tokens = max(0, (chunk + 1) * size - request.engine.prompt_tokens)
            request.reused[chunk] = tier, max(0, tokens - output_tokens)
            hit_tokens[tier] += tokens
        for tier, tokens in hit_tokens.items():
            if tokens:
                self._telemetry.count("hit_tokens", tokens, tier)
        if good < len(plan.blocks):
            # Another look-up would find the same blocks and fail the same way, for ever.
            request.may_load = False
            for block in plan.blocks[good:]:
                self._table.stored.lose(block.ids[0])

    def _tokens(self, blocks: Iterable[BlockLoad]) -> int:
        size = self._table.engine_block_tokens
        return sum(
            len(block.written) * size if block.tokens is None else block.tokens for block in blocks
        )

    def _count_worth(self, request: Request, tokens: int, took_s: float) -> None:
        """What a load of so many verified tokens spared, or lost: see `neve.node.stats`. The
        engine's step after it is part of its cost."""
        start = request.local_tokens
        spared_s = self._policy.prefill_s(start, start + tokens)
        if tokens:
            took_s += self._policy.after_load_s(start + tokens, len(request.tokens))
        if spared_s is None:
            self._table.count({"unpriced_tokens": tokens})
        elif took_s < spared_s:
            spared = {"spared_tokens": tokens, "spared_gpu_us": self._gpu_us(spared_s)}
            self._table.count(spared | {"load_gpu_us": self._gpu_us(took_s)})
        else:
            request.seen.slower = True
            lost_us = self._gpu_us(took_s - spared_s)
            self._table.count({"slower_tokens": tokens, "slower_gpu_us": lost_us})

    def _gpu_us(self, seconds: float) -> int:
        return round(1e6 * seconds * self._gpus)

    def _count_family(self, request: Request, blocks: Sequence[BlockLoad]) -> None:
        """Tokens that another process of the family computed."""
        if request.shares:
            others = (block for block in blocks if not self._table.stored.is_own(block.ids[0]))
            self._table.count({"family_hit_tokens": self._tokens(others)})

    def _note_reused(self, request: Request, plan: LoadPlan) -> None:
        """For a load of several KV groups: notes the prompt tokens that were loaded, by block."""
        start = request.local_tokens
        for number, block in enumerate(plan.blocks):
            if self._table.groups[block.group].kind is PartKind.STATE:
                state_bytes = sum(at.size_bytes - HEADER_BYTES for at in block.locations)
                self._telemetry.count("states", len(block.locations), "loaded")
                self._telemetry.count("state_bytes", state_bytes, "loaded")
            if block.tokens:
                end = min(start + block.tokens, request.engine.prompt_tokens)
                tier = block.locations[0].nearest
                request.reused[plan.first_chunk + number] = tier, max(0, end - start)
                start += block.tokens
                self._telemetry.count("hit_tokens", block.tokens, tier)


def _counted(blocks: list[BlockLoad], tokens: int) -> list[BlockLoad]:
    """`blocks` of several groups; those of the first group count `tokens` as reused together."""
    firsts = sum(block.group == 0 for block in blocks)
    each = [tokens * (n + 1) // firsts - tokens * n // firsts for n in range(firsts)]
    each += [0] * (len(blocks) - firsts)
    return [block._replace(tokens=count) for block, count in zip(blocks, each, strict=True)]
