"""`NeveTier`: Neve under the DRAM tier of vLLM's own `OffloadingConnector`.

vLLM copies between the GPU and its pinned DRAM tier, and decides which chunks stay there. Chunks
that enter the DRAM tier are also stored in Neve; chunks that it misses are read from Neve into it.
All in the scheduler's process, from memory that all ranks share.

A boundary: an exception in a hook is logged once and becomes a miss, never an engine error.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vllm.platforms import current_platform
from vllm.v1.kv_offload.base import LookupResult, RequestOffloadingContext
from vllm.v1.kv_offload.tiering.base import JobResult, SecondaryTierManager

import vllm
from neve import log_events
from neve.engine.guard import guarded, log_as, nothing
from neve.engine.link import BOOT_WAIT_S, Engine, Link
from neve.engine.options import LEAST_SAVE_BUDGET_BYTES, Options
from neve.engine.tier_store import TierStore
from neve.errors import Misuse
from neve.vllm.compat import job_result, job_rows
from neve.vllm.tier_identity import chunk_tokens, identify_tier

if TYPE_CHECKING:
    from vllm.v1.kv_offload.base import OffloadingSpec, OffloadKey, ReqContext, ScheduleEndContext

# A SHA-256 and the number of the KV cache group. Shorter hashes (`--prefix-caching-hash-algo
# xxhash`) are not collision resistant: equal keys would not prove equal tokens.
_KEY_BYTES = 36


class NeveTier(SecondaryTierManager):  # type: ignore[misc]  # vllm is untyped here
    """Refuses to start on a wrong configuration, and only then."""

    def __init__(
        self,
        offloading_spec: "OffloadingSpec",
        primary_kv_view: memoryview,
        tier_type: str,
        backpressure_detector: Any = None,
        **options: Any,
    ) -> None:
        more = {}
        if backpressure_detector is not None:  # which releases before 0.31 don't know
            more["backpressure_detector"] = backpressure_detector
        super().__init__(offloading_spec, primary_kv_view, tier_type, **more)
        log_as("vllm")
        config = offloading_spec.config
        assert primary_kv_view.strides is not None
        row_bytes = primary_kv_view.strides[0]
        self._tokens = chunk_tokens(config)
        if options.get("family") is not None:
            raise Misuse("NeveTier can't prove its KV: use NeveConnector", field="family")
        given = Options.from_config(options).of_replica(config.parallel.data_parallel_index)
        settings = replace(
            given,
            max_chunk_tokens=self._tokens,  # one row is one block
            save_budget_bytes=given.save_budget_bytes or LEAST_SAVE_BUDGET_BYTES,
        )
        engine, device = vllm.__version__, current_platform.get_device_name()
        identity = identify_tier(config, row_bytes, settings, engine=engine, device=device)
        self._link = Link.acquire(settings, identity, engine=Engine("vllm", engine))
        self._link.wait_first_attempt(BOOT_WAIT_S)
        self._store = TierStore(
            lambda: self._link.client,
            primary_kv_view.cast("B"),
            row_bytes,
            match_deadline_s=settings.match_deadline_s,
            load_deadline_s=settings.load_deadline_s,
        )

    @guarded(RequestOffloadingContext)
    def on_new_request(self, req_context: "ReqContext") -> RequestOffloadingContext:
        self._store.begin(req_context.req_id)
        return RequestOffloadingContext()

    @guarded(lambda: LookupResult.MISS)
    def lookup(self, key: "OffloadKey", req_context: "ReqContext") -> LookupResult:
        if len(key) < _KEY_BYTES:
            return LookupResult.MISS
        return _LOOKUP[self._store.find(req_context.req_id, key)]

    @guarded(nothing)
    def submit_load(self, job_metadata: Any) -> None:
        self._store.load(
            job_metadata.job_id,
            job_metadata.req_context.req_id,
            list(job_metadata.keys),
            job_rows(job_metadata),
        )

    @guarded(nothing)
    def submit_store(self, job_metadata: Any) -> None:
        pairs = zip(job_metadata.keys, job_rows(job_metadata), strict=True)
        good = [(key, row) for key, row in pairs if len(key) >= _KEY_BYTES]
        keys, rows = [key for key, _ in good], [row for _, row in good]
        request_id = job_metadata.req_context.req_id
        self._store.store(job_metadata.job_id, request_id, keys, rows, self._tokens)

    @guarded(list)
    def get_finished_jobs(self) -> Iterable[JobResult]:
        return [
            job_result(
                JobResult,
                job_id=job.number,
                success=len(job.good) == len(job.keys),
                successful_keys=job.good or None,
                transfer_time=job.took_s,
                transfer_bytes=job.size_bytes,
            )
            for job in self._store.finished()
        ]

    @guarded(nothing)
    def on_schedule_end(self, context: "ScheduleEndContext") -> None:
        self._store.end_step()

    @guarded(nothing)
    def on_request_finished(self, req_context: "ReqContext") -> None:
        self._store.forget(req_context.req_id)

    def drain_jobs(self) -> None:
        """vLLM calls this when its cache is reset, as after weights were changed in place."""
        self._store.reset()
        log_events.RESET_ALONE.log()

    @guarded(nothing)
    def shutdown(self) -> None:
        self._store.close()
        self._link.release()


_LOOKUP = {True: LookupResult.HIT, False: LookupResult.MISS, None: LookupResult.RETRY}
