"""What an engine adapter gives to `neve.engine`, and the calls that it makes.

`docs/engine-adapters.md` is the contract in full; `tests/engine` checks adapters against it.

An adapter has two parts. Its scheduler part makes a `Scheduling` once every rank has described
itself; its worker part, one a rank, makes a `Working` over the rank's `Kv`. They may live in
several processes: a `StepPlan` travels from scheduler to workers in every step, a `WorkerReport`
back. Each side belongs to one thread of the engine, and none of its calls waits for storage.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from neve.engine.step import NewRequest, OfferedState, Scheduled, StepPlan, WorkerReport


class Staging(Protocol):
    """Memory for one rank's part of one chunk: the payloads of its columns, one after the other.

    `memory` is writable and contiguous, and stays where it is: the network reads and writes it
    without holding the GIL.
    """

    memory: memoryview


S = TypeVar("S", bound=Staging)


@dataclass(frozen=True)
class Difference:
    """Where two computations of one chunk's KV differ first. `engine_block`: counted from the
    chunk's first. `is_rounding`: no number of the chunk differs by more than rounding."""

    layer: str
    engine_block: int
    is_rounding: bool


class Ticket(Protocol):
    """A copy between engine memory and staging that may still be under way."""

    def done(self) -> bool: ...

    def wait(self) -> None:
        """Returns when the copy is over. May be called from any thread."""
        ...


class Mark(Protocol):
    """A moment in the engine's computation, which a device may reach later than the host."""

    def done(self) -> bool: ...

    def since(self, earlier: Any) -> float:
        """Seconds from `earlier` to this mark; both are `done`."""
        ...


class Kv(Protocol[S]):
    """One rank's KV memory, in engine blocks. All calls come from the worker's thread.

    `block_bytes`: bytes of one engine block, all layers. `defers`: copies may outlive the call;
    then the engine blocks and staging they use stay untouched until the ticket is done.
    """

    block_bytes: int
    defers: bool

    def allocate(self, engine_blocks: int, most: int = 1) -> Sequence[S]:
        """Staging for one to `most` chunks of `engine_blocks` engine blocks each. Also called from
        a thread that makes staging ahead of its use."""
        ...

    def move_out(self, blocks: Sequence[Sequence[int]], staging: Sequence[S]) -> Ticket:
        """Copies each chunk's engine blocks into its staging, as they are after the computation
        that was launched before this call."""
        ...

    def move_in(self, blocks: Sequence[Sequence[int]], skip: int, staging: Sequence[S]) -> Ticket:
        """Copies each staging into its chunk's engine blocks, except the first `skip` of the first
        chunk. A chunk may name fewer blocks than its staging holds: the rest is not written."""
        ...

    def fence(self) -> None:
        """Makes later computation wait for the copies out of engine blocks that are under way."""
        ...

    def release(self) -> None:
        """Gives up device memory of its own until the next copy; none is under way."""
        ...

    def compare(self, computed: S, stored: S) -> object | None:
        """Where the two differ by more than rounding, in words; None if nowhere. Called from a
        thread of its own."""
        ...

    def compare_bits(self, computed: S, stored: S) -> Difference | None:
        """As `compare`, to the bit; None if all bits are equal."""
        ...

    def mark(self) -> Mark:
        """This moment in what the engine computes."""
        ...

    @property
    def loss_error(self) -> float | None:
        """Relative error of KV that was stored with loss, as far as it is measured. Only asked
        where the space is not exact."""
        ...


class Scheduling(Protocol):
    """The calls of the scheduler part, in the order of one request's life.

    `neve.engine.scheduler.SchedulerSide` answers them. All come from the scheduler's thread.
    """

    def knows(self, request_id: str) -> bool:
        """Whether the request was begun and has not ended."""
        ...

    def begin(self, request: NewRequest) -> None:
        """A request came. Requests without lasting token ids are not begun: Neve leaves them
        alone, and answers 0 to `matched_tokens`."""
        ...

    def matched_tokens(self, request_id: str, local_tokens: int) -> int | None:
        """Tokens that Neve can load beyond the engine's own `local_tokens` (whole engine blocks).

        None: ask again in the next step; the request waits, others are scheduled. The adapter may
        claim fewer, in whole engine blocks. At least one token of a prompt is computed, because
        it makes the first logits: an engine that can't compute the last token again after a load
        claims less than the whole prompt.
        """
        ...

    def plan_load(
        self, request_id: str, external_tokens: int, engine_blocks: Sequence[Sequence[int]]
    ) -> None:
        """The engine allocated blocks for `external_tokens` of the last answer (more than 0).

        `engine_blocks`: for each KV cache group all blocks of the request, from its first token
        on. Until the load ended they are neither read, nor computed into, nor given to anybody,
        also when the request is aborted or preempted; and the request is not scheduled.
        """
        ...

    def build_step(
        self,
        scheduled: Iterable[Scheduled],
        *,
        computes: bool,
        preempted: Collection[str] = (),
        encodes_media: bool = False,
        tables: Callable[[str], Sequence[Sequence[int]] | None] | None = None,
        states: Mapping[str, Sequence[OfferedState]] | None = None,
    ) -> StepPlan:
        """The plan of this step, for every worker. Called once a step, also if nothing is computed.

        `scheduled`: the requests that this step computes. `preempted`: requests that lost their
        engine blocks since the last step, before anybody else gets them. `tables`: a scheduled
        request's blocks as this step computes with them, one list for each KV cache group, with 0
        where a window freed the block; demanded from an engine with several groups or windows.
        `states`: by scheduled request, the states that this step computes and leaves in a block of
        their own. Of others, as of those that a later step finds there, Neve stores none.
        """
        ...

    def note_results(
        self,
        report: WorkerReport,
        *,
        failed_blocks: Iterable[int],
        loaded: Iterable[str],
        failed_requests: Iterable[str] = (),
    ) -> None:
        """What the workers said after a step: the merged reports; engine blocks that some rank
        did not fill; requests whose load has ended on every rank, each once, in the same call as
        its failed blocks or later. The engine computes from the first failed block on.
        `failed_requests`: in the same call as `loaded`, those whose load of several KV cache
        groups failed; the engine computes all of these requests.
        """
        ...

    def end(self, request_id: str) -> tuple[bool, dict[str, Any] | None]:
        """A request ended, whatever way. Called once.

        Returns whether its engine blocks must stay allocated until every worker reported the
        request by `take_copied`, and the `kv_transfer_params` of the response, if any.
        """
        ...

    def reset(self) -> None:
        """The engine's weights or state may have changed: KV known so far is not used again."""
        ...

    def close(self) -> None: ...


class Working(Protocol):
    """The calls of the worker part, in the order of one step. Each gets the step's plan once.

    `neve.engine.worker.WorkerSide` answers them. All come from the worker's thread; none waits
    for storage, and the adapter must not wait for it either by calling one again.
    """

    def begin_step(self, plan: StepPlan) -> None:
        """Before the engine computes, and before it writes into blocks that changed hands."""
        ...

    def start_loads(self, plan: StepPlan) -> None:
        """Begins the step's loads. Before or behind the computation: no block of a load is used."""
        ...

    def end_step(self, plan: StepPlan) -> None:
        """Behind the computation (on a device: launched): begins to copy finished blocks out."""
        ...

    def take_copied(self, plan: StepPlan) -> set[str]:
        """Ended requests whose engine blocks may be freed now: each once."""
        ...

    def poll_loads(self, plan: StepPlan) -> set[str]:
        """Requests whose load ended on this rank, well or not: each once."""
        ...

    def take_failed_blocks(self) -> set[int]:
        """Engine blocks that the loads which the last `poll_loads` reported did not fill."""
        ...

    def take_failed_requests(self) -> set[str]:
        """Of the requests that the last `poll_loads` reported, those whose load of several KV
        cache groups failed: no engine block of theirs is filled."""
        ...

    def report(self) -> WorkerReport:
        """News for the scheduler since the last call. To be merged over ranks, never dropped."""
        ...

    def suspend(self) -> None:
        """The engine is about to give up its KV memory. Waits for copies that read or write it;
        loads under way fail, which the next `poll_loads` reports. May be called again."""
        ...

    def resume(self) -> None:
        """The KV memory is back, at the same addresses, with any content. Between `suspend` and
        this call, loads fail, nothing is saved and the weights are not read."""
        ...

    def close(self) -> None: ...
