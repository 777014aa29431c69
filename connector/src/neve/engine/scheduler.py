"""The scheduler side of an adapter: what is looked up, loaded and saved in each step.

Belongs to the scheduler's thread. `neve.engine.contract.Scheduling` says what each call means and
in which order an adapter makes them.
"""

import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

from neve import log_events
from neve.engine.attest import Attestation
from neve.engine.canary import Canary, Verdict
from neve.engine.contexts import ContextReports, FinishedRequest
from neve.engine.events import ChunkRemoved, ChunkStored, RouterEvents
from neve.engine.groups import KvGroup
from neve.engine.handover import Prefilled
from neve.engine.link import BOOT_WAIT_S, Engine, Link
from neve.engine.load_policy import LoadPolicy
from neve.engine.loads import Loads
from neve.engine.lookups import Lookups
from neve.engine.lora import LoraContents
from neve.engine.options import Options
from neve.engine.params import response_params
from neve.engine.pending import PendingRequests
from neve.engine.rears import Rears
from neve.engine.recording import record
from neve.engine.removals import RemovalReader
from neve.engine.resets import Resets
from neve.engine.saves import Saves
from neve.engine.step import (
    BlockLoad,
    LoadPlan,
    NewRequest,
    OfferedState,
    RankInfo,
    Scheduled,
    StepPlan,
    WorkerReport,
)  # fmt: skip
from neve.engine.steps import Steps
from neve.engine.table import RequestTable
from neve.engine.telemetry import Data, Telemetry
from neve.formats.parts import PartKind
from neve.formats.space import EXACT, SpaceIdentity
from neve.index.tier import Tier
from neve.node.session import SCHEDULER_PART


class SchedulerSide:
    """One per engine: answers `neve.engine.contract.Scheduling`.

    Its parts work over one table of requests: `lookups`, `loads`, `saves`.
    """

    def __init__(
        self,
        links: Sequence[Link],
        options: Options,
        *,
        engine_block_tokens: int,
        shards: int = 1,
        groups: Sequence[KvGroup] = (),
        ranks: int = 1,
        parts: int = 1,
        loads: bool = True,
        saves: bool = True,
        defers: bool = False,
        announces: bool = False,
        owns_links: bool = False,
        gpus: int = 1,
        loras: LoraContents | None = None,
        codec: str = EXACT,
    ) -> None:
        """See `connect`. `ranks`: workers; `parts`: those that store a part of each chunk.
        `owns_links`: their clients are not a worker's, so this side counts their figures.
        `gpus`: TP × PP. `codec`: of the space, for answers."""
        self._options = options
        self._codec = codec
        self._links = links
        self._owns_links = owns_links
        self._telemetry = Telemetry()
        self._resets = Resets(ranks)
        self._loras = loras or LoraContents()
        # States are of other bytes whenever chunks of a prompt are cut elsewhere: no comparison.
        compared = sum(group.kind is not PartKind.STATE for group in groups) if groups else 1
        every = options.canary if compared else 0
        self._canary = Canary(every, parts, self._telemetry, groups=compared)
        self._policy = LoadPolicy(
            self._telemetry,
            load_deadline_s=options.load_deadline_s,
            always=options.load == "always",
        )
        self._attestation = (
            Attestation(links, self._telemetry, parts=parts, groups=len(groups) or 1)
            if options.family is not None
            else None
        )
        self._table = RequestTable(
            links,
            engine_block_tokens=engine_block_tokens,
            shards=shards,
            groups=groups,
            attestation=self._attestation,
        )
        self.rears = (
            Rears(self._table, self._telemetry, ranks=ranks) if options.load == "both" else None
        )
        self._pending = PendingRequests(self._table, self._loras, self._resets)
        self.lookups = Lookups(
            self._table,
            self._policy,
            self._canary,
            self._telemetry,
            match_deadline_s=options.match_deadline_s,
            handover_wait_s=options.handover_wait_s,
            loads=loads,
            rears=self.rears,
        )
        self.loads = Loads(self._table, self._policy, self._telemetry, gpus=gpus)
        self.saves = Saves(
            self._table,
            self._canary,
            saves=saves,
            state_every_tokens=options.state_every_tokens,
        )
        self._reports = ContextReports(links, shards, len(self._table.groups))
        self._events = RouterEvents(parts if announces else 0)
        self._removals = RemovalReader(links) if announces else None
        self._steps = Steps(
            self._table,
            self.lookups,
            self.saves,
            self._policy,
            self._events,
            self._resets,
            defers=defers,
        )

    @classmethod
    def connect(
        cls,
        ranks: Sequence[RankInfo],
        options: Options,
        *,
        engine: Engine,
        shards: int,
        groups: Sequence[KvGroup] = (),
        loads: bool = True,
        saves: bool = True,
        announces: bool = False,
    ) -> Self:
        """`ranks` in order: all TP ranks of a pipeline stage, then the next stage. `shards`: see
        `neve.engine.sharding`. `loads`, `saves`: the engine's role. `announces`: routers listen to
        its KV events. Waits for the first connection, up to `BOOT_WAIT_S`.
        """
        identities = [SpaceIdentity.from_dict(rank.identity) for rank in ranks]
        same_process = all(rank.pid == os.getpid() for rank in ranks)
        # A session has one owner: a scheduler in a process of its own opens others.
        node = options.node if same_process else options.node + SCHEDULER_PART
        links = [
            Link.acquire(options, identity, engine=engine, node=node, shards=shards)
            for identity in dict.fromkeys(identities)  # ranks of one space share a link
        ]
        boot = time.monotonic()
        for link in links:
            link.wait_first_attempt(boot + BOOT_WAIT_S - time.monotonic())
        return cls(
            links,
            options,
            engine_block_tokens=identities[0].engine_block_tokens,
            shards=shards,
            groups=groups,
            ranks=len(ranks),
            parts=len(ranks) // ranks[0].turns,
            loads=loads,
            saves=saves,
            defers=any(rank.defers for rank in ranks),
            announces=announces,
            owns_links=not same_process,
            gpus=engine.gpus,
            codec=identities[0].codec,
        )

    # ---- a request's life

    def knows(self, request_id: str) -> bool:
        return self._pending.knows(request_id)

    def begin(self, request: NewRequest) -> None:
        self._pending.begin(request)

    def matched_tokens(self, request_id: str, local_tokens: int) -> int | None:
        if self._pending.is_pending(request_id):
            self.lookups.pause()
            return None
        return self.lookups.matched_tokens(request_id, local_tokens)

    def plan_load(
        self, request_id: str, external_tokens: int, engine_blocks: Sequence[Sequence[int]]
    ) -> None:
        try:
            load = self.loads.plan(request_id, external_tokens, engine_blocks)
        except Exception:
            # From now on the engine waits for this load's end: send one that fails.
            log_events.LOAD_UNPLANNED.log(exc_info=True)
            if request_id in self._table.requests:  # or it would be planned again, for ever
                self._table.requests[request_id].may_load = False
            count = -(-external_tokens // self._table.engine_block_tokens)
            blank = BlockLoad((), (), tuple(engine_blocks[0][-count:]), 0)
            load = LoadPlan(
                request_id,
                0,
                (blank,),
                self._options.load_deadline_s,
                whole=self._table.is_split,
            )
        self._steps.add_load(load)

    def end(self, request_id: str) -> tuple[bool, dict[str, Any] | None]:
        # Always report delayed frees, even if `_finish` fails: engines abort when workers release
        # blocks that the scheduler never marked as held.
        delays_free = self._steps.delay_free(request_id)
        try:
            return delays_free, self._finish(request_id)
        except Exception:
            log_events.REQUEST_UNFINISHED.log(exc_info=True)
            return delays_free, None

    def _finish(self, request_id: str) -> dict[str, Any] | None:
        """Forgets the request; the response's parameters if it named any of Neve."""
        self._pending.drop(request_id)
        self._table.engine_blocks.pop(request_id, None)
        self.saves.due_at.pop(request_id, None)
        if self.rears is not None:
            self.rears.drop(request_id)
        request = self._table.requests.pop(request_id, None)
        if request is None:
            return None
        if request.to_compare:
            self._canary.drop()
        if request.lookup is not None and request.lookup.future is not None:
            request.lookup.future.cancel()
        record(self._table, request)
        params = request.params
        if params is None:
            return None
        ids = self._table.stored_ids(request)
        chunk_tokens = request.chain.chunk_tokens if request.chain is not None else 0
        reused = {tier: request.reused_tokens(tier) for tier in Tier}
        prefilled = None
        if ids and params.name is not None:
            self._reports.add(
                FinishedRequest(
                    params,
                    ids,
                    chunk_tokens,
                    prompt_tokens=request.asked_tokens,
                    hit_tokens=sum(reused.values()),
                )
            )
        if ids and params.hands_over:
            prefilled = Prefilled(len(ids) * chunk_tokens, ids[-1][0])
        return response_params(
            params,
            hot_tokens=reused[Tier.HOT],
            cold_tokens=reused[Tier.COLD],
            local_tokens=reused[Tier.LOCAL],
            stored_tokens=len(ids) * chunk_tokens,
            context_id=None if params.name is None else self._reports.id_of(params.name),
            prefilled=prefilled,
            codec=self._codec,
        )

    # ---- steps

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
        return self._steps.build(
            scheduled,
            computes=computes,
            preempted=preempted,
            encodes_media=encodes_media,
            tables=tables,
            states=states,
        )

    def note_results(
        self,
        report: WorkerReport,
        *,
        failed_blocks: Iterable[int],
        loaded: Iterable[str],
        failed_requests: Iterable[str] = (),
    ) -> None:
        for step, took_s in report.timed:
            self._policy.end_step(step, took_s)
        self.loads.note_failures(failed_blocks)
        self.loads.note_failed(failed_requests)
        for request_id in loaded:
            self.loads.note_ended(request_id)
        if self.rears is not None:
            self.rears.note_staged(report.staged)
        self.saves.note_unsaved(report.unsaved)
        self._events.note_lost(report.unsaved)
        self._events.note_stored(report.stored)
        self._telemetry.note_others(report.gauges)
        self._note_compared(report)
        if self._resets.note(report.weights):
            if self._attestation is not None:
                self._attestation.note_weights(self._resets.epoch or b"")
            if not self._resets.epoch:
                self._events.resume()

    def _note_compared(self, report: WorkerReport) -> None:
        """When a block differs that the canary compared, nothing is loaded or saved any more."""
        verdicts: Iterable[tuple[bytes, Verdict]] = report.compared
        if self._attestation is not None:
            verdicts = self._attestation.note(verdicts, report.differences)
        self._canary.note(verdicts)
        if self._canary.alone:
            self._forget_stored()
            if self._attestation is not None:
                self._attestation.detach()

    # ---- the whole engine

    def reset(self) -> None:
        self._resets.begin()
        if self._attestation is not None:
            self._attestation.has_shared = False  # the engine's prefix cache is empty too
        self._forget_stored()
        self._events.pause()

    def _forget_stored(self) -> None:
        """Live requests neither load nor save any more: their KV may be of other weights."""
        self._table.stored.clear()
        if self.rears is not None:
            self.rears.drop_all()
        for request in self._table.requests.values():
            request.may_load = request.may_save = False
            if request.to_compare:
                request.to_compare.clear()
                self._canary.drop()

    def take_telemetry(self) -> Data | None:
        """Figures since the last call, for the engine's metrics."""
        if self._owns_links:
            self._telemetry.read(self._links[0].client)
        client = self._links[0].client
        if client is not None and (speeds := self._policy.take_speeds()) is not None:
            client.stats.speeds = speeds
        return self._telemetry.take()

    def take_events(self) -> list[ChunkStored | ChunkRemoved]:
        """Events for routers since the last call, in order."""
        for removed in self._removals.take() if self._removals is not None else ():
            if removed is None:
                self._events.note_unknown()
            else:
                self._events.note_removed(removed)
        return self._events.take()

    def close(self) -> None:
        """Sends the contexts that still wait, then ends the connections."""
        if self._removals is not None:
            self._removals.close()
        self._reports.close()
        if self._attestation is not None:
            self._attestation.close()
        self.lookups.close()
        self._loras.close()
        for link in self._links:
            link.release()


if TYPE_CHECKING:  # mypy holds the class to the contract
    from neve.engine.contract import Scheduling

    _contract: type[Scheduling] = SchedulerSide
