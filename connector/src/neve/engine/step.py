"""What the two sides and the engine tell each other about requests and steps: plain data, pickled.

The engine → scheduler side: `NewRequest`, `Scheduled`. Scheduler → workers, every step: `StepPlan`.
Workers → scheduler: `RankInfo` once, `WorkerReport` after steps.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from neve.engine.canary import Verdict
from neve.engine.chains import Media
from neve.engine.params import RequestParams
from neve.index.tier import Location


@dataclass(frozen=True)
class Lora:
    """The LoRA adapter of a request, by the engine's id, its name and where its files are.

    `is_readable`: its files can be read as a folder. `is_3d`: one of its layouts that changes what
    the same files compute.
    """

    id: int
    name: str
    path: str
    is_readable: bool = True
    is_3d: bool = False


@dataclass(frozen=True)
class NewRequest:
    """A request whose KV follows from token ids.

    `tokens`: the engine's own sequence, prompt and then output, which grows; it is never copied.
    `engine_hashes`: the engine's block hashes so far, for routers that listen to its KV events.
    """

    request_id: str
    tokens: Sequence[int]
    prompt_tokens: int
    salt: bytes = b""
    lora: Lora | None = None
    media: tuple[Media, ...] = ()
    params: RequestParams | None = None
    engine_hashes: Callable[[], Sequence[bytes]] = tuple


# Tokens of one request that a step computes: (request id, start, end, blocks, replaces, drafts).
# `blocks`: for each KV cache group the engine blocks that the request got since its last step, or,
# if `replaces` (its first step, or the first after a preemption), all of them. `drafts`: some
# tokens are speculative and may be rejected. A plain tuple: a step may have a thousand.
Scheduled = tuple[str, int, int, Sequence[Sequence[int]], bool, bool]


# A state that the engine offers in the step that computes it: (number of its group in the engine,
# engine block, tokens after which it is the state). The block holds it behind the step's
# computation, until the next step begins.
OfferedState = tuple[int, int, int]


class BlockLoad(NamedTuple):
    """One block to read and the engine blocks that its tokens fill. A tuple: a load of a long
    prompt has thousands.

    `ids` and `locations` have one entry for every column. The first `skip` engine blocks already
    hold this KV (the engine's own prefix cache), or are seen by no reader, and must not be written.
    `group`: which KV cache group the block is of (see `neve.engine.groups`).
    `tokens`: how many count as reused by this block; None: those of a chunk.
    """

    ids: tuple[bytes, ...]
    locations: tuple[Location, ...]
    engine_blocks: tuple[int, ...]
    skip: int
    group: int = 0
    tokens: int | None = None

    @property
    def written(self) -> tuple[int, ...]:
        """The engine blocks that this load writes."""
        return self.engine_blocks[self.skip :]


@dataclass(frozen=True)
class LoadPlan:
    """All blocks of one request's load, of each group in chain order, and how long it may take.

    `whole`: with several groups, one failed block fails the whole load.
    """

    request_id: str
    first_chunk: int
    blocks: tuple[BlockLoad, ...]
    deadline_s: float
    whole: bool = False


@dataclass(frozen=True)
class BlockSave:
    """One block to copy out of `engine_blocks` in this step, after the forward.

    `stored`: where Neve has this block; then it is compared with what was computed, not stored,
    if `bits` to the bit.
    """

    request_id: str
    ids: tuple[bytes, ...]
    parents: tuple[bytes, ...]
    tokens: int
    engine_blocks: tuple[int, ...]
    chunk: int = 0
    stored: tuple[Location, ...] = ()
    group: int = 0
    bits: bool = False


@dataclass
class RearPlan:
    """Of one step, for `neve.engine.rears`. `begun`: rears to fetch into staging, last chunk first.
    `floors`: by request, the chunk below which nothing needs to be fetched. `jumps`: rears to copy
    into engine blocks before the step computes. `dropped`: requests whose rear is not needed."""

    begun: list[LoadPlan] = field(default_factory=list)
    floors: dict[str, int] = field(default_factory=dict)
    jumps: list[LoadPlan] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return any(vars(self).values())


@dataclass
class StepPlan:
    """One step. `idle`: no tokens are computed, so waiting for I/O delays nobody.

    `delayed_frees`: ended requests whose engine blocks stay allocated until workers copied them.
    `fences`: any block may change hands, so all copies out of blocks are waited for. `handed_on`:
    blocks that were copied out of earlier and that others fill from this step on: a copy out of
    one of them that is still under way is waited for.
    `timed`: the step's number if workers measure how long it takes, else None.
    `weights_check`: grows by one after every reset; then workers compare their weights with those
    of the start.
    """

    loads: list[LoadPlan] = field(default_factory=list)
    saves: list[BlockSave] = field(default_factory=list)
    delayed_frees: list[str] = field(default_factory=list)
    idle: bool = False
    fences: bool = True
    handed_on: frozenset[int] = frozenset()
    timed: int | None = None
    weights_check: int = 0
    rears: RearPlan | None = None


@dataclass(frozen=True)
class RankInfo:
    """One rank describes itself to the scheduler side.

    `identity`: `SpaceIdentity.as_dict()` of its KV. `pid`: its process. `defers`: it copies behind
    the step (`Kv.defers`). `turns`: ranks that hold the same KV and save it by turns.
    """

    identity: dict[str, Any]
    pid: int
    defers: bool
    turns: int


@dataclass(frozen=True)
class Place:
    """Where KV differs: the layer, and tokens of the prompt."""

    layer: str
    first_token: int
    end_token: int


@dataclass
class WorkerReport:
    """News of one or more workers.

    `unsaved`, `stored`: first ids of chunks that a rank did not store, or did. `timed`: number and
    seconds of measured steps. `gauges`: by worker. `compared`: first ids of blocks that were both
    computed and fetched, with the verdict. `weights`: by worker, the number of a weights check and
    a digest, empty if the weights are those of the start. `differences`: by block of `compared`,
    for comparisons to the bit. `staged`: by request and worker, see `Rears.note_staged`.
    """

    unsaved: list[bytes] = field(default_factory=list)
    stored: list[bytes] = field(default_factory=list)
    timed: list[tuple[int, float]] = field(default_factory=list)
    gauges: dict[str, dict[str, float]] = field(default_factory=dict)
    compared: list[tuple[bytes, Verdict]] = field(default_factory=list)
    weights: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    differences: dict[bytes, Place] = field(default_factory=dict)
    staged: dict[tuple[str, str], int] = field(default_factory=dict)

    def __bool__(self) -> bool:
        """Whether there is any news."""
        return any(vars(self).values())

    def merged(self, other: "WorkerReport") -> "WorkerReport":
        """The news of both."""
        return WorkerReport(
            self.unsaved + other.unsaved,
            self.stored + other.stored,
            self.timed + other.timed,
            self.gauges | other.gauges,
            self.compared + other.compared,
            self.weights | other.weights,
            self.differences | other.differences,
            self.staged | other.staged,
        )
