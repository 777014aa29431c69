"""A small engine with paged KV memory, and its adapter: the reference of docs/engine-adapters.md.

The KV of a token is a digest of the token and of all earlier KV, read from the engine's blocks; an
output token is a digest of all KV. So one wrong byte in a block changes every later token. The next
step overwrites freed blocks. No torch, no threads except Neve's.
"""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import numpy as np

from neve.engine.contract import Difference
from neve.engine.link import Engine as EngineName
from neve.engine.options import Options
from neve.engine.params import read_params
from neve.engine.scheduler import SchedulerSide
from neve.engine.sharding import Share
from neve.engine.step import NewRequest, Scheduled, StepPlan
from neve.engine.worker import WorkerSide
from neve.formats.space import SpaceIdentity

BLOCK_TOKENS = 16
KV_BYTES = 16  # of a token
_NAME = EngineName("reference", "1")
_POISON = 0xEE
_COPY_STEPS = 4  # delay of a deferred copy in steps, unless a fence comes first


class EngineFault(AssertionError):
    """The engine cannot continue: its adapter asked for something impossible."""


@dataclass
class Piece:
    """Staging memory of one chunk."""

    memory: memoryview


class Copy:
    """A copy ticket; the engine decides when the copy happens."""

    def __init__(self, copy: Any) -> None:
        self._copy = copy
        self._over = threading.Event()

    def run(self) -> None:
        if not self._over.is_set():
            self._copy()
            self._over.set()

    def done(self) -> bool:
        return self._over.is_set()

    def wait(self) -> None:
        self._over.wait()


class Mark:
    def done(self) -> bool:
        return True

    def since(self, earlier: "Mark") -> float:
        return 0.001


class PagedKv:
    """`blocks`: [engine blocks, bytes]. With `defers`, copies happen at `tick` or at a fence."""

    block_bytes = BLOCK_TOKENS * KV_BYTES

    def __init__(self, blocks: int, *, defers: bool) -> None:
        self.blocks = np.full((blocks, self.block_bytes), _POISON, np.uint8)
        self.defers = defers
        self._pending: list[Copy] = []

    def allocate(self, engine_blocks: int, most: int = 1) -> list[Piece]:
        return [Piece(memoryview(bytearray(engine_blocks * self.block_bytes)))]

    def move_out(self, blocks: Sequence[Sequence[int]], staging: Sequence[Piece]) -> Copy:
        def copy() -> None:
            for engine_blocks, piece in zip(blocks, staging, strict=True):
                piece.memory[:] = self.blocks[list(engine_blocks)].tobytes()

        return self._begin(copy)

    def move_in(self, blocks: Sequence[Sequence[int]], skip: int, staging: Sequence[Piece]) -> Copy:
        def copy() -> None:
            first = skip
            for engine_blocks, piece in zip(blocks, staging, strict=True):
                rows = np.frombuffer(piece.memory, np.uint8).reshape(-1, self.block_bytes)
                written = list(engine_blocks[first:])
                self.blocks[written] = rows[first : len(engine_blocks)]
                first = 0

        return self._begin(copy)

    def _begin(self, copy: Any) -> Copy:
        ticket = Copy(copy)
        if self.defers:
            self._pending.append(ticket)
        else:
            ticket.run()
        return ticket

    def fence(self) -> None:
        self.tick()

    def tick(self) -> None:
        while self._pending:
            self._pending.pop(0).run()

    def release(self) -> None:
        assert not self._pending

    def compare(self, computed: Piece, stored: Piece) -> str | None:
        return None if computed.memory == stored.memory else "other bytes"

    def compare_bits(self, computed: Piece, stored: Piece) -> Difference | None:
        size = self.block_bytes
        for n in range(len(computed.memory) // size):
            part = slice(n * size, (n + 1) * size)
            if computed.memory[part] != stored.memory[part]:
                return Difference("all", n, is_rounding=False)
        return None

    def mark(self) -> Mark:
        return Mark()


@dataclass
class Running:
    """One request in the engine. `blocks`: all its engine blocks; `computed`: tokens with KV."""

    name: str
    tokens: list[int]
    prompt_tokens: int
    max_tokens: int
    salt: bytes
    params: dict[str, Any]
    blocks: list[int] = field(default_factory=list)
    computed: int = 0
    state: str = "waiting"
    is_new: bool = True  # blocks not scheduled yet
    told_blocks: int = 0
    loaded_tokens: int = 0
    answer: dict[str, Any] | None = None


def hashes_of(tokens: Sequence[int]) -> list[bytes]:
    """Of the whole engine blocks, each hashed with the ones before it."""
    found, last = [], b""
    for at in range(0, len(tokens) - BLOCK_TOKENS + 1, BLOCK_TOKENS):
        block = np.asarray(tokens[at : at + BLOCK_TOKENS], "<u4").tobytes()
        last = blake2b(last + block, digest_size=32).digest()
        found.append(last)
    return found


class ReferenceAdapter:
    """Both parts of the adapter in one process. The engine calls each method as a hook."""

    kv_dtype = "uint8"  # of the identity: another one is another space
    announces = False  # whether routers listen to its events

    def __init__(self, kv: PagedKv, options: Options, step_tokens: int) -> None:
        identity = SpaceIdentity(
            model="reference",
            revision="1",
            dtype="uint8",
            kv_dtype=self.kv_dtype,
            layout="digests",
            layout_version=1,
            engine_block_tokens=BLOCK_TOKENS,
            bytes_per_token=KV_BYTES,
        )
        self.worker: WorkerSide[Any] = WorkerSide(
            [kv], identity, options, engine=_NAME, share=Share((0,)), step_tokens=step_tokens
        )
        ranks = [self.worker.describe()]
        self.scheduler = SchedulerSide.connect(
            ranks, options, engine=_NAME, shards=1, announces=self.announces
        )

    # ---- scheduler part

    def request_came(self, request: Running) -> None:
        self.scheduler.begin(
            NewRequest(
                request.name,
                request.tokens,
                request.prompt_tokens,
                salt=request.salt,
                params=read_params(request.params),
                engine_hashes=lambda: hashes_of(request.tokens),
            )
        )

    def claimed_tokens(self, request: Running, local_tokens: int) -> int | None:
        """Tokens to load. Leaves the prompt's last token: the engine must compute at least one."""
        found = self.scheduler.matched_tokens(request.name, local_tokens)
        most = (len(request.tokens) - 1) // BLOCK_TOKENS * BLOCK_TOKENS - local_tokens
        return found if found is None else max(0, min(found, most))

    def blocks_allocated(self, request: Running, external_tokens: int) -> None:
        self.scheduler.plan_load(request.name, external_tokens, [request.blocks])

    def plan(self, scheduled: Iterator[Scheduled], *, computes: bool, preempted: set[str]) -> Any:
        return self.scheduler.build_step(scheduled, computes=computes, preempted=preempted)

    def request_ended(self, request: Running) -> tuple[bool, dict[str, Any] | None]:
        return self.scheduler.end(request.name)

    # ---- worker part

    def before_step(self, plan: StepPlan) -> None:
        self.worker.begin_step(plan)
        self.worker.start_loads(plan)

    def after_step(self, plan: StepPlan) -> tuple[set[str], set[str], set[int]]:
        """(requests whose blocks may be freed, requests whose load ended, failed blocks)."""
        self.worker.end_step(plan)
        copied, loaded = self.worker.take_copied(plan), self.worker.poll_loads(plan)
        failed = self.worker.take_failed_blocks()
        self.scheduler.note_results(self.worker.report(), failed_blocks=failed, loaded=loaded)
        return copied, loaded, failed

    def stored_all(self) -> None:
        saver = self.worker._transfers
        assert saver is None or saver.drain(20)

    def close(self) -> None:
        self.scheduler.close()
        self.worker.close()


class ReferenceEngine:
    """Continuous batching, chunked prefill, a prefix cache of whole blocks, preemption."""

    def __init__(
        self,
        options: Options | None,
        *,
        adapter: type[ReferenceAdapter] = ReferenceAdapter,
        blocks: int = 200,
        step_tokens: int = 64,
        defers: bool = False,
    ) -> None:
        """`options` None: no adapter. `step_tokens`: most tokens computed in one step."""
        self.kv = PagedKv(blocks, defers=defers)
        self._step_tokens = step_tokens
        self._adapter = adapter(self.kv, options, step_tokens) if options is not None else None
        self._free = list(range(blocks))
        self._cached: dict[tuple[bytes, tuple[int, ...]], int] = {}  # prefix → its last block
        self._users: dict[int, int] = {}
        self._requests: list[Running] = []
        self._delayed: dict[str, list[int]] = {}
        self._aborted: dict[str, list[int]] = {}
        self._preempted: set[str] = set()
        self._dirty: list[int] = []  # freed since the last step
        self._steps = 0
        self._names = 0
        self.preemptions = 0

    def submit(
        self,
        tokens: Sequence[int],
        *,
        max_tokens: int = 4,
        salt: bytes = b"",
        params: Any = None,
        name: str | None = None,
    ) -> Running:
        self._names += 1
        request = Running(
            name or f"r{self._names}",
            list(tokens),
            len(tokens),
            max_tokens,
            salt,
            params or {"neve": {}},
        )
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
            self.kv.tick()
        self._admit()
        work = self._schedule()
        plan = None
        if self._adapter is not None:
            preempted, self._preempted = self._preempted, set()
            scheduled = self._scheduled(work)
            plan = self._adapter.plan(scheduled, computes=bool(work), preempted=preempted)
            self._adapter.before_step(plan)
        self.kv.blocks[self._dirty] = _POISON
        self._dirty.clear()
        for request, count in work:
            self._compute(request, count)
        if self._adapter is not None:
            assert plan is not None
            self._hear(*self._adapter.after_step(plan))
        for request in [each for each, _ in work if self._is_over(each)]:
            self._end(request)

    def take_events(self) -> list[Any]:
        """What an adapter that announces says to routers."""
        return self._adapter.scheduler.take_events() if self._adapter is not None else []

    def store_all(self) -> None:
        """Run deferred copies, then wait until all saves are stored or refused."""
        self.kv.tick()
        if self._adapter is not None:
            self._adapter.stored_all()

    def close(self) -> None:
        self.store_all()
        if self._adapter is not None:
            self._adapter.close()

    # ---- scheduling

    def _admit(self) -> None:
        """Give waiting requests local blocks, ask the adapter, allocate blocks for its claim."""
        for request in [each for each in self._requests if each.state == "waiting"]:
            local = self._local_blocks(request)
            local_tokens, claimed = len(local) * BLOCK_TOKENS, 0
            if self._adapter is not None:
                found = self._adapter.claimed_tokens(request, local_tokens)
                if found is None:
                    continue
                claimed = found
            for block in local:
                self._users[block] += 1
            request.blocks, request.is_new = local, True
            if not self._grow(request, local_tokens + max(claimed, 1)):
                self._release(request.blocks)
                request.blocks = []
                continue
            request.computed, request.state = local_tokens, "running"
            if claimed:
                request.state, request.loaded_tokens = "loading", claimed
                assert self._adapter is not None
                self._adapter.blocks_allocated(request, claimed)

    def _schedule(self) -> list[tuple[Running, int]]:
        """(request, tokens to compute) of this step. If blocks run out, preempts the youngest
        requests."""
        work, left = [], self._step_tokens
        for request in [each for each in self._requests if each.state == "running"]:
            count = min(left, len(request.tokens) - request.computed)
            while request.state == "running" and not self._grow(request, request.computed + count):
                self._preempt([each for each in self._requests if each.state == "running"][-1])
            if request.state == "running" and left:
                work.append((request, count))
                left -= count
        return [each for each in work if each[0].state == "running"]

    def _scheduled(self, work: list[tuple[Running, int]]) -> Iterator[Scheduled]:
        for request, count in work:
            blocks = request.blocks if request.is_new else request.blocks[request.told_blocks :]
            yield (
                request.name, request.computed, request.computed + count,
                (list(blocks),), request.is_new, False,
            )  # fmt: skip
            request.is_new, request.told_blocks = False, len(request.blocks)

    def _preempt(self, request: Running) -> None:
        self.preemptions += 1
        self._preempted.add(request.name)
        self._release(request.blocks)
        request.blocks, request.computed, request.state = [], 0, "waiting"
        self._requests.remove(request)
        self._requests.append(request)

    def _hear(self, copied: set[str], loaded: set[str], failed: set[int]) -> None:
        for name in copied:
            if name not in self._delayed:
                raise EngineFault(f"{name} is not held, and its blocks are to be freed")
            self._release(self._delayed.pop(name))
        for name in loaded:
            if name in self._aborted:
                self._release(self._aborted.pop(name))
                continue
            request = next((each for each in self._requests if each.name == name), None)
            if request is None:
                raise EngineFault(f"{name} is over, and its load was still under way")
            end = request.computed + request.loaded_tokens
            bad = [n for n, block in enumerate(request.blocks) if block in failed]
            if bad:
                end = min(end, bad[0] * BLOCK_TOKENS)
            request.computed, request.state = end, "running"

    # ---- blocks

    def _grow(self, request: Running, tokens: int) -> bool:
        wanted = -(-tokens // BLOCK_TOKENS) - len(request.blocks)
        while len(self._free) < wanted and self._cached:
            self._evict()
        if len(self._free) < wanted:
            return False
        for _ in range(wanted):
            block = self._free.pop()
            self._users[block] = 1
            request.blocks.append(block)
        return True

    def _evict(self) -> None:
        prefix = next(iter(self._cached))
        block = self._cached.pop(prefix)
        self._release([block])

    def _release(self, blocks: Sequence[int]) -> None:
        for block in blocks:
            self._users[block] -= 1
            if not self._users[block]:
                self._dirty.append(block)
                self._free.append(block)

    def _local_blocks(self, request: Running) -> list[int]:
        """Prefix-cache blocks of this prompt, without the prompt's last token."""
        found: list[int] = []
        for end in range(BLOCK_TOKENS, len(request.tokens), BLOCK_TOKENS):
            block = self._cached.get((request.salt, tuple(request.tokens[:end])))
            if block is None:
                break
            found.append(block)
        return found

    def _keep(self, request: Running) -> None:
        """Keep the request's whole blocks in the prefix cache."""
        for number in range(request.computed // BLOCK_TOKENS):
            prefix = request.salt, tuple(request.tokens[: (number + 1) * BLOCK_TOKENS])
            if prefix not in self._cached:
                self._cached[prefix] = request.blocks[number]
                self._users[request.blocks[number]] += 1

    # ---- computing

    def _compute(self, request: Running, count: int) -> None:
        token_kv = self.kv.blocks.reshape(-1, KV_BYTES)
        rows = [
            block * BLOCK_TOKENS + place
            for block in request.blocks
            for place in range(BLOCK_TOKENS)
        ]
        for position in range(request.computed, request.computed + count):
            seen = token_kv[rows[:position]].view("<u8").sum(dtype=np.uint64)
            key = b"%d %d %d" % (request.tokens[position], position, seen)
            token_kv[rows[position]] = np.frombuffer(
                blake2b(key, digest_size=KV_BYTES).digest(), np.uint8
            )
        request.computed += count
        if request.computed == len(request.tokens) and not self._is_over(request):
            if not count:
                raise EngineFault(f"{request.name}: no token is left to compute")
            seen = token_kv[rows[: request.computed]].view("<u8").sum(dtype=np.uint64)
            request.tokens.append(int(seen % 251))

    def _is_over(self, request: Running) -> bool:
        return len(request.tokens) - request.prompt_tokens >= request.max_tokens

    def _end(self, request: Running) -> None:
        self._requests.remove(request)
        if request.state == "running":
            self._keep(request)
        delays_free = False
        if self._adapter is not None:
            delays_free, request.answer = self._adapter.request_ended(request)
        if request.state == "loading":
            self._aborted[request.name] = request.blocks
        elif delays_free:
            self._delayed[request.name] = request.blocks
        else:
            self._release(request.blocks)
