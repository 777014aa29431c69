"""The worker side of one rank: its connection, its staging, its transfers.

Belongs to the worker's thread. `neve.engine.contract.Working` says what each call means and in
which order an adapter makes them.
"""

import os
import secrets
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Generic

from neve import log_events
from neve.engine.canary import Verdict
from neve.engine.contract import Kv, Mark, S
from neve.engine.groups import KvGroup, is_split, part_groups
from neve.engine.link import BOOT_WAIT_S, Engine, Link
from neve.engine.loader import LoadResults
from neve.engine.lookups import STEP_WAIT_S
from neve.engine.losses import reported
from neve.engine.options import Options
from neve.engine.sharding import Share
from neve.engine.step import RankInfo, StepPlan, WorkerReport
from neve.engine.telemetry import Data, Telemetry
from neve.engine.transfers import GroupTransfers
from neve.errors import DeadlineExceeded, NeveError
from neve.formats.space import SpaceIdentity

_MOST_TIMED = 64  # measured steps that may be under way: far more than any healthy device has
# Puts still under way at shutdown get this long.
_DRAIN_S = 5.0
# Copies out of KV memory that the engine is about to give up: they take milliseconds.
_COPY_S = 30.0


class WorkerSide(Generic[S]):
    """One per rank: answers `neve.engine.contract.Working`. While Neve is not connected, every load
    fails at once."""

    def __init__(
        self,
        kvs: Sequence[Kv[S]],
        identity: SpaceIdentity,
        options: Options,
        *,
        engine: Engine,
        share: Share,
        step_tokens: int,
        groups: Sequence[KvGroup] = (),
        weights: Callable[[], bytes] = bytes,
        selective_weights: Callable[[], str] = str,
        others_fill: bool = False,
    ) -> None:
        """`kvs` has one entry for each of `groups`; by default there is one group, which sees all.
        `step_tokens`: the most that the engine computes in one step. `weights`: a digest of the
        model's weights as they are now, `selective_weights`: of those that only some tokens reach
        (see `Endpoint.open_session`). `others_fill`: another connector fills engine blocks too, of
        which plans say nothing."""
        self._identity = identity
        self._step_tokens = step_tokens
        self._kvs = kvs
        self._groups = groups or [KvGroup((), None, identity.engine_block_tokens)]
        self._others_fill = others_fill and is_split(self._groups)
        self._options = options
        self._share = share
        node = f"{options.node}/tp{share.seat}" if share.seat else options.node
        self._link = Link.acquire(
            options,
            identity,
            engine=engine,
            node=node,
            shards=share.shards,
            groups=part_groups(self._groups, (kv.block_bytes for kv in kvs)),
        )
        self._link.wait_first_attempt(BOOT_WAIT_S)
        self._weights = weights
        self._first_weights = self._read_weights()
        self._selective_weights = selective_weights
        self._told_weights = engine.selective_weights
        # The family knows other weights of this kind, which no proof by prompts would show.
        self._is_stranger = False
        self._checks = 0  # weights checks that were made
        self._checked: tuple[int, bytes] | None = None  # the last one's result, until reported
        self._transfers: GroupTransfers[S] | None = None
        self._suspended = False
        self._has_rears = False  # since the first one
        self._failed_blocks: set[int] = set()
        self._failed_requests: set[str] = set()
        self._ended: set[str] = set()  # loads that ended before they began
        self._unsaved: list[bytes] = []
        self._uncompared: list[bytes] = []
        self._delayed_frees: set[str] = set()
        self._loss = reported(options.codec_report, identity.codec)
        self._told_loss = False
        self._telemetry = Telemetry()
        self._name = secrets.token_hex(4)
        self._begun: Mark | None = None
        self._timed: deque[tuple[int, Mark, Mark]] = deque(maxlen=_MOST_TIMED)

    def describe(self) -> RankInfo:
        """For `SchedulerSide.connect`."""
        return RankInfo(
            self._identity.as_dict(), os.getpid(), self._kvs[0].defers, turns=self._share.turns
        )

    # ---- one step

    def begin_step(self, plan: StepPlan) -> None:
        copies = self._transfers is not None and (
            self._transfers.reads(plan.handed_on)
            or (self._others_fill and self._transfers.in_flight > 0)
        )
        if plan.fences or copies:
            for kv in self._kvs:
                kv.fence()
        self._begun = self._kvs[0].mark() if plan.timed is not None else None

    def start_loads(self, plan: StepPlan) -> None:
        for load in plan.loads:
            try:
                if not self._is_ready():
                    raise NeveError("this rank is suspended, not connected or of no family now")
                assert self._transfers is not None
                self._transfers.start(load)
            except Exception as error:
                log_events.LOAD_FAILED.log(request=load.request_id, detail=error)
                self._ended.add(load.request_id)
                if load.whole:
                    self._failed_requests.add(load.request_id)
                    continue
                for block in load.blocks:
                    self._failed_blocks.update(block.written)
        if plan.rears is not None and self._is_ready():
            assert self._transfers is not None
            self._has_rears = True
            self._transfers.rears.start(plan.rears)
        self._check_weights(plan)

    def jump(self, plan: StepPlan) -> None:
        """Copies rears into the engine's blocks, before the step computes.

        Raises if it can't: the engine counts these blocks as computed and must not go on."""
        if plan.rears is not None and plan.rears.jumps:
            if self._transfers is None:
                raise RuntimeError("this rank has no staged KV")
            self._transfers.rears.land(plan.rears.jumps)

    def end_step(self, plan: StepPlan) -> None:
        if plan.timed is not None and self._begun is not None:
            self._timed.append((plan.timed, self._begun, self._kvs[0].mark()))
        saves = plan.saves[self._share.turn :: self._share.turns]
        if not saves:
            return
        if not self._is_ready():
            self._unsaved.extend(save.ids[0] for save in saves if not save.stored)
            self._uncompared.extend(save.ids[0] for save in saves if save.stored)
            return
        assert self._transfers is not None
        self._transfers.save(saves)

    def take_copied(self, plan: StepPlan) -> set[str]:
        self._delayed_frees.update(plan.delayed_frees)
        transfers = self._transfers
        copied = {
            each for each in self._delayed_frees if transfers is None or not transfers.copying(each)
        }
        self._delayed_frees -= copied
        return copied

    def poll_loads(self, plan: StepPlan) -> set[str]:
        """See `Working`. Waits up to a millisecond if the step computes nothing."""
        ended, self._ended = self._ended, set()
        if self._transfers is not None:
            wait_s = STEP_WAIT_S if plan.idle and not ended else 0.0
            ended |= self._note_failures(self._transfers.poll(wait_s))
            if self._has_rears:
                self._transfers.rears.poll()
        return ended

    def _note_failures(self, results: LoadResults) -> set[str]:
        """Returns the requests whose load ended."""
        self._failed_requests |= results.failed_requests
        self._failed_blocks |= results.failed_engine_blocks
        return results.request_ids

    def take_failed_blocks(self) -> set[int]:
        failed, self._failed_blocks = self._failed_blocks, set()
        return failed

    def take_failed_requests(self) -> set[str]:
        failed, self._failed_requests = self._failed_requests, set()
        return failed

    def report(self) -> WorkerReport:
        report = WorkerReport(unsaved=self._unsaved, timed=self._take_timed())
        report.compared = [(block_id, Verdict.UNKNOWN) for block_id in self._uncompared]
        self._unsaved, self._uncompared = [], []
        if self._transfers is not None:
            report.unsaved += self._transfers.take_unsaved()
            report.stored = self._transfers.take_stored()
            report.compared += self._transfers.take_compared()
            report.differences = self._transfers.take_differences()
        if self._transfers is not None and self._has_rears:
            staged = self._transfers.rears.take_staged()
            report.staged = {(each, self._name): low for each, low in staged.items()}
        if gauges := self._telemetry.take_gauges():
            report.gauges = {self._name: gauges}
        if self._checked is not None:
            report.weights = {self._name: self._checked}
            self._checked = None
        return report

    def _take_timed(self) -> list[tuple[int, float]]:
        """Number and seconds of measured steps that ended since the last call."""
        over = []
        while self._timed and self._timed[0][2].done():
            number, begun, ended = self._timed.popleft()
            over.append((number, ended.since(begun)))
        return over

    # ---- the rank

    def suspend(self) -> None:
        self._suspended = True
        if self._transfers is not None:
            self._ended |= self._note_failures(self._transfers.stop_loads())
            if not self._transfers.end_copies(_COPY_S):
                raise DeadlineExceeded("copies out of the engine are not over")
        for kv in self._kvs:
            kv.release()

    def resume(self) -> None:
        self._suspended = False

    def take_telemetry(self) -> Data | None:
        """Figures since the last call, for the engine's metrics; gauges go with `report`."""
        self._telemetry.read(self._link.client)
        if not self._identity.is_exact:
            self._tell_loss()
        if self._transfers is not None:
            self._telemetry.gauge("saves_in_flight", self._transfers.in_flight)
            states, state_bytes = self._transfers.take_states()
            self._telemetry.count("states", states, "stored")
            self._telemetry.count("state_bytes", state_bytes, "stored")
        return self._telemetry.take(gauges=False)

    def _tell_loss(self) -> None:
        """With the next heartbeat, once and whenever more is measured."""
        client, errors = self._link.client, [kv.loss_error for kv in self._kvs]
        error = max((each for each in errors if each is not None), default=self._loss.error)
        if client is None or (self._told_loss and error == self._loss.error):
            return
        self._loss, self._told_loss = replace(self._loss, error=error), True
        client.stats.loss = self._loss
        if error is not None:
            self._telemetry.gauge("codec_error", error)

    def close(self) -> None:
        """Waits for the puts under way, up to a bound, and ends the connection."""
        if self._transfers is not None and not self._transfers.drain(_DRAIN_S):
            log_events.SHUTDOWN_PUTS_LEFT.log()
        self._link.release()

    def _check_weights(self, plan: StepPlan) -> None:
        """Once after every reset: compares the weights with those of the start."""
        if plan.weights_check <= self._checks or self._suspended:
            return
        self._checks = plan.weights_check
        now = self._read_weights()
        changed = now != self._first_weights
        self._checked = plan.weights_check, now if changed else b""
        self._is_stranger = changed and bool(self._options.family) and self._differs_selectively()
        if self._is_stranger:
            log_events.FAMILY_STRANGER.log()

    def _differs_selectively(self) -> bool:
        """From what the handshake told; also if that can't be read."""
        try:
            return self._selective_weights() != self._told_weights
        except Exception:
            log_events.WEIGHTS_UNREADABLE.log(exc_info=True)
            return True

    def _read_weights(self) -> bytes:
        try:
            return self._weights()
        except Exception:  # a digest that no engine shares: after a reset, KV is this engine's own
            log_events.WEIGHTS_UNREADABLE.log(exc_info=True)
            return secrets.token_bytes(16)

    def _is_ready(self) -> bool:
        """Whether blocks can be moved; makes loader and saver once Neve is connected."""
        if self._suspended or self._is_stranger:
            return False
        if self._transfers is not None:
            return True
        client = self._link.client
        if client is None:
            return False
        chunk_tokens = client.session.chunk_tokens
        chunk_bytes = sum(
            group.stored_blocks(chunk_tokens) * kv.block_bytes
            for group, kv in zip(self._groups, self._kvs, strict=True)
        )
        step_chunks = -(-self._step_tokens // chunk_tokens)
        self._transfers = GroupTransfers(
            client,
            self._kvs,
            self._groups,
            self._share.columns,
            load_bytes=self._options.load_budget_bytes,
            save_bytes=self._options.save_budget(step_chunks * chunk_bytes // self._share.turns),
        )
        return True


if TYPE_CHECKING:  # mypy holds the class to the contract
    from neve.engine.contract import Working

    _contract: type[Working] = WorkerSide[Any]
