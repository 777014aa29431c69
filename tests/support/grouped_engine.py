"""The reference engine with three KV cache groups, as hybrid models have: full attention, a sliding
window, and a state.

A token's KV is a digest of all that its layers read: all KV of the first group, the last tokens' of
the second, and the state, into which it then enters. So one wrong byte in what a request goes on
from changes every later token. Blocks of windows and states change hands while their request runs,
at once and to anybody: the last freed is given first, and is overwritten by whom it is given to.
It has no prefix cache.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import numpy as np

from neve.engine.groups import KvGroup, alignment_tokens
from neve.engine.options import Options
from neve.engine.params import read_params
from neve.engine.scheduler import SchedulerSide
from neve.engine.sharding import Share
from neve.engine.step import NewRequest, OfferedState, Scheduled, StepPlan
from neve.engine.worker import WorkerSide
from neve.formats.parts import PartKind
from neve.formats.space import SpaceIdentity
from support.reference_engine import _COPY_STEPS, _NAME, _POISON, EngineFault, PagedKv

BLOCK_TOKENS = 16
KV_BYTES = 16  # of a token, and of a state
WINDOW = 40
FULL, WINDOWED, STATE = range(3)
# In the engine the state comes first: Neve's order of groups is another.
NUMBERS = {STATE: 0, FULL: 1, WINDOWED: 2}
GROUPS = (
    KvGroup(("full",), None, BLOCK_TOKENS, NUMBERS[FULL]),
    KvGroup(("window",), WINDOW, BLOCK_TOKENS, NUMBERS[WINDOWED], PartKind.WINDOW),
    KvGroup(("state",), None, BLOCK_TOKENS, NUMBERS[STATE], PartKind.STATE),
)


@dataclass
class Running:
    """One request. `tables`: its engine blocks by group, 0 where it has none (any more).

    `fresh`: blocks that it was given since its last step. `states`: offered in this step.
    """

    name: str
    tokens: list[int]
    prompt_tokens: int
    max_tokens: int
    salt: bytes
    tables: list[list[int]] = field(default_factory=lambda: [[], [], []])
    fresh: list[list[int]] = field(default_factory=lambda: [[], [], []])
    computed: int = 0
    state: str = "waiting"
    is_new: bool = True
    may_load: bool = True
    claimed: int = 0
    offered: list[OfferedState] = field(default_factory=list)
    answer: dict[str, Any] | None = None

    @property
    def blocks(self) -> list[int]:
        return [block for table in self.tables for block in table if block]

    def by_number(self, tables: Sequence[Sequence[int]]) -> list[list[int]]:
        """In the engine's order of groups."""
        return [list(tables[group]) for group in sorted(NUMBERS, key=NUMBERS.__getitem__)]


class GroupedAdapter:
    """Both parts of the adapter in one process. The engine calls each method as a hook."""

    def __init__(self, kvs: Sequence[PagedKv], options: Options, step_tokens: int) -> None:
        identity = SpaceIdentity(
            model="reference",
            revision="1",
            dtype="uint8",
            kv_dtype="uint8",
            layout="digests in three groups",
            layout_version=1,
            engine_block_tokens=alignment_tokens(GROUPS),
            bytes_per_token=2 * KV_BYTES,
        )
        self.worker: WorkerSide[Any] = WorkerSide(
            kvs,
            identity,
            options,
            engine=_NAME,
            share=Share((0,)),
            step_tokens=step_tokens,
            groups=GROUPS,
        )
        self.scheduler = SchedulerSide.connect(
            [self.worker.describe()], options, engine=_NAME, shards=1, groups=GROUPS
        )

    # ---- scheduler part

    def request_came(self, request: Running) -> None:
        self.scheduler.begin(
            NewRequest(
                request.name,
                request.tokens,
                request.prompt_tokens,
                salt=request.salt,
                params=read_params({"neve": {}}),
            )
        )

    def claimed_tokens(self, request: Running) -> int | None:
        return self.scheduler.matched_tokens(request.name, 0)

    def blocks_allocated(self, request: Running, external_tokens: int) -> None:
        self.scheduler.plan_load(request.name, external_tokens, request.by_number(request.tables))

    def plan(
        self,
        scheduled: Iterator[Scheduled],
        *,
        computes: bool,
        preempted: set[str],
        tables: Mapping[str, Sequence[Sequence[int]]],
        states: Mapping[str, Sequence[OfferedState]],
    ) -> StepPlan:
        return self.scheduler.build_step(
            scheduled, computes=computes, preempted=preempted, tables=tables.get, states=states
        )

    def request_ended(self, request: Running) -> tuple[bool, dict[str, Any] | None]:
        return self.scheduler.end(request.name)

    # ---- worker part

    def before_step(self, plan: StepPlan) -> None:
        self.worker.begin_step(plan)
        self.worker.start_loads(plan)

    def after_step(self, plan: StepPlan) -> tuple[set[str], set[str], set[str]]:
        """(requests whose blocks may be freed, requests whose load ended, those of it that
        failed)."""
        self.worker.end_step(plan)
        copied, loaded = self.worker.take_copied(plan), self.worker.poll_loads(plan)
        failed = self.worker.take_failed_requests()
        self.scheduler.note_results(
            self.worker.report(),
            failed_blocks=self.worker.take_failed_blocks(),
            loaded=loaded,
            failed_requests=failed,
        )
        return copied, loaded, failed

    def stored_all(self) -> None:
        transfers = self.worker._transfers
        assert transfers is None or transfers.drain(20)

    def close(self) -> None:
        self.scheduler.close()
        self.worker.close()


class GroupedEngine:
    """Continuous batching, chunked prefill, preemption."""

    def __init__(
        self,
        options: Options | None,
        *,
        adapter: type[GroupedAdapter] = GroupedAdapter,
        blocks: int = 600,
        step_tokens: int = 64,
        stop_tokens: int = 64,
        defers: bool = False,
    ) -> None:
        """`options` None: no adapter. A step of a prompt stops at multiples of `stop_tokens`: there
        a state exists. `blocks`: of all groups; number 0 stands for none."""
        self.kvs = [PagedKv(blocks, defers=defers) for _ in GROUPS]
        self.kvs[STATE].block_bytes = KV_BYTES
        self.kvs[STATE].blocks = self.kvs[STATE].blocks[:, :KV_BYTES].copy()
        self._step_tokens = step_tokens
        self._stop_tokens = stop_tokens
        self._adapter = adapter(self.kvs, options, step_tokens) if options is not None else None
        self._free = list(range(1, blocks))
        self._given: list[int] = []  # since the last step
        self._requests: list[Running] = []
        self._delayed: dict[str, Running] = {}
        self._aborted: dict[str, Running] = {}
        self._preempted: set[str] = set()
        self._steps = 0
        self._names = 0
        self.preemptions = 0

    def submit(self, tokens: Sequence[int], *, max_tokens: int = 4, salt: bytes = b"") -> Running:
        self._names += 1
        name = f"r{self._names}"
        request = Running(name, list(tokens), len(tokens), max_tokens, salt)
        self._requests.append(request)
        if self._adapter is not None:
            self._adapter.request_came(request)
        return request

    def abort(self, request: Running) -> None:
        self._end(request)

    @property
    def is_idle(self) -> bool:
        return not (self._requests or self._delayed or self._aborted)

    def step(self) -> None:
        """Schedule, compute, then process finished copies and loads."""
        self._steps += 1
        if self._steps % _COPY_STEPS == 0:
            self._tick()
        self._admit()
        work = self._schedule()
        plan = None
        if self._adapter is not None:
            preempted, self._preempted = self._preempted, set()
            plan = self._adapter.plan(
                iter(self._scheduled(work)),
                computes=bool(work),
                preempted=preempted,
                tables={request.name: request.by_number(request.tables) for request, _ in work},
                states={request.name: request.offered for request, _ in work if request.offered},
            )
            self._adapter.before_step(plan)
        for kv in self.kvs:
            kv.blocks[self._given] = _POISON
        self._given.clear()
        for request, end in work:
            self._compute(request, end)
        if self._adapter is not None:
            assert plan is not None
            self._hear(*self._adapter.after_step(plan))
        for request in [each for each, _ in work if self._is_over(each)]:
            self._end(request)

    def store_all(self) -> None:
        """Run deferred copies, then wait until all saves are stored or refused."""
        self._tick()
        if self._adapter is not None:
            self._adapter.stored_all()

    def close(self) -> None:
        self.store_all()
        if self._adapter is not None:
            self._adapter.close()

    def _tick(self) -> None:
        for kv in self.kvs:
            kv.tick()

    # ---- scheduling

    def _admit(self) -> None:
        """Ask the adapter for waiting requests, allocate blocks for its claim."""
        for request in [each for each in self._requests if each.state == "waiting"]:
            claimed = 0
            if self._adapter is not None and request.may_load:
                found = self._adapter.claimed_tokens(request)
                if found is None:
                    continue
                claimed = found
            if claimed and not self._take_for_load(request, claimed):
                continue
            request.is_new, request.state = True, "loading" if claimed else "running"
            request.claimed = claimed
            if claimed:
                assert self._adapter is not None
                self._adapter.blocks_allocated(request, claimed)

    def _take_for_load(self, request: Running, tokens: int) -> bool:
        """Blocks of what a reader at `tokens` needs, 0 for all others; none if they don't fit."""
        end = tokens // BLOCK_TOKENS
        firsts = [group.needed_from(tokens) // BLOCK_TOKENS for group in GROUPS]
        if sum(end - first for first in firsts) > len(self._free):
            return False
        for place, first in enumerate(firsts):
            request.tables[place] = [0] * first
            self._give(request, place, end - first)
        return True

    def _schedule(self) -> list[tuple[Running, int]]:
        """(request, token where its computing ends) of this step. If blocks run out, preempts the
        youngest requests."""
        work, left = [], self._step_tokens
        for request in [each for each in self._requests if each.state == "running"]:
            stop = (request.computed // self._stop_tokens + 1) * self._stop_tokens
            end = min(len(request.tokens), request.computed + left, stop)
            while request.state == "running" and end and not self._grow(request, end):
                self._preempt([each for each in self._requests if each.state == "running"][-1])
            if request.state == "running" and end > request.computed:
                work.append((request, end))
                left -= end - request.computed
        work = [each for each in work if each[0].state == "running"]
        for request, end in work:
            request.offered = []
            if end % BLOCK_TOKENS == 0:
                block = request.tables[STATE][end // BLOCK_TOKENS - 1]
                request.offered = [(NUMBERS[STATE], block, end)]
        return work

    def _grow(self, request: Running, end: int) -> bool:
        """Frees what no token to come reads, then takes blocks up to `end`. False: call it again
        once there are more."""
        first = GROUPS[WINDOWED].needed_from(request.computed) // BLOCK_TOKENS
        self._free_before(request, WINDOWED, first)
        # Earlier states than the one that this step begins with are of no use.
        self._free_before(request, STATE, max(0, request.computed - 1) // BLOCK_TOKENS)
        for place in range(len(GROUPS)):
            table, wanted = request.tables[place], -(-end // BLOCK_TOKENS)
            if place == STATE:
                table += [0] * (wanted - 1 - len(table))
            if not self._give(request, place, wanted - len(table)):
                return False
        return True

    def _scheduled(self, work: list[tuple[Running, int]]) -> Iterator[Scheduled]:
        for request, end in work:
            blocks = request.tables if request.is_new else request.fresh
            given = tuple(request.by_number(blocks))
            yield request.name, request.computed, end, given, request.is_new, False
            request.is_new, request.fresh = False, [[], [], []]

    def _preempt(self, request: Running) -> None:
        self.preemptions += 1
        self._preempted.add(request.name)
        self._drop_blocks(request)
        request.computed, request.state = 0, "waiting"
        self._requests.remove(request)
        self._requests.append(request)

    def _hear(self, copied: set[str], loaded: set[str], failed: set[str]) -> None:
        for name in copied:
            if name not in self._delayed:
                raise EngineFault(f"{name} is not held, and its blocks are to be freed")
            self._drop_blocks(self._delayed.pop(name))
        for name in loaded:
            if name in self._aborted:
                self._drop_blocks(self._aborted.pop(name))
                continue
            request = next((each for each in self._requests if each.name == name), None)
            if request is None:
                raise EngineFault(f"{name} is over, and its load was still under way")
            if name in failed:
                self._drop_blocks(request)
                request.state = "waiting"  # the adapter is asked again
                continue
            request.computed, request.state = request.claimed, "running"

    # ---- blocks

    def _give(self, request: Running, place: int, count: int) -> bool:
        if count > len(self._free):
            return False
        for _ in range(count):
            block = self._free.pop()
            self._given.append(block)
            request.tables[place].append(block)
            request.fresh[place].append(block)
        return True

    def _free_before(self, request: Running, place: int, end: int) -> None:
        table = request.tables[place]
        for number in range(min(end, len(table))):
            if table[number]:
                self._free.append(table[number])
                table[number] = 0

    def _drop_blocks(self, request: Running) -> None:
        self._free += request.blocks
        request.tables, request.fresh = [[], [], []], [[], [], []]

    # ---- computing

    def _compute(self, request: Running, end: int) -> None:
        first = max(0, request.computed - 1) // BLOCK_TOKENS
        state = b"" if not request.computed else self._read_state(request, first)
        for position in range(request.computed, end):
            seen = self._seen(request, position)
            key = b"%d %d %d %s" % (request.tokens[position], position, seen, state)
            kv = np.frombuffer(blake2b(key, digest_size=KV_BYTES).digest(), np.uint8)
            for place in (FULL, WINDOWED):
                block = request.tables[place][position // BLOCK_TOKENS]
                at = position % BLOCK_TOKENS * KV_BYTES
                self.kvs[place].blocks[block, at : at + KV_BYTES] = kv
            state = blake2b(state + kv.tobytes(), digest_size=KV_BYTES).digest()
        last = request.tables[STATE][(end - 1) // BLOCK_TOKENS]
        self.kvs[STATE].blocks[last] = np.frombuffer(state, np.uint8)
        request.computed = end
        if end == len(request.tokens) and not self._is_over(request):
            seen = self._seen(request, end) + int.from_bytes(state[:4], "little")
            request.tokens.append(seen % 251)

    def _read_state(self, request: Running, number: int) -> bytes:
        return self.kvs[STATE].blocks[request.tables[STATE][number]].tobytes()

    def _seen(self, request: Running, position: int) -> int:
        """A sum over the KV that attention at `position` reads."""
        total = 0
        for place, first in ((FULL, 0), (WINDOWED, max(0, position - WINDOW + 1))):
            rows = self.kvs[place].blocks.reshape(-1, KV_BYTES)
            table = request.tables[place]
            at = [table[t // BLOCK_TOKENS] * BLOCK_TOKENS + t % BLOCK_TOKENS
                  for t in range(first, position)]  # fmt: skip
            total += int(rows[at].view("<u8").sum(dtype=np.uint64))
        return total

    def _is_over(self, request: Running) -> bool:
        return len(request.tokens) - request.prompt_tokens >= request.max_tokens

    def _end(self, request: Running) -> None:
        self._requests.remove(request)
        delays_free = False
        if self._adapter is not None:
            delays_free, request.answer = self._adapter.request_ended(request)
        if request.state == "loading":
            self._aborted[request.name] = request
        elif delays_free:
            self._delayed[request.name] = request
        else:
            self._drop_blocks(request)
