"""`NeveConnector`: vLLM's hooks, each a few lines over `neve.engine`.

vLLM makes one object for the scheduler and one for every worker. They exchange only metadata: the
handshake's once, the step's in both directions.

A boundary: an exception in a hook is logged once and becomes a miss, never an engine error.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import torch
from vllm.config import get_current_vllm_config_or_none
from vllm.distributed.kv_events import KVCacheEvent
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorHandshakeMetadata,
    KVConnectorMetadata,
    KVConnectorRole,
    KVConnectorWorkerMetadata,
    SupportsHMA,
)

from neve import log_events
from neve.engine.groups import KvGroup, alignment_tokens, is_split
from neve.engine.guard import guarded, log_as, nothing
from neve.engine.options import Options
from neve.engine.scheduler import SchedulerSide
from neve.engine.sharding import RANK
from neve.engine.step import RearPlan, StepPlan, WorkerReport
from neve.engine.worker import WorkerSide
from neve.formats.parts import PartKind
from neve.vllm.compat import groups_of, names_media, reads_an_encoder
from neve.vllm.identity import READS_AN_ENCODER, kernel_names, why_unsupported
from neve.vllm.jumps import Jumps, why_not
from neve.vllm.metadata import NeveHandshake, NeveMetadata, NeveWorkerMetadata
from neve.vllm.metrics import NevePromMetrics, NeveStats
from neve.vllm.rank import make_worker, shards, this_engine
from neve.vllm.router_events import as_event
from neve.vllm.scheduler import VllmScheduling

if TYPE_CHECKING:
    from vllm.config import KVTransferConfig, VllmConfig
    from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorTransferResults
    from vllm.forward_context import ForwardContext
    from vllm.v1.attention.backend import AttentionBackend, AttentionMetadata
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.outputs import KVConnectorOutput
    from vllm.v1.request import Request


# What Neve has to know of several KV cache groups, vLLM says from 0.30 on: a request's blocks of
# each group in every step, and a way to say that a load of several groups failed.
_SUPPORTS_GROUPS: Final = hasattr(KVConnectorBase_V1, "get_transfer_results")
_BASES: Final = (KVConnectorBase_V1, SupportsHMA) if _SUPPORTS_GROUPS else (KVConnectorBase_V1,)


class NeveConnector(*_BASES):  # type: ignore[misc]  # vllm is untyped here
    """Refuses to start on a wrong configuration, and only then."""

    def __new__(
        cls, vllm_config: "VllmConfig", role: KVConnectorRole, kv_cache_config: "KVCacheConfig"
    ) -> "NeveConnector":
        if reads_an_encoder(vllm_config):
            # `get_required_kvcache_layout` took Neve out of the scheduler's process; a worker in a
            # process of its own has to agree. vLLM takes None for an engine without connector.
            return None  # type: ignore[return-value]
        # A connector without `SupportsHMA` must have exactly one KV cache group: not none either.
        has_kv = kv_cache_config is not None and kv_cache_config.kv_cache_groups
        without = not has_kv and not issubclass(cls, SupportsHMA)
        made: NeveConnector = super().__new__(_WithoutKv if without else cls)
        return made

    def __init__(
        self, vllm_config: "VllmConfig", role: KVConnectorRole, kv_cache_config: "KVCacheConfig"
    ) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        log_as("vllm")
        transfer = self._kv_transfer_config
        _demand_recompute(transfer)
        # Inside a `MultiConnector`, vLLM follows the policy of the outermost configuration.
        whole = get_current_vllm_config_or_none() if role is KVConnectorRole.WORKER else None
        if whole is not None and whole.kv_transfer_config is not None:
            _demand_recompute(whole.kv_transfer_config)
        options = Options.from_config(
            transfer.kv_connector_extra_config, engine_id=transfer.engine_id
        )
        self._options = options.of_replica(vllm_config.parallel_config.data_parallel_index)
        self._scheduler: VllmScheduling | None = None
        self._worker: WorkerSide[Any] | None = None
        # Another connector beside this one fills engine blocks as well.
        self._others_fill = (
            whole is not None
            and whole.kv_transfer_config is not None
            and whole.kv_transfer_config.kv_connector != transfer.kv_connector
        )
        # The one place of refusal: a refused engine gets no worker side (`_register`), so no
        # handshake, so no scheduler side, and every hook does nothing.
        self._unsupported = why_unsupported(
            vllm_config, kv_cache_config, self._options, supports_groups=_SUPPORTS_GROUPS
        )
        self._groups: list[KvGroup] = []
        if self._unsupported is None:
            longest = vllm_config.model_config.max_model_len
            self._groups = groups_of(kv_cache_config, longest) or []
        self._is_split = bool(self._groups) and is_split(self._groups)
        self._options = self._options.for_groups(self._groups)
        if role is KVConnectorRole.SCHEDULER:
            self._say_plan()

    def _say_plan(self) -> None:
        """Says whether Neve serves this engine and, of states, which are stored."""
        if self._unsupported:
            log_events.UNSUPPORTED.log(detail=self._unsupported)
        elif any(group.kind is PartKind.STATE for group in self._groups):
            cache = self._vllm_config.cache_config
            log_events.STATES_KEPT.log(
                chunk_tokens=alignment_tokens(self._groups),
                every_tokens=self._options.state_every_tokens,
                retention=getattr(cache, "prefix_cache_retention_interval", None),
                match_unit=getattr(cache, "prefix_match_unit", None),
            )

    @property
    def requires_kv_delivery(self) -> bool:
        return False  # A dropped save is a future miss, no more.

    # ---- worker side

    @property
    def prefer_cross_layer_blocks(self) -> bool:
        """Asked until 0.28. Such a tensor does not tell its head dimension: not for `canonical`."""
        return self._options.cross_layer_blocks and self._options.layout == RANK

    @classmethod
    def get_required_kvcache_layout(cls, vllm_config: "VllmConfig") -> str | None:
        """From 0.29 on: one block, all layers. A preference: vLLM warns if a kernel can't.

        The first hook that sees the model, in the scheduler's process, and so the only one that can
        save the start of an encoder-decoder model: vLLM's scheduler asserts that none comes with a
        connector. Such an engine loses its connector here.
        """
        if hasattr(KVConnectorBase_V1, "prefer_cross_layer_blocks"):
            return None  # until 0.28 this names the order of heads and tokens
        if reads_an_encoder(vllm_config):
            log_as("vllm")
            log_events.UNSUPPORTED.log(detail=READS_AN_ENCODER)
            vllm_config.kv_transfer_config = None
            return None
        extra = vllm_config.kv_transfer_config.kv_connector_extra_config
        return "BLHNC" if extra.get("cross_layer_blocks") else None

    def register_cross_layers_kv_cache(
        self, kv_cache: torch.Tensor, attn_backend: "type[AttentionBackend]"
    ) -> None:
        """Called instead of `register_kv_caches` if vLLM followed `prefer_cross_layer_blocks`."""
        self._register({"all": kv_cache}, {"all": attn_backend.get_name()})

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        self._register(kv_caches, kernel_names(self._vllm_config))

    @guarded(nothing)
    def _register(self, kv_caches: dict[str, torch.Tensor], kernels: dict[str, str]) -> None:
        if not self._unsupported:
            self._worker = make_worker(
                self._vllm_config,
                self._kv_cache_config,
                self._options,
                self._groups,
                kv_caches,
                kernels,
                others_fill=self._others_fill,
            )

    @classmethod
    def supports_sleep_mode(cls, kv_transfer_config: "KVTransferConfig") -> bool:
        return True

    @guarded(nothing)
    def unregister_kv_caches(self) -> None:
        """Called from 0.33 on, before sleep unmaps KV memory. In an engine of one process, loads
        and saves may still be under way."""
        if self._worker is not None:
            self._worker.suspend()

    @guarded(nothing)
    def restore_kv_caches(self) -> None:
        """Called from 0.33 on, after wake-up: the tensors are mapped at the same addresses."""
        if self._worker is not None:
            self._worker.resume()

    @guarded(nothing)
    def get_handshake_metadata(self) -> KVConnectorHandshakeMetadata | None:
        return NeveHandshake(self._worker.describe()) if self._worker is not None else None

    @guarded(nothing)
    def start_load_kv(self, forward_context: "ForwardContext", **kwargs: Any) -> None:
        if self._worker is not None:
            self._worker.start_loads(self._plan())

    def wait_for_layer_load(self, layer_name: str) -> None:
        """All loads are asynchronous: a request runs only after its load ended."""

    def save_kv_layer(
        self,
        layer_name: str,
        kv_layer: torch.Tensor,
        attn_metadata: "AttentionMetadata",
        **kwargs: Any,
    ) -> None:
        """Blocks are saved whole, in `wait_for_save`."""

    @guarded(nothing)
    def wait_for_save(self) -> None:
        if self._worker is not None:
            self._worker.end_step(self._plan())

    @guarded(lambda: (None, None))
    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        if self._worker is None:
            # The scheduler plans no loads until this rank has described itself.
            return None, None
        plan = self._plan()
        return self._worker.take_copied(plan) or None, self._worker.poll_loads(plan) or None

    def get_transfer_results(self, finished_req_ids: set[str]) -> "KVConnectorTransferResults":
        """Called from 0.30 on, in place of `get_finished`."""
        results = super().get_transfer_results(finished_req_ids)
        if self._worker is not None:
            results.failed_recving |= self._worker.take_failed_requests()
        return results

    def handle_preemptions(self, kv_connector_metadata: KVConnectorMetadata) -> None:
        """Called before every step, also when no block changes hands. (From 0.29 on
        `start_load_kv` is called behind the step's computation.)"""
        self._begin_step(kv_connector_metadata)
        if self._worker is not None and isinstance(kv_connector_metadata, NeveMetadata):
            self._worker.jump(kv_connector_metadata.plan)  # a failure must stop the engine

    @guarded(nothing)
    def _begin_step(self, metadata: KVConnectorMetadata) -> None:
        if self._worker is not None:
            self._worker.begin_step(metadata.plan)

    def get_block_ids_with_load_errors(self) -> set[int]:
        return self._worker.take_failed_blocks() if self._worker is not None else set()

    @guarded(nothing)
    def build_connector_worker_meta(self) -> KVConnectorWorkerMetadata | None:
        if self._worker is None:
            return None
        report = self._worker.report()
        if not self._announces:
            report.stored.clear()
        return NeveWorkerMetadata(report) if report else None

    @property
    def _announces(self) -> bool:
        events = self._vllm_config.kv_events_config
        return events is not None and bool(events.enable_kv_cache_events)

    def _plan(self) -> StepPlan:
        metadata = self._connector_metadata
        return metadata.plan if isinstance(metadata, NeveMetadata) else StepPlan()

    # ---- scheduler side

    def set_xfer_handshake_metadata(
        self, metadata: dict[int, KVConnectorHandshakeMetadata]
    ) -> None:
        self.set_xfer_handshake_metadata_pp_aware({(0, tp): m for tp, m in metadata.items()})

    @guarded(nothing)
    def set_xfer_handshake_metadata_pp_aware(
        self, metadata: dict[tuple[int, int], KVConnectorHandshakeMetadata]
    ) -> None:
        if self._scheduler is not None:
            return  # From 0.33 on it is called after wake-up too. A reset must not be forgotten.
        parallel = self._vllm_config.parallel_config
        ranks = [metadata[place] for place in sorted(metadata)]
        wanted = parallel.tensor_parallel_size * parallel.pipeline_parallel_size
        shakes = [shake for shake in ranks if isinstance(shake, NeveHandshake)]
        if len(shakes) != wanted:
            if self._unsupported:
                return  # logged at the start
            log_events.HANDSHAKE_INCOMPLETE.log(ranks=len(shakes), wanted=wanted)
            return
        side = SchedulerSide.connect(
            [shake.rank for shake in shakes],
            self._options,
            engine=this_engine(self._options, self._vllm_config),
            shards=shards(self._vllm_config, self._kv_cache_config, self._options),
            groups=self._groups,
            loads=self._kv_transfer_config.is_kv_consumer,
            saves=self._kv_transfer_config.is_kv_producer,
            announces=self._announces,
        )
        self._scheduler = VllmScheduling(
            side, names_media=names_media(self._vllm_config), is_split=self._is_split
        )
        self._prepare_jumps()

    def bind_kv_cache_manager(self, kv_cache_manager: Any) -> None:
        """Called from 0.30 on, before the handshake."""
        super().bind_kv_cache_manager(kv_cache_manager)
        self._prepare_jumps()

    @guarded(nothing)
    def _prepare_jumps(self) -> None:
        """For `load: both`, once the scheduler side and vLLM's manager of blocks are there."""
        manager = getattr(self, "_kv_cache_manager", None)
        if self._scheduler is None or manager is None or self._scheduler.jumps is not None:
            return
        rears = self._scheduler.side.rears
        if rears is None:
            return
        if detail := why_not(self._vllm_config, manager):
            log_events.UNSUPPORTED.log(detail=detail)
            return
        v2 = bool(getattr(self._vllm_config, "use_v2_model_runner", False))
        self._scheduler.jumps = Jumps(rears, manager, v2=v2)
        rears.can_jump = True

    @guarded(nothing)
    def on_new_request(self, request: "Request") -> None:
        if self._scheduler is not None:
            self._scheduler.begin(request)

    @guarded(lambda: (0, False))
    def get_num_new_matched_tokens(
        self, request: "Request", num_computed_tokens: int
    ) -> tuple[int | None, bool]:
        if self._scheduler is None:
            return 0, False
        tokens = self._scheduler.matched_tokens(request, num_computed_tokens)
        return tokens, bool(tokens)

    @guarded(nothing)
    def update_state_after_alloc(
        self, request: "Request", blocks: "KVCacheBlocks", num_external_tokens: int
    ) -> None:
        if self._scheduler is not None and num_external_tokens > 0:
            self._scheduler.plan_load(request, num_external_tokens, blocks.get_block_ids())

    def build_connector_meta(self, scheduler_output: "SchedulerOutput") -> KVConnectorMetadata:
        # Not guarded: what vLLM counts as computed must reach the workers, or stop the engine.
        jumps = self._scheduler.land(scheduler_output) if self._scheduler is not None else []
        made = self._build_meta(scheduler_output)
        if jumps:
            made.plan.rears = replace(made.plan.rears or RearPlan(), jumps=jumps)
        return made

    @guarded(NeveMetadata)
    def _build_meta(self, scheduler_output: "SchedulerOutput") -> NeveMetadata:
        if self._scheduler is None:
            return NeveMetadata()
        return NeveMetadata(self._scheduler.build_step(scheduler_output))

    @guarded(nothing)
    def update_connector_output(self, connector_output: "KVConnectorOutput") -> None:
        if self._scheduler is None:
            return
        metadata = connector_output.kv_connector_worker_meta
        report = metadata.report if isinstance(metadata, NeveWorkerMetadata) else WorkerReport()
        self._scheduler.note_results(report, connector_output)

    @guarded(lambda: (False, None))
    def request_finished(
        self, request: "Request", block_ids: Iterable[int]
    ) -> tuple[bool, dict[str, Any] | None]:
        if self._scheduler is None:
            return False, None
        return self._scheduler.side.end(request.request_id)

    def request_finished_all_groups(
        self, request: "Request", block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        """Called in place of `request_finished` on a connector that supports several groups."""
        return self.request_finished(request, ())

    @guarded(lambda: False)
    def reset_cache(self) -> bool:
        """The engine's weights or state may have changed."""
        if self._scheduler is not None:
            self._scheduler.side.reset()
        return True

    @guarded(tuple)
    def take_events(self) -> Iterable[KVCacheEvent]:
        """For routers. Hot and cold tier are one medium: this engine can load from both."""
        events = self._scheduler.side.take_events() if self._scheduler is not None else ()
        return [as_event(event, self._vllm_config.cache_config.block_size) for event in events]

    # ---- both

    @guarded(nothing)
    def get_kv_connector_stats(self) -> NeveStats | None:
        side = self._worker or (self._scheduler.side if self._scheduler is not None else None)
        data = side.take_telemetry() if side is not None else None
        return NeveStats(data) if data is not None else None

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> NeveStats:
        return NeveStats(data)

    @classmethod
    def build_prom_metrics(
        cls,
        vllm_config: "VllmConfig",
        metric_types: dict[type, type],
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> NevePromMetrics:
        return NevePromMetrics(vllm_config, metric_types, labelnames, per_engine_labelvalues)

    @guarded(nothing)
    def shutdown(self) -> None:
        if self._worker is not None:
            self._worker.close()
            self._worker = None
        if self._scheduler is not None:
            self._scheduler.side.close()
            self._scheduler = None


class _WithoutKv(NeveConnector, SupportsHMA):  # type: ignore[misc]  # vllm is untyped here
    """For a model that keeps no KV, before 0.30."""


def _demand_recompute(transfer: "KVTransferConfig") -> None:
    if transfer.kv_load_failure_policy != "recompute":
        raise ValueError(
            f"{transfer.kv_connector} needs kv_load_failure_policy 'recompute', got "
            f"'{transfer.kv_load_failure_policy}': a block that can't be loaded must be "
            f'computed, not fail the request. Add "kv_load_failure_policy": "recompute" to '
            f'--kv-transfer-config, beside "kv_connector": "{transfer.kv_connector}".'
        )
