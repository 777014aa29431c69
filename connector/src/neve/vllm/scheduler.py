"""The scheduler side: from vLLM's requests and steps to the planner, and contexts on their way out.

Uses vLLM's objects by their attributes only, so it imports nothing of it.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import Any, Final

from neve import log_events
from neve.engine.canary import Canary, Verdict
from neve.engine.chains import Media, Origin
from neve.engine.contexts import ContextReports
from neve.engine.events import ChunkRemoved, ChunkStored, RouterEvents
from neve.engine.handover import Prefilled
from neve.engine.link import BOOT_WAIT_S, Link
from neve.engine.load_policy import LoadPolicy
from neve.engine.lora import LoraContents
from neve.engine.options import Options
from neve.engine.params import read_params, response_params
from neve.engine.planner import Planner
from neve.engine.step import BlockLoad, BlockSave, LoadPlan, StepPlan
from neve.engine.telemetry import Data, Telemetry
from neve.formats.space import SpaceIdentity
from neve.vllm.compat import has_token_ids

# A request waits so long for its adapter's name, and after a reset for the workers' word.
MOST_UNDECIDED_S: Final = 5.0


class SchedulerSide:
    """One per engine. Belongs to the scheduler's thread."""

    def __init__(
        self,
        identities: Sequence[SpaceIdentity],
        options: Options,
        *,
        engine: str,
        same_process: bool,
        loads: bool,
        saves: bool,
        holds: bool = False,
        names_media: bool = True,
        shards: int = 1,
        announces_of: int = 0,
        ranks: int = 1,
        parts: int = 1,
    ) -> None:
        """`identities` in rank order, each of `shards` columns. In a process of its own the
        scheduler opens its own sessions, under another node name: a session has one owner.

        `holds`: workers copy behind the step, so what they save must stay in place until they say
        so. `names_media`: see `compat`. `ranks`: workers; `parts`: those that hold a part of each
        chunk; `announces_of`: the same, if routers are to hear of it.
        """
        node = options.node if same_process else f"{options.node}/scheduler"
        self._links = [
            Link.acquire(options, identity, engine=engine, node=node, shards=shards)
            for identity in identities
        ]
        boot = time.monotonic()
        for link in self._links:  # already there, unless this is a process of its own
            link.wait_first_attempt(boot + BOOT_WAIT_S - time.monotonic())
        self._options = options
        # In the workers' process they count for the client that is theirs and ours.
        self._counts = not same_process
        self._telemetry = Telemetry()
        self._judge = LoadPolicy(
            self._telemetry,
            load_deadline_s=options.load_deadline_s,
            always=options.load == "always",
        )
        self._steps = 0
        # Names the weights where they are not those of the start; None: not compared yet.
        self._epoch: bytes | None = b""
        self._ranks = ranks
        self._weigh = 0
        self._weights: dict[str, bytes] = {}
        self._loras = LoraContents()
        self._undecided: dict[str, float] = {}
        self._planner = Planner(
            self._links,
            engine_block_tokens=identities[0].engine_block_tokens,
            match_deadline_s=options.match_deadline_s,
            judge=self._judge,
            telemetry=self._telemetry,
            canary=Canary(options.canary, parts, self._telemetry),
            handover_wait_s=options.handover_wait_s,
            loads=loads,
            saves=saves,
            shards=shards,
        )
        self._shards = shards
        self._announces_of = announces_of
        self._announcer: RouterEvents | None = RouterEvents(announces_of) if announces_of else None
        self._requests: dict[str, Any] = {}  # vLLM's, only for announcements
        self._engine_block_tokens = identities[0].engine_block_tokens
        self._engine_blocks: dict[str, list[int]] = {}
        self._holds = holds
        self._names_media = names_media
        self._saved: set[str] = set()
        self._held: list[str] = []
        self._pending_loads: list[LoadPlan] = []
        self._reports = ContextReports(self._links, shards)

    def track(self, request: Any) -> bool | None:
        """Begins a vLLM request if it can be cached at all; True when it is tracked, None as long
        as its adapter's files are read or the workers compare their weights."""
        if self._planner.knows(request.request_id):
            return True
        if not has_token_ids(request) or (request.mm_features and not self._names_media):
            return False
        lora = request.lora_request
        adapter = self._loras.name(lora) if lora is not None else b""
        if adapter is False:
            return False
        if adapter is True or self._epoch is None:
            return None
        if self._announcer is not None:
            self._requests[request.request_id] = request
        self._planner.add(
            request.request_id,
            request.all_token_ids,
            origin_of(request, adapter, self._epoch),
            read_params(request.kv_transfer_params),
            prompt_tokens=request.num_prompt_tokens,
        )
        return True

    def matched_tokens(self, request: Any, local_tokens: int) -> int | None:
        """See `Planner.matched_tokens`."""
        if request.skip_reading_prefix_cache:
            return 0
        tracked = self.track(request)
        if tracked is None:
            now = time.monotonic()
            if now < self._undecided.setdefault(request.request_id, now + MOST_UNDECIDED_S):
                self._planner.pause()
                return None
        if not tracked:
            return 0
        return self._planner.matched_tokens(request.request_id, local_tokens)

    def plan_load(
        self, request_id: str, external_tokens: int, engine_blocks: Sequence[int]
    ) -> None:
        """The engine allocated blocks for a load: it goes out with this step."""
        try:
            load = self._planner.plan_load(request_id, external_tokens, engine_blocks)
        except Exception:
            # The engine waits for this load from now on, so one that must fail is sent.
            log_events.LOAD_UNPLANNED.log(exc_info=True)
            count = -(-external_tokens // self._engine_block_tokens)
            blank = BlockLoad((), (), tuple(engine_blocks[-count:]), 0)
            load = LoadPlan(request_id, 0, (blank,), self._options.load_deadline_s)
        self._pending_loads.append(load)

    def build_step(self, output: Any) -> StepPlan:
        """The step's loads and saves. Loads go out whatever happens to the saves."""
        loads, self._pending_loads = self._pending_loads, []
        held, self._held = self._held, []
        step = StepPlan(
            loads=loads,
            held=held,
            idle=output.total_num_scheduled_tokens == 0,
            fences=bool(output.preempted_req_ids),
            weigh=self._weigh,
        )
        # Their blocks are others' by now, behind a fence. Should they be loaded again, by whatever
        # connector, and aborted, the engine frees them itself: twice would stop it.
        preempted = output.preempted_req_ids or ()
        self._saved.difference_update(preempted)
        self._planner.note_preempted(preempted)
        try:
            self._plan_saves(output, step)
        except Exception:
            log_events.SAVE_UNPLANNED.log(exc_info=True)
        lost = self._planner.take_lost()
        if self._announcer is not None:
            self._announcer.note_lost(lost)
        self._planner.end_step(idle=step.idle)
        return step

    def _plan_saves(self, output: Any, step: StepPlan) -> None:
        """Runs over every running request in every step: most have nothing to save."""
        self._steps += 1
        scheduled = output.num_scheduled_tokens
        drafted = output.scheduled_spec_decode_tokens
        save_at = self._planner.save_at
        prefills: list[tuple[int, int]] = []
        due: list[tuple[str, int]] = []

        def note(request_id: str, start: int) -> None:
            end = start + scheduled[request_id]
            if end - start > 1 and request_id not in drafted:
                prefills.append((start, end))
            if end >= save_at.get(request_id, end):
                due.append((request_id, end))

        for new in output.scheduled_new_reqs:
            # Also a resumed request under Model Runner V2: its list replaces the old one.
            self._engine_blocks[new.req_id] = list(new.block_ids[0])
            note(new.req_id, new.num_computed_tokens)
        cached = output.scheduled_cached_reqs
        for request_id, blocks, start in zip(
            cached.req_ids, cached.new_block_ids, cached.num_computed_tokens, strict=True
        ):
            if request_id in cached.resumed_req_ids:
                self._engine_blocks[request_id] = list(blocks[0]) if blocks else []
            elif blocks:
                self._engine_blocks.setdefault(request_id, []).extend(blocks[0])
            note(request_id, start)
        # Where media are encoded, most of the step's time may be for that.
        plain = prefills and not output.scheduled_encoder_inputs
        if plain and self._judge.begin_step(self._steps, prefills):
            step.timed = self._steps
        for request_id, end in due:
            # Drafts that may be rejected are among the scheduled tokens; the planner counts only
            # tokens whose ids are final.
            saves = self._planner.plan_saves(request_id, end, self._engine_blocks[request_id])
            if saves and self._holds:
                self._saved.add(request_id)
            step.saves += saves
            if self._announcer is not None:
                for save in saves:
                    if not save.stored:
                        self._expect(self._announcer, save)

    def note_results(
        self,
        *,
        failed_blocks: Iterable[int],
        loaded: Iterable[str],
        timed: Iterable[tuple[int, float]],
    ) -> None:
        """What the workers said about the loads, and how long measured steps took."""
        for step, took_s in timed:
            self._judge.end_step(step, took_s)
        self._planner.note_failures(failed_blocks)
        for request_id in loaded:
            self._planner.note_loaded(request_id)

    def note_saves(self, *, unsaved: Sequence[bytes], stored: Sequence[bytes]) -> None:
        """First ids of chunks that a rank did not store, and did."""
        self._planner.note_unsaved(unsaved)
        if self._announcer is not None:
            self._announcer.note_lost(unsaved)
            self._announcer.note_stored(stored)

    def note_compared(self, verdicts: Sequence[tuple[bytes, Verdict]]) -> None:
        """What workers said of blocks that were computed and fetched: see `neve.engine.canary`."""
        self._planner.note_compared(verdicts)

    def note_weights(self, told: Mapping[str, tuple[int, bytes]]) -> None:
        """What workers, by name, say of their weights after a reset (its number): nothing if they
        are those of the start, else their digest. KV is found and shared again once all did: with
        every engine of the same weights."""
        for worker, (number, digest) in told.items():
            if number == self._weigh:
                self._weights[worker] = digest
        if self._epoch is not None or len(self._weights) < self._ranks:
            return
        digests = sorted(self._weights.values())
        self._epoch = blake2b(b"".join(digests), digest_size=16).digest() if any(digests) else b""
        if not self._epoch and self._announces_of:
            self._announcer = RouterEvents(self._announces_of)
        log_events.RESET_DONE.log(weights="changed" if self._epoch else "same")

    def note_gauges(self, gauges: Mapping[str, dict[str, float]]) -> None:
        """What the workers' gauges changed to, by worker."""
        self._telemetry.note_others(gauges)

    def take_news(self) -> list[ChunkStored | ChunkRemoved]:
        """What routers are to hear, since the last call."""
        return self._announcer.take() if self._announcer is not None else []

    def _expect(self, announcer: RouterEvents, save: BlockSave) -> None:
        """The chunk in vLLM's terms; nothing when its hashes are not those of whole blocks."""
        request, per_chunk = self._requests[save.request_id], len(save.engine_blocks)
        hashes = request.block_hashes
        if len(hashes) != len(request.all_token_ids) // self._engine_block_tokens:
            return
        first, lora = save.chunk * per_chunk, request.lora_request
        tokens = slice(save.chunk * save.tokens, (save.chunk + 1) * save.tokens)
        announcer.expect(
            save.ids[0],
            ChunkStored(
                hashes=tuple(hashes[first : first + per_chunk]),
                parent=hashes[first - 1] if first else None,
                tokens=tuple(request.all_token_ids[tokens]),
                lora_id=lora.lora_int_id if lora is not None else None,
                lora_name=lora.lora_name if lora is not None else None,
            ),
        )

    def reset(self) -> None:
        """The weights may have been changed in place, which no fingerprint tells: nothing is found
        or stored until the workers compared them, in the next step."""
        self._epoch = None
        self._weigh += 1
        self._weights.clear()
        self._planner.reset()
        self._announcer = None

    def take_telemetry(self) -> Data | None:
        """What is new since the last call, for vLLM's metrics."""
        if self._counts:
            self._telemetry.read(self._links[0].client)
        return self._telemetry.take()

    def end(self, request: Any) -> tuple[bool, dict[str, Any] | None]:
        """See `hold` and `finish`. What is held is told of in any case: the engine would stop at
        the word that nobody reads blocks any more which it did not know to be held."""
        held = self.hold(request.request_id)
        try:
            return held, self.finish(request)
        except Exception:
            log_events.REQUEST_UNFINISHED.log(exc_info=True)
            return held, None

    def hold(self, request_id: str) -> bool:
        """Whether an ended request's engine blocks must not be freed before the workers say so."""
        if request_id not in self._saved:
            return False
        self._saved.discard(request_id)
        self._held.append(request_id)
        return True

    def finish(self, request: Any) -> dict[str, Any] | None:
        """Ends a request; the response's `kv_transfer_params` if the request spoke to Neve."""
        self._engine_blocks.pop(request.request_id, None)
        self._undecided.pop(request.request_id, None)
        self._requests.pop(request.request_id, None)
        ended = self._planner.end(request.request_id)
        if ended is None:
            return None
        if ended.wish.name is not None and ended.ids:
            self._reports.add(ended)
        prefilled = None
        if ended.wish.hands_over and ended.ids:
            prefilled = Prefilled(len(ended.ids) * ended.chunk_tokens, ended.ids[-1][0])
        return response_params(
            ended.wish,
            hot_tokens=ended.hot_tokens,
            cold_tokens=ended.cold_tokens,
            prefilled=prefilled,
        )

    def close(self) -> None:
        """Sends the contexts that still wait, then ends the connections."""
        self._reports.close()
        self._planner.close()
        self._loras.close()
        for link in self._links:
            link.release()


def origin_of(request: Any, adapter: bytes = b"", epoch: bytes = b"") -> Origin:
    """What decides the request's KV besides its tokens. `adapter` names its LoRA adapter by
    content, `epoch` the weights if they are not those of the start."""
    return Origin(
        salt=epoch + _bytes(request.cache_salt or ""),
        lora=adapter,
        media=tuple(
            Media(
                identifier=_bytes(feature.identifier),
                offset=feature.mm_position.offset,
                length=feature.mm_position.length,
            )
            for feature in request.mm_features or ()
        ),
    )


def _bytes(text: str) -> bytes:
    """UTF-8. Half a surrogate pair has none, and must not stop the engine: it passes as it is."""
    return text.encode("utf-8", "surrogatepass")
