"""What the scheduler side tells the worker side to move in one step. Pickled between processes."""

from dataclasses import dataclass, field

from neve.index.tier import Location


@dataclass(frozen=True)
class BlockLoad:
    """One block to read and the engine blocks that its tokens fill.

    `ids` and `locations` have one entry for every column. The first `skip` engine blocks already
    hold this KV (the engine's own prefix cache) and must not be written.
    """

    ids: tuple[bytes, ...]
    locations: tuple[Location, ...]
    engine_blocks: tuple[int, ...]
    skip: int

    @property
    def written(self) -> tuple[int, ...]:
        """The engine blocks that this load writes."""
        return self.engine_blocks[self.skip :]


@dataclass(frozen=True)
class LoadPlan:
    """All blocks of one request's load, in chain order, and how long it may take."""

    request_id: str
    first_chunk: int
    blocks: tuple[BlockLoad, ...]
    deadline_s: float


@dataclass(frozen=True)
class BlockSave:
    """One block to copy out of `engine_blocks` in this step, after the forward.

    `stored`: it was found in Neve; what is computed is compared with that, not stored.
    """

    request_id: str
    ids: tuple[bytes, ...]
    parents: tuple[bytes, ...]
    tokens: int
    engine_blocks: tuple[int, ...]
    chunk: int = 0
    stored: tuple[Location, ...] = ()


@dataclass
class StepPlan:
    """One step. `idle`: no tokens are computed, so waiting for I/O hurts nobody.

    `held`: ended requests whose engine blocks stay theirs until the workers have copied them.
    `fences`: blocks change hands that may still be copied out of, so those copies are waited for.
    `timed`: the step's number, when the workers are to measure and say how long it took.
    `weigh`: grows by one after every reset; then workers say whether their weights are the same.
    """

    loads: list[LoadPlan] = field(default_factory=list)
    saves: list[BlockSave] = field(default_factory=list)
    held: list[str] = field(default_factory=list)
    idle: bool = False
    fences: bool = True
    timed: int | None = None
    weigh: int = 0
