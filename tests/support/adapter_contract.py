"""Watches an engine adapter's calls to `neve.engine` and records violations of the contract.

`docs/engine-adapters.md` numbers the rules. `ContractWatch.install` wraps the calls of every
`SchedulerSide` and `WorkerSide` of this process, so any adapter can be watched, vLLM's too.
Must not be here: pytest, an engine.
"""

from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any

from neve.engine.groups import is_split
from neve.engine.scheduler import SchedulerSide
from neve.engine.step import NewRequest, Scheduled, StepPlan, WorkerReport
from neve.engine.worker import WorkerSide


class ContractWatch:
    """Watches one engine's adapter: the scheduler part and the worker parts of this process.

    `violations`: "rule: event", in order.
    """

    def __init__(self) -> None:
        self.violations: list[str] = []
        self._undo: list[tuple[type, str, Any]] = []
        self._forget()

    def _forget(self) -> None:
        """Reset all state for a new engine, when a scheduler side is made."""
        self._live: dict[str, NewRequest] = {}
        self._ended: set[str] = set()
        self._answers: dict[str, tuple[int, int]] = {}  # request → local tokens, matched tokens
        self._loading: dict[str, tuple[int, list[int]]] = {}  # request → local tokens, its blocks
        self._last_start: dict[str, int] = {}  # request → latest start of its computation
        self._loaded: set[str] = set()  # requests whose load ended, without another look-up since
        self._blocks: dict[str, list[int]] = {}
        self._delayed: dict[str, set[int]] = {}
        self._failed: set[int] = set()  # reported by workers, not yet passed on
        self._failed_requests: set[str] = set()
        self._unsaved: set[bytes] = set()
        self._block_tokens = 0
        self._is_split = False  # sliding-window blocks change owner during a request

    def install(self) -> "ContractWatch":
        self._wrap(SchedulerSide, "__init__", self._made)
        for name in ("begin", "matched_tokens", "plan_load", "build_step", "note_results", "end"):
            self._wrap(SchedulerSide, name, getattr(self, f"_{name}"))
        steps = {}
        for name in ("begin_step", "start_loads", "end_step", "take_copied", "poll_loads"):
            self._wrap(WorkerSide, name, _Step(self, steps, name))
        self._wrap(WorkerSide, "take_failed_blocks", self._take_failed_blocks)
        self._wrap(WorkerSide, "take_failed_requests", self._take_failed_requests)
        self._wrap(WorkerSide, "report", self._report)
        return self

    def uninstall(self) -> None:
        while self._undo:
            owner, name, original = self._undo.pop()
            setattr(owner, name, original)

    def unfinished(self) -> list[str]:
        """Loads not ended and blocks not freed. Empty after an idle engine's last steps."""
        loads = [f"the load of {name} has not ended" for name in self._loading]
        return loads + [f"the blocks of {name} are not freed" for name in self._delayed]

    def broken(self, rule: str, what: str) -> None:
        self.violations.append(f"{rule}: {what}")

    def _wrap(self, owner: type, name: str, watch: Callable[..., Any]) -> None:
        original = getattr(owner, name)

        @wraps(original)
        def call(side: Any, *args: Any, **kwargs: Any) -> Any:
            return watch(side, lambda *a, **k: original(side, *a, **k), *args, **kwargs)

        self._undo.append((owner, name, original))
        setattr(owner, name, call)

    # ---- scheduler part

    def _made(self, side: Any, call: Any, *args: Any, **kwargs: Any) -> None:
        self._forget()
        self._block_tokens = kwargs["engine_block_tokens"]
        groups = kwargs.get("groups", ())
        self._is_split = bool(groups) and is_split(groups)
        call(*args, **kwargs)

    def _begin(self, side: Any, call: Any, request: NewRequest) -> None:
        # Only a request that Neve does not track may begin again.
        if request.request_id in self._live and side.knows(request.request_id):
            self.broken("S1", f"{request.request_id} is begun twice")
        self._live[request.request_id] = request
        self._ended.discard(request.request_id)
        call(request)

    def _matched_tokens(self, side: Any, call: Any, request_id: str, local_tokens: int) -> Any:
        if request_id in self._loading:
            self.broken("S2", f"{request_id} is looked up while its load is under way")
        if local_tokens % self._block_tokens:
            self.broken("S2", f"{request_id} has {local_tokens} local tokens: no whole blocks")
        found = call(request_id, local_tokens)
        self._answers.pop(request_id, None)
        self._last_start.pop(request_id, None)  # the request may have local blocks since then
        self._loaded.discard(request_id)
        if found:
            self._answers[request_id] = local_tokens, found
        return found

    def _plan_load(
        self, side: Any, call: Any, request_id: str, external_tokens: int, engine_blocks: Any
    ) -> None:
        local, found = self._answers.pop(request_id, (0, 0))
        if not 0 < external_tokens <= found:
            self.broken("S3", f"{request_id} claims {external_tokens} tokens, {found} were found")
        blocks, end = list(engine_blocks[0]), local + external_tokens
        if len(blocks) * self._block_tokens < end:
            self.broken("S3", f"{request_id} has {len(blocks)} blocks for {end} tokens")
        written = blocks[local // self._block_tokens : -(-end // self._block_tokens)]
        self._check_free(request_id, written)
        self._loading[request_id] = local, written
        call(request_id, external_tokens, engine_blocks)

    def _build_step(
        self, side: Any, call: Any, scheduled: Iterable[Scheduled], **kwargs: Any
    ) -> StepPlan:
        requests = list(scheduled)
        if self._is_split and requests and kwargs.get("tables") is None:
            self.broken("S9", "a step of several KV cache groups comes without block tables")
        for request_id in kwargs.get("preempted", ()):
            self._blocks.pop(request_id, None)
        for request_id, start, end, blocks, replaces, _ in requests:
            if end <= start:
                self.broken("S4", f"{request_id} is scheduled without a token to compute")
            if request_id in self._loading:
                self.broken("S5", f"{request_id} is scheduled while its load is under way")
            if start > self._last_start.pop(request_id, start):
                self.broken("S7", f"{request_id} is computed from {start} on, behind a failed load")
            if replaces and request_id in self._blocks:
                self.broken("S6", f"{request_id} lost its blocks, and no preemption was reported")
            if replaces:
                self._blocks[request_id] = []
            new = list(blocks[0]) if blocks else []
            # Blocks before `start` are read-only and may be shared through a prefix cache.
            written = new[start // self._block_tokens :] if replaces else new
            self._check_free(request_id, written)
            self._blocks.setdefault(request_id, []).extend(new)
        plan: StepPlan = call(requests, **kwargs)
        return plan

    def _note_results(
        self,
        side: Any,
        call: Any,
        report: WorkerReport,
        *,
        failed_blocks: Any,
        loaded: Any,
        failed_requests: Any = (),
    ) -> None:
        failed, ended = set(failed_blocks), list(loaded)
        if missing := self._failed - failed:
            self.broken("S7", f"failed blocks {sorted(missing)} were not passed on")
        if missing := self._unsaved - set(report.unsaved):
            self.broken("S8", f"reports on {len(missing)} unsaved chunks were not passed on")
        if missing := self._failed_requests - set(failed_requests):
            self.broken("S9", f"the failed loads of {sorted(missing)} were not passed on")
        for name in failed_requests:
            self._last_start[name] = 0
        self._failed.clear()
        self._failed_requests.clear()
        self._unsaved.clear()
        for local, blocks in self._loading.values():  # a prefix cache may share the local blocks
            if hit := failed.intersection(blocks):
                first = min(blocks.index(block) for block in hit)
                name = next(n for n, load in self._loading.items() if load[1] is blocks)
                start = local + first * self._block_tokens
                self._last_start[name] = min(start, self._last_start.get(name, start))
        for request_id in ended:
            # With a second connector, vLLM also reports the ends of that connector's loads.
            if self._loading.pop(request_id, None) is not None:
                self._loaded.add(request_id)
            elif request_id in self._loaded:
                self.broken("S7", f"the load of {request_id} ended twice")
        call(report, failed_blocks=failed, loaded=ended, failed_requests=failed_requests)

    def _end(self, side: Any, call: Any, request_id: str) -> Any:
        if request_id in self._ended:
            self.broken("S1", f"{request_id} is ended twice")
        if self._live.pop(request_id, None) is not None:
            self._ended.add(request_id)
        self._last_start.pop(request_id, None)
        self._answers.pop(request_id, None)
        blocks = self._blocks.pop(request_id, [])
        delays_free, params = call(request_id)
        if delays_free:
            self._delayed[request_id] = set(blocks)
        return delays_free, params

    def _check_free(self, request_id: str, blocks: list[int]) -> None:
        """Check that no other request loads into these blocks or copies out of them."""
        if self._is_split:
            return
        given = set(blocks)
        for name, (_, loading) in self._loading.items():
            if name != request_id and given.intersection(loading):
                self.broken("S5", f"{request_id} gets blocks that {name} still loads into")
        for name, copying in self._delayed.items():
            if given & copying:
                self.broken("S6", f"{request_id} gets blocks of {name} that are still copied out")

    # ---- worker part

    def _take_failed_blocks(self, side: Any, call: Any) -> set[int]:
        failed: set[int] = call()
        self._failed |= failed
        return failed

    def _take_failed_requests(self, side: Any, call: Any) -> set[str]:
        failed: set[str] = call()
        self._failed_requests |= failed
        return failed

    def _report(self, side: Any, call: Any) -> WorkerReport:
        report: WorkerReport = call()
        self._unsaved |= set(report.unsaved)
        return report

    def copied(self, request_ids: Iterable[str]) -> None:
        for request_id in request_ids:
            self._delayed.pop(request_id, None)


class _Step:
    """One worker step. Every worker must get every plan exactly once."""

    def __init__(
        self, watch: ContractWatch, steps: dict[int, tuple[StepPlan, set[str]]], name: str
    ) -> None:
        self._watch = watch
        self._steps = steps
        self._name = name

    def __call__(self, side: Any, call: Any, plan: StepPlan) -> Any:
        previous, made = self._steps.get(id(side), (None, set()))
        if previous is not plan:
            if previous is not None:
                self._check_whole(previous, made)
            made = set()
            self._steps[id(side)] = plan, made
        if self._name in made:
            self._watch.broken("W1", f"{self._name} is called twice in one step")
        if self._name == "begin_step" and made:
            self._watch.broken("W1", f"begin_step comes after {', '.join(sorted(made))}")
        made.add(self._name)
        found = call(plan)
        if self._name == "take_copied":
            self._watch.copied(found)
        return found

    def _check_whole(self, plan: StepPlan, made: set[str]) -> None:
        needed = {"poll_loads": bool(plan.loads), "start_loads": bool(plan.loads)}
        needed |= {"end_step": bool(plan.saves), "take_copied": bool(plan.delayed_frees)}
        needed["begin_step"] = plan.fences or bool(plan.saves)
        for name, is_needed in needed.items():
            if is_needed and name not in made:
                self._watch.broken("W1", f"a step ended without {name}")
