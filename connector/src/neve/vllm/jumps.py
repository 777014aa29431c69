"""`load: both` in vLLM: a running request jumps over the rear that workers hold.

vLLM has no call for it. A request's `num_computed_tokens` is set when a step's plan is built, so
that the next step allocates blocks up to the rear's end and goes on behind it; workers copy the
rear in before they compute that step (`neve.engine.rears`). Private names of vLLM are used, so
`why_not` checks them first; reads vLLM's objects by attribute, imports `NewRequestData` only.

Traps (each was seen in an engine):

- Model Runner V2 keeps its own count of computed tokens: the request is sent to it as a new one.
- `allocate_slots` hashes the rear in the step that copies it. If a request of higher priority
  preempts this one in the same step, the prefix cache would serve blocks that nobody wrote: their
  hashes are evicted.
- A failed copy can't be taken back, so it stops the engine (`WorkerSide.jump`).
"""

from typing import Any

from neve.engine.rears import Rears
from neve.engine.step import LoadPlan, RearPlan

_MANAGER = ("get_block_ids", "evict_blocks", "block_pool")


def why_not(vllm_config: Any, manager: Any) -> str | None:
    """Why requests can't jump in this engine, in words. `manager`: its `KVCacheManager`."""
    if any(not hasattr(manager, name) for name in _MANAGER):
        return "load 'both' needs vLLM's manager of KV blocks, loads as 'auto'"
    parallel = vllm_config.parallel_config
    if parallel.pipeline_parallel_size > 1 or parallel.decode_context_parallel_size > 1:
        return "load 'both' is not made for pipeline or context parallelism, loads as 'auto'"
    if getattr(vllm_config.model_config, "uses_mrope", False):
        return "load 'both' is not made for positions of images, loads as 'auto'"
    if vllm_config.speculative_config is not None:
        return "load 'both' is not made for speculative decoding, loads as 'auto'"
    return None


class Jumps:
    """Belongs to the scheduler's thread. `manager`: vLLM's `KVCacheManager`."""

    def __init__(self, rears: Rears, manager: Any, *, v2: bool) -> None:
        """`v2`: workers run Model Runner V2."""
        self._rears = rears
        self._manager = manager
        self._v2 = v2
        self._requests: dict[str, Any] = {}

    def watch(self, request: Any) -> None:
        """A rear was begun for this request."""
        if request.request_id in self._rears:
            self._requests[request.request_id] = request

    def land(self, output: Any) -> list[LoadPlan]:
        """The copies of this step: of requests that jumped in an earlier one and go on now."""
        found = []
        preempted = output.preempted_req_ids or ()
        for request_id in self._rears.jumping():
            if request_id in preempted:
                self._forget_hashes(request_id)
                self._rears.drop(request_id)
            elif request_id in output.num_scheduled_tokens:
                request = self._requests[request_id]
                (blocks,) = self._manager.get_block_ids(request_id)
                found.append(self._rears.land(request_id, blocks))
                if self._v2:
                    self._send_as_new(output, request)
        return found

    def meet(self, output: Any) -> RearPlan | None:
        """The rears of this step, after its plan is built: what goes on, and who jumps."""
        self._requests = {n: each for n, each in self._requests.items() if n in self._rears}
        for request_id in output.preempted_req_ids or ():
            self._rears.drop(request_id)
        computed = {
            name: request.num_computed_tokens + output.num_scheduled_tokens[name]
            for name, request in self._requests.items()
            if name in output.num_scheduled_tokens
        }
        plan = self._rears.plan(computed)
        for name, tokens in computed.items():
            request = self._requests[name]
            if request.num_output_tokens or request.status.name != "RUNNING":
                continue
            end = self._rears.jump(name, tokens)
            if end is not None:  # vLLM adds the step's own tokens behind this call
                request.num_computed_tokens = end - output.num_scheduled_tokens[name]
                _count_loaded(request, end - tokens)
        return plan

    def _forget_hashes(self, request_id: str) -> None:
        request, size = self._requests[request_id], self._rears.engine_block_tokens
        start, end = self._rears.rear_tokens(request_id)
        for number in range(start // size, min(end // size, len(request.block_hashes))):
            cached = self._manager.block_pool.get_cached_block(request.block_hashes[number], [0])
            for block in cached or ():
                self._manager.evict_blocks({block.block_id})

    def _send_as_new(self, output: Any, request: Any) -> None:
        """To Model Runner V2, which then takes its row anew, with this count and these blocks."""
        from vllm.v1.core.sched.output import NewRequestData

        name, cached = request.request_id, output.scheduled_cached_reqs
        if name not in cached.req_ids:
            return
        at = cached.req_ids.index(name)
        for rows in (
            *(cached.req_ids, cached.new_token_ids, cached.new_block_ids),
            *(cached.num_computed_tokens, cached.num_output_tokens),
        ):
            if len(rows) > at:
                del rows[at]
        cached.all_token_ids.pop(name, None)
        blocks = self._manager.get_block_ids(name)
        tokens = request._all_token_ids
        output.scheduled_new_reqs.append(NewRequestData.from_request(request, blocks, tokens))


def _count_loaded(request: Any, tokens: int) -> None:
    """In vLLM's own counters: these tokens came from Neve and are not computed."""
    stats = request.prefill_stats
    if stats is not None:
        stats.num_external_cached_tokens += tokens
        stats.num_cached_tokens += tokens
        stats.num_computed_tokens -= tokens
