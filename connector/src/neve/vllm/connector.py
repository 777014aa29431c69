"""`NeveConnector`: vLLM's hooks, each a few lines over the planner and the transfers.

vLLM makes one object for the scheduler and one for every worker. They share nothing but the step's
metadata; the worker's identity reaches the scheduler through the handshake metadata.

A boundary: whatever goes wrong in a hook is logged once and becomes a miss, never an engine error.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

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
from vllm.distributed.parallel_state import get_pp_group, get_tp_group

import vllm
from neve import log_events
from neve.engine.canary import Verdict
from neve.engine.device.tensors import KvTensors
from neve.engine.guard import guarded, log_as_vllm, nothing
from neve.engine.options import Options
from neve.engine.sharding import RANK, shards_of, share_of
from neve.engine.step import StepPlan
from neve.engine.worker import WorkerSide
from neve.errors import Misuse
from neve.formats.space import SpaceIdentity
from neve.vllm.built import BuiltModel
from neve.vllm.compat import holds_latent, names_media
from neve.vllm.identity import identify, kernel_names, why_unsupported
from neve.vllm.metrics import NevePromMetrics, NeveStats
from neve.vllm.router_events import as_event
from neve.vllm.scheduler import SchedulerSide

if TYPE_CHECKING:
    from vllm.config import KVTransferConfig, VllmConfig
    from vllm.forward_context import ForwardContext
    from vllm.v1.attention.backend import AttentionBackend, AttentionMetadata
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.outputs import KVConnectorOutput
    from vllm.v1.request import Request


@dataclass
class NeveMetadata(KVConnectorMetadata):  # type: ignore[misc]  # vllm is untyped here
    """Scheduler → workers, every step."""

    plan: StepPlan = field(default_factory=StepPlan)


@dataclass
class NeveWorkerMetadata(KVConnectorWorkerMetadata):  # type: ignore[misc]  # vllm is untyped here
    """Workers → scheduler: first ids of chunks that some rank did not store, or did (only for
    routers), (number, seconds) of the measured steps that are over, each rank's gauges, what came
    of blocks that were compared (see `canary`), and of weights after a reset, by rank."""

    unsaved: list[bytes]
    timed: list[tuple[int, float]] = field(default_factory=list)
    stored: list[bytes] = field(default_factory=list)
    gauges: dict[str, dict[str, float]] = field(default_factory=dict)
    compared: list[tuple[bytes, Verdict]] = field(default_factory=list)
    weights: dict[str, tuple[int, bytes]] = field(default_factory=dict)

    def aggregate(self, other: KVConnectorWorkerMetadata) -> "NeveWorkerMetadata":
        assert isinstance(other, NeveWorkerMetadata)
        return NeveWorkerMetadata(
            self.unsaved + other.unsaved,
            self.timed + other.timed,
            self.stored + other.stored,
            self.gauges | other.gauges,
            self.compared + other.compared,
            self.weights | other.weights,
        )


@dataclass
class NeveHandshake(KVConnectorHandshakeMetadata):  # type: ignore[misc]  # vllm is untyped here
    """Worker → scheduler, once: whose KV this rank holds, in which process, whether it copies
    behind the step, and how many ranks hold the same KV."""

    identity: dict[str, Any]
    pid: int
    defers: bool
    turns: int


class NeveConnector(KVConnectorBase_V1):  # type: ignore[misc]  # vllm is untyped here
    """See the module. Refuses to start on a wrong configuration, and only then."""

    def __new__(
        cls, vllm_config: "VllmConfig", role: KVConnectorRole, kv_cache_config: "KVCacheConfig"
    ) -> "NeveConnector":
        # vLLM takes a connector that does not support several groups to have one: not none.
        without = not kv_cache_config.kv_cache_groups and not issubclass(cls, SupportsHMA)
        made: NeveConnector = super().__new__(_WithoutKv if without else cls)
        return made

    def __init__(
        self, vllm_config: "VllmConfig", role: KVConnectorRole, kv_cache_config: "KVCacheConfig"
    ) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        log_as_vllm()
        transfer = self._kv_transfer_config
        _demand_recompute(transfer)
        # Inside of a `MultiConnector` the engine goes by what stands at the top.
        whole = get_current_vllm_config_or_none() if role is KVConnectorRole.WORKER else None
        if whole is not None and whole.kv_transfer_config is not None:
            _demand_recompute(whole.kv_transfer_config)
        options = Options.from_config(
            transfer.kv_connector_extra_config, engine_id=transfer.engine_id
        )
        self._options = options.of_replica(vllm_config.parallel_config.data_parallel_index)
        self._scheduler: SchedulerSide | None = None
        self._worker: WorkerSide[Any] | None = None
        self._unsupported = why_unsupported(vllm_config, kv_cache_config)
        if self._unsupported and role is KVConnectorRole.SCHEDULER:
            log_events.UNSUPPORTED.log(detail=self._unsupported)

    @property
    def requires_kv_delivery(self) -> bool:
        return False  # A dropped save is a future miss, no more.

    # ---- worker side

    @property
    def prefer_cross_layer_blocks(self) -> bool:
        """Asked until 0.28. The tensor then comes without its heads' place: not for `canonical`."""
        return self._options.cross_layer_blocks and self._options.layout == RANK

    @classmethod
    def get_required_kvcache_layout(cls, vllm_config: "VllmConfig") -> str | None:
        """From 0.29 on: one block, all layers. A wish: vLLM warns where a kernel can't."""
        if hasattr(KVConnectorBase_V1, "prefer_cross_layer_blocks"):
            return None  # there it means the order of heads and tokens
        extra = vllm_config.kv_transfer_config.kv_connector_extra_config
        return "BLHNC" if extra.get("cross_layer_blocks") else None

    def register_cross_layers_kv_cache(
        self, kv_cache: torch.Tensor, attn_backend: "type[AttentionBackend]"
    ) -> None:
        """In place of `register_kv_caches` where `prefer_cross_layer_blocks` was heard."""
        self._register({"all": kv_cache}, {"all": attn_backend.get_name()})

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        self._register(kv_caches, kernel_names(self._vllm_config))

    @guarded(nothing)
    def _register(self, kv_caches: dict[str, torch.Tensor], kernels: dict[str, str]) -> None:
        if self._unsupported:
            return
        tp_rank, pp_rank = get_tp_group().rank_in_group, get_pp_group().rank_in_group
        latent = holds_latent(self._kv_cache_config)
        share = share_of(
            self._options.layout,
            tp_rank=tp_rank,
            tp_size=self._vllm_config.parallel_config.tensor_parallel_size,
            pp_rank=pp_rank,
            kv_heads=self._kv_heads,
            latent=latent,
        )
        tensors = KvTensors(
            kv_caches,
            num_blocks=self._kv_cache_config.num_blocks,
            block_tokens=self._vllm_config.cache_config.block_size,
            kernels=kernels,
            heads=len(share.columns) if self._shards > 1 else None,
            cache_dtype=str(self._vllm_config.cache_config.cache_dtype),
        )
        layers = self._vllm_config.compilation_config.static_forward_context
        built = BuiltModel.holding(layers.values())
        try:
            identity = identify(
                self._vllm_config,
                tensors,
                self._options,
                built,
                tp_rank=0 if latent else tp_rank,
                pp_rank=pp_rank,
            )
        except Misuse as misuse:
            log_events.UNIDENTIFIED.log(detail=misuse)
            return
        self._worker = WorkerSide(
            tensors,
            identity,
            self._options,
            engine=vllm.__version__,
            share=share,
            step_tokens=self._vllm_config.scheduler_config.max_num_batched_tokens,
            weights=built.weights,
        )

    @guarded(nothing)
    def get_handshake_metadata(self) -> KVConnectorHandshakeMetadata | None:
        if self._worker is None:
            return None
        worker = self._worker
        return NeveHandshake(
            worker.identity.as_dict(), os.getpid(), worker.defers, worker.share.turns
        )

    @guarded(nothing)
    def start_load_kv(self, forward_context: "ForwardContext", **kwargs: Any) -> None:
        if self._worker is not None:
            self._worker.start_loads(self._plan())
            self._worker.weigh(self._plan())

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
            self._worker.save(self._plan())

    @guarded(lambda: (None, None))
    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        if self._worker is None:
            # The scheduler plans no loads until this rank has introduced itself.
            return None, None
        plan = self._plan()
        return self._worker.take_copied(plan) or None, self._worker.poll_loads(plan) or None

    @guarded(nothing)
    def handle_preemptions(self, kv_connector_metadata: KVConnectorMetadata) -> None:
        """Called before every step, also when no block changes hands. (`start_load_kv` is called
        behind what the step computes, from 0.29 on.)"""
        if self._worker is None:
            return
        if kv_connector_metadata.plan.fences:
            self._worker.fence()
        self._worker.begin_step(kv_connector_metadata.plan)

    def get_block_ids_with_load_errors(self) -> set[int]:
        return self._worker.take_failed_blocks() if self._worker is not None else set()

    @guarded(nothing)
    def build_connector_worker_meta(self) -> KVConnectorWorkerMetadata | None:
        if self._worker is None:
            return None
        unsaved, stored = self._worker.take_unsaved(), self._worker.take_stored()
        told = NeveWorkerMetadata(
            unsaved,
            timed=self._worker.take_timed(),
            stored=stored if self._announces else [],
            gauges=self._worker.take_gauges(),
            compared=self._worker.take_compared(),
            weights=self._worker.take_weights(),
        )
        return told if any(vars(told).values()) else None

    @property
    def _announces(self) -> bool:
        events = self._vllm_config.kv_events_config
        return events is not None and bool(events.enable_kv_cache_events)

    @property
    def _kv_heads(self) -> int:
        return int(self._vllm_config.model_config.get_total_num_kv_heads())

    @property
    def _shards(self) -> int:
        return shards_of(
            self._options.layout,
            kv_heads=self._kv_heads,
            latent=holds_latent(self._kv_cache_config),
        )

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
        parallel = self._vllm_config.parallel_config
        ranks = [metadata[place] for place in sorted(metadata)]
        wanted = parallel.tensor_parallel_size * parallel.pipeline_parallel_size
        shakes = [shake for shake in ranks if isinstance(shake, NeveHandshake)]
        if len(shakes) != wanted:
            if self._unsupported:
                return  # which was said
            log_events.HANDSHAKE_INCOMPLETE.log(ranks=len(shakes), wanted=wanted)
            return
        identities = [SpaceIdentity.from_dict(shake.identity) for shake in shakes]
        self._scheduler = SchedulerSide(
            list(dict.fromkeys(identities)),  # ranks of one space share one
            self._options,
            engine=vllm.__version__,
            same_process=all(shake.pid == os.getpid() for shake in shakes),
            loads=self._kv_transfer_config.is_kv_consumer,
            saves=self._kv_transfer_config.is_kv_producer,
            holds=any(shake.defers for shake in shakes),
            names_media=names_media(self._vllm_config),
            shards=self._shards,
            announces_of=len(shakes) // shakes[0].turns if self._announces else 0,
            ranks=len(shakes),
            parts=len(shakes) // shakes[0].turns,
        )

    @guarded(nothing)
    def on_new_request(self, request: "Request") -> None:
        if self._scheduler is not None:
            self._scheduler.track(request)

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
            (engine_blocks,) = blocks.get_block_ids()
            self._scheduler.plan_load(request.request_id, num_external_tokens, engine_blocks)

    @guarded(NeveMetadata)
    def build_connector_meta(self, scheduler_output: "SchedulerOutput") -> KVConnectorMetadata:
        if self._scheduler is None:
            return NeveMetadata()
        return NeveMetadata(self._scheduler.build_step(scheduler_output))

    @guarded(nothing)
    def update_connector_output(self, connector_output: "KVConnectorOutput") -> None:
        if self._scheduler is None:
            return
        worker = connector_output.kv_connector_worker_meta
        told = worker if isinstance(worker, NeveWorkerMetadata) else NeveWorkerMetadata([])
        self._scheduler.note_results(
            failed_blocks=connector_output.invalid_block_ids or (),
            loaded=connector_output.finished_recving or (),
            timed=told.timed,
        )
        self._scheduler.note_saves(unsaved=told.unsaved, stored=told.stored)
        self._scheduler.note_gauges(told.gauges)
        self._scheduler.note_compared(told.compared)
        self._scheduler.note_weights(told.weights)

    @guarded(lambda: (False, None))
    def request_finished(
        self, request: "Request", block_ids: Iterable[int]
    ) -> tuple[bool, dict[str, Any] | None]:
        if self._scheduler is None:
            return False, None
        return self._scheduler.end(request)

    @guarded(lambda: False)
    def reset_cache(self) -> bool:
        """The engine's weights or state changed: nothing known so far may be used again."""
        if self._scheduler is not None:
            self._scheduler.reset()
        return True

    @guarded(tuple)
    def take_events(self) -> Iterable[KVCacheEvent]:
        """For routers. Neve's hot and cold tier are one medium: both can be loaded from here."""
        news = self._scheduler.take_news() if self._scheduler is not None else ()
        return [as_event(each, self._vllm_config.cache_config.block_size) for each in news]

    # ---- both

    @guarded(nothing)
    def get_kv_connector_stats(self) -> NeveStats | None:
        side = self._worker or self._scheduler
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
            self._scheduler.close()
            self._scheduler = None


class _WithoutKv(NeveConnector, SupportsHMA):  # type: ignore[misc]  # vllm is untyped here
    """For a model that keeps no KV."""

    def request_finished_all_groups(
        self, request: "Request", block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        return False, None


def _demand_recompute(transfer: "KVTransferConfig") -> None:
    if transfer.kv_load_failure_policy != "recompute":
        raise ValueError(
            f"{transfer.kv_connector} needs kv_load_failure_policy 'recompute', got "
            f"'{transfer.kv_load_failure_policy}': a block that can't be loaded must be "
            f'computed, not fail the request. Add "kv_load_failure_policy": "recompute" to '
            f'--kv-transfer-config, beside "kv_connector": "{transfer.kv_connector}".'
        )
