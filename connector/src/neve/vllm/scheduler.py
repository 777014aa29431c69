"""vLLM's requests and steps in the terms of `neve.engine.step`.

Reads vLLM's objects by attribute only, so it imports nothing of vLLM.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from neve.engine.chains import Media
from neve.engine.params import read_params
from neve.engine.scheduler import SchedulerSide
from neve.engine.step import (
    LoadPlan,
    Lora,
    NewRequest,
    OfferedState,
    Scheduled,
    StepPlan,
    WorkerReport,
)
from neve.vllm.compat import has_token_ids
from neve.vllm.jumps import Jumps


class VllmScheduling:
    """Calls a `SchedulerSide` with vLLM's objects. Belongs to the scheduler's thread.

    `names_media`: images and other media are named by their content (see `compat`); otherwise
    requests that have some are left alone.
    """

    def __init__(self, side: SchedulerSide, *, names_media: bool, is_split: bool = False) -> None:
        """`is_split`: there are several KV cache groups, or windows."""
        self.side = side
        self._is_split = is_split
        self._names_media = names_media
        self._loading: dict[str, Any] = {}  # vLLM's requests whose load is under way
        self.jumps: Jumps | None = None  # with `load: both`, once the engine was checked

    def begin(self, request: Any) -> None:
        """A request came, or comes again. Those that can't be cached are left alone."""
        if self.side.knows(request.request_id) or not has_token_ids(request):
            return
        if self._names_media or not request.mm_features:
            self.side.begin(new_request(request))

    def matched_tokens(self, request: Any, local_tokens: int) -> int | None:
        """See `Scheduling`. A request that could not be served earlier is tried again."""
        if request.skip_reading_prefix_cache:
            return 0
        self.begin(request)
        tokens = self.side.matched_tokens(request.request_id, local_tokens)
        if self.jumps is not None:
            self.jumps.watch(request)
        return tokens

    def plan_load(
        self, request: Any, external_tokens: int, engine_blocks: Sequence[Sequence[int]]
    ) -> None:
        self._loading[request.request_id] = request
        self.side.plan_load(request.request_id, external_tokens, engine_blocks)

    def note_results(self, report: WorkerReport, output: Any) -> None:
        """`output`: vLLM's `KVConnectorOutput`, after vLLM took the failed blocks from it."""
        loaded = output.finished_recving or ()
        self.side.note_results(
            report,
            failed_blocks=output.invalid_block_ids or (),
            loaded=loaded,
            failed_requests=getattr(output, "failed_recving", None) or (),
        )
        for request_id in loaded:
            request = self._loading.pop(request_id, None)
            if request is not None:
                correct_cached(request)

    def land(self, output: Any) -> list[LoadPlan]:
        """Copies that this step begins with; call it before `build_step`."""
        return self.jumps.land(output) if self.jumps is not None else []

    def build_step(self, output: Any) -> StepPlan:
        """`output`: vLLM's `SchedulerOutput`."""
        tables: Callable[[str], Sequence[Sequence[int]] | None] | None = None
        states: Mapping[str, Sequence[OfferedState]] | None = None
        if self._is_split:
            # Blocks of windows change hands: without the tables of this step, nothing is saved.
            state = output.kv_connector_block_state
            tables = state.get_block_ids if state is not None else lambda _: None
            states = getattr(state, "boundary_state_offloads", None)
        step = self.side.build_step(
            scheduled(output),
            computes=output.total_num_scheduled_tokens > 0,
            preempted=output.preempted_req_ids or (),
            encodes_media=bool(output.scheduled_encoder_inputs),
            tables=tables,
            states=states,
        )
        # Copies inside the engine fill blocks that no request was given.
        step.fences |= bool(getattr(output, "kv_cache_block_copies", None))
        if self.jumps is not None:
            step.rears = self.jumps.meet(output)
        return step


def new_request(request: Any) -> NewRequest:
    """`request`: vLLM's `Request`."""
    lora = request.lora_request
    return NewRequest(
        request_id=request.request_id,
        tokens=request.all_token_ids,
        prompt_tokens=request.num_prompt_tokens,
        salt=_bytes(request.cache_salt or ""),
        lora=_lora(lora) if lora is not None else None,
        media=tuple(
            Media(
                identifier=_bytes(feature.identifier),
                offset=feature.mm_position.offset,
                length=feature.mm_position.length,
            )
            for feature in request.mm_features or ()
        ),
        params=read_params(request.kv_transfer_params),
        engine_hashes=lambda: request.block_hashes,
    )


def correct_cached(request: Any) -> None:
    """After a load: of a request's cached tokens, counts those that did not arrive as computed.

    vLLM counts what a connector promised, and keeps that after a failed load: its metrics and the
    usage of its answers would tell operators of loads that missed their deadline as hits.
    `request`: vLLM's `Request`, of which vLLM computes everything behind `num_computed_tokens`.
    """
    stats = request.prefill_stats
    if stats is None:  # the first token is there
        return
    lost = stats.num_cached_tokens - request.num_computed_tokens
    lost = min(lost, stats.num_external_cached_tokens)
    if lost > 0:
        stats.num_external_cached_tokens -= lost
        stats.num_cached_tokens -= lost
        stats.num_computed_tokens += lost


def scheduled(output: Any) -> Iterator[Scheduled]:
    """The requests of a `SchedulerOutput`. Runs over every running request in every step."""
    tokens = output.num_scheduled_tokens
    drafted = output.scheduled_spec_decode_tokens
    for new in output.scheduled_new_reqs:
        # Also a resumed request under Model Runner V2: its block lists replace the old ones.
        name, start = new.req_id, new.num_computed_tokens
        yield name, start, start + tokens[name], new.block_ids, True, name in drafted
    cached = output.scheduled_cached_reqs
    resumed = cached.resumed_req_ids
    nothing: Sequence[Sequence[int]] = ()
    for name, blocks, start in zip(
        cached.req_ids, cached.new_block_ids, cached.num_computed_tokens, strict=True
    ):
        end, replaces = start + tokens[name], name in resumed
        yield (
            name,
            start,
            end,
            blocks or (([],) if replaces else nothing),
            replaces,
            name in drafted,
        )


def _lora(lora: Any) -> Lora:
    """`lora`: vLLM's `LoRARequest`."""
    return Lora(
        id=int(lora.lora_int_id),
        name=str(lora.lora_name),
        path=str(lora.lora_path),
        is_readable=not getattr(lora, "tensorizer_config_dict", None),
        is_3d=bool(getattr(lora, "is_3d_lora_weight", False)),
    )


def _bytes(text: str) -> bytes:
    """UTF-8. Half a surrogate pair, which has none, passes as it is: it must not raise."""
    return text.encode("utf-8", "surrogatepass")
