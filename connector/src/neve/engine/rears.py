"""`load: both`: the engine computes the front of a long hit while workers fetch its rear.

The rear comes into staging, last chunk first, verified; no engine block is touched meanwhile. Once
it reaches down to what the engine has computed, the request jumps: the adapter tells the engine
that everything up to the rear's end is computed, and before the step that goes on from there the
workers copy the rear into the request's blocks. Until then nothing depends on the store: if it
dies, or the engine is faster, the engine computes on.

Belongs to the scheduler's thread. `neve.engine.rear_loader` fetches; adapters jump.
Source: Jin et al., "Compute or Load KV Cache? Why Not Both?" (Cake), arXiv 2410.03065.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from neve.engine.step import BlockLoad, LoadPlan, RearPlan
from neve.engine.table import Request, RequestTable, Row
from neve.engine.telemetry import Telemetry

# A jump costs the whole batch a copy and an allocation: not for less.
LEAST_JUMP_CHUNKS: Final = 2
MOST_REARS: Final = 2  # at a time: each holds host memory until its jump
# More requests of the engine: they could use what computing the front costs.
MOST_BESIDE: Final = 4


@dataclass
class _Rear:
    """Chunks `first` to `end` of a request. `low`: by worker, the lowest chunk from which on it has
    everything. `jumped`: the first chunk to copy, once the engine was told; then it had computed
    `computed_tokens`, and the first `skip` engine blocks of that chunk."""

    first: int
    end: int
    blocks: tuple[BlockLoad, ...]
    begun: bool = False
    low: dict[str, int] = field(default_factory=dict)
    jumped: int | None = None
    skip: int = 0
    computed_tokens: int = 0


class Rears:
    """`ranks`: workers, each of which has to have what a jump copies."""

    def __init__(self, table: RequestTable, telemetry: Telemetry, *, ranks: int) -> None:
        self.engine_block_tokens = table.engine_block_tokens
        self._table = table
        self._telemetry = telemetry
        self._ranks = ranks
        self._rears: dict[str, _Rear] = {}
        self._dropped: list[str] = []
        # Set by an adapter that can jump, after it has checked its engine.
        self.can_jump = False

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._rears

    def may_begin(self, request: Request) -> bool:
        """Once a request; for KV of one group, of token ids alone."""
        return (
            self.can_jump
            and not request.has_rear
            and not self._table.is_split
            and not request.engine.media
            and len(self._rears) < MOST_REARS
            and len(self._table.requests) <= MOST_BESIDE
        )

    def chunks(self, request: Request, first: int, found: int) -> int:
        """Of `found` chunks those that a rear may have: the engine computes one token at least."""
        assert request.chain is not None
        most = (len(request.tokens) - 1) // request.chain.chunk_tokens
        return max(0, min(found, most - first))

    def begin(self, request: Request, first: int, rows: Sequence[Row]) -> None:
        """Fetch these chunks from `first` on once the engine computes the request."""
        assert request.chain is not None
        request.has_rear = True
        end = first + self.chunks(request, first, len(rows))
        blocks = tuple(
            BlockLoad(
                ids=self._table.of_group(request.chain.ids[chunk], 0),
                locations=tuple(at for at in rows[chunk - first] if at is not None),
                engine_blocks=(),
                skip=0,
            )
            for chunk in range(first, end)
        )
        self._rears[request.engine.request_id] = _Rear(first, end, blocks)

    def drop(self, request_id: str) -> None:
        """The request ended, or lost its engine blocks."""
        rear = self._rears.pop(request_id, None)
        if rear is not None and rear.begun:
            self._dropped.append(request_id)

    def drop_all(self) -> None:
        """Stored KV is not used again. Requests that jumped were computed as it was."""
        for request_id in [name for name, rear in self._rears.items() if rear.jumped is None]:
            self.drop(request_id)

    def note_staged(self, staged: Mapping[tuple[str, str], int]) -> None:
        """`WorkerReport.staged`."""
        for (request_id, worker), low in staged.items():
            if request_id in self._rears:
                self._rears[request_id].low[worker] = low

    def plan(self, computed: Mapping[str, int]) -> RearPlan | None:
        """This step's. `computed`: of scheduled requests, tokens that it will have computed."""
        plan = RearPlan(dropped=self._dropped)
        self._dropped = []
        for request_id, tokens in computed.items():
            rear = self._rears.get(request_id)
            if rear is None or rear.jumped is not None:
                continue
            floor = tokens // self._chunk_tokens(request_id)
            if rear.end - floor < LEAST_JUMP_CHUNKS:  # the engine was faster
                self.drop(request_id)
            elif rear.begun:
                plan.floors[request_id] = floor
            else:
                rear.begun = True
                plan.begun.append(LoadPlan(request_id, rear.first, rear.blocks, 0.0))
        return plan if plan else None

    def jump(self, request_id: str, computed_tokens: int) -> int | None:
        """The tokens that count as computed from now on, if the rear reaches down to
        `computed_tokens`; else None. The next step that computes the request takes the rear by
        `land`."""
        rear = self._rears.get(request_id)
        if rear is None or not rear.begun or rear.jumped is not None:
            return None
        size = self._chunk_tokens(request_id)
        chunk = computed_tokens // size
        if rear.end - chunk < LEAST_JUMP_CHUNKS or len(rear.low) < self._ranks:
            return None
        if max(rear.low.values()) > chunk:
            return None
        rear.jumped, rear.computed_tokens = chunk, computed_tokens
        rear.skip = computed_tokens % size // self._table.engine_block_tokens
        return rear.end * size

    def jumping(self) -> list[str]:
        """Requests of which the engine was told, and whose rear was not copied yet."""
        return [name for name, rear in self._rears.items() if rear.jumped is not None]

    def rear_tokens(self, request_id: str) -> tuple[int, int]:
        """First and last token (exclusive) of a jumping request's copy, in whole engine blocks."""
        rear, size = self._rears[request_id], self._chunk_tokens(request_id)
        assert rear.jumped is not None
        start = rear.jumped * size + rear.skip * self._table.engine_block_tokens
        return start, rear.end * size

    def land(self, request_id: str, engine_blocks: Sequence[int]) -> LoadPlan:
        """The copy of a jumping request's rear into `engine_blocks`, all of the request from its
        first token on. Counts what the load spared."""
        rear = self._rears.pop(request_id)
        assert rear.jumped is not None
        per_chunk = self._chunk_tokens(request_id) // self._table.engine_block_tokens
        blocks = []
        for chunk in range(rear.jumped, rear.end):
            own = tuple(engine_blocks[chunk * per_chunk : (chunk + 1) * per_chunk])
            assert len(own) == per_chunk
            skip = rear.skip if chunk == rear.jumped else 0
            blocks.append(rear.blocks[chunk - rear.first]._replace(engine_blocks=own, skip=skip))
        request, size = self._table.requests[request_id], self._chunk_tokens(request_id)
        for chunk, block in enumerate(blocks, rear.jumped):
            tokens = size - max(0, rear.computed_tokens - chunk * size)
            tier = block.locations[0].nearest
            request.reused[chunk] = tier, tokens
            request.seen.loaded_tokens += tokens
            self._telemetry.count("hit_tokens", tokens, tier)
        return LoadPlan(request_id, rear.jumped, tuple(blocks), 0.0)

    def _chunk_tokens(self, request_id: str) -> int:
        chain = self._table.requests[request_id].chain
        assert chain is not None
        return chain.chunk_tokens
