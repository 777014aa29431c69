"""The worker side of one vLLM rank, made of the KV tensors that vLLM registers."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from vllm.distributed.parallel_state import get_pp_group, get_tp_group
from vllm.platforms import current_platform

import vllm
from neve import log_events
from neve.engine.device.tensors import KvTensors
from neve.engine.groups import KvGroup, alignment_tokens, is_split
from neve.engine.link import Engine
from neve.engine.options import Options
from neve.engine.sharding import shards_of, share_of
from neve.engine.worker import WorkerSide
from neve.errors import Misuse
from neve.formats.block import MAX_PAYLOAD_BYTES
from neve.formats.parts import PartKind
from neve.formats.space import EXACT
from neve.vllm.built import BuiltModel
from neve.vllm.compat import describe_states, holds_latent
from neve.vllm.identity import identify

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig


def this_engine(options: Options, config: "VllmConfig") -> Engine:
    """Asks for the kind of device only in a family, where KV is equal on one kind alone."""
    device = current_platform.get_device_name() if options.family is not None else ""
    names = config.model_config.served_model_name  # of several, the server takes each
    parallel = config.parallel_config
    return Engine(
        "vllm",
        vllm.__version__,
        device,
        model=names if isinstance(names, str) else names[0],
        gpus=parallel.tensor_parallel_size * parallel.pipeline_parallel_size,
    )


def shards(config: "VllmConfig", kv_cache_config: "KVCacheConfig", options: Options) -> int:
    """Columns of one space: see `neve.engine.sharding`."""
    return shards_of(
        options.layout,
        kv_heads=int(config.model_config.get_total_num_kv_heads()),
        latent=holds_latent(kv_cache_config),
    )


def make_worker(
    config: "VllmConfig",
    kv_cache_config: "KVCacheConfig",
    options: Options,
    groups: Sequence[KvGroup],
    kv_caches: dict[str, torch.Tensor],
    kernels: dict[str, str],
    *,
    others_fill: bool = False,
) -> WorkerSide[Any] | None:
    """`kernels`: by layer, the kernel that writes its KV. `others_fill`: see `WorkerSide`. Logs and
    returns None if the weights can't be named, or a part of a chunk is larger than a block may be.
    Raises `Misuse` for tensors of an unknown layout."""
    tp_rank, pp_rank = get_tp_group().rank_in_group, get_pp_group().rank_in_group
    latent = holds_latent(kv_cache_config)
    share = share_of(
        options.layout,
        tp_rank=tp_rank,
        tp_size=config.parallel_config.tensor_parallel_size,
        pp_rank=pp_rank,
        kv_heads=int(config.model_config.get_total_num_kv_heads()),
        latent=latent,
    )
    by_head = shards(config, kv_cache_config, options) > 1
    kvs = [
        KvTensors(
            {name: kv_caches[name] for name in group.layers} if is_split(groups) else kv_caches,
            num_blocks=kv_cache_config.num_blocks,
            block_tokens=1 if group.kind is PartKind.STATE else group.block_tokens,
            kernels=kernels | describe_states(kv_cache_config),
            heads=len(share.columns) if by_head else None,
            cache_dtype=str(config.cache_config.cache_dtype),
            sharers=len(groups),
            one_kernel=options.one_kernel,
            codec=_codec_of(group, options),
            vector=config.model_config.get_head_size(),
        )
        for group in groups
    ]
    layers = config.compilation_config.static_forward_context
    built = BuiltModel.holding(layers.values())
    try:
        _require_small(groups, kvs)
        identity = identify(
            config,
            kvs,
            groups,
            options,
            built,
            tp_rank=0 if latent else tp_rank,
            pp_rank=pp_rank,
        )
    except Misuse as misuse:
        log_events.UNIDENTIFIED.log(detail=misuse)
        return None
    return WorkerSide(
        kvs,
        identity,
        options,
        engine=this_engine(options, config)._replace(selective_weights=built.selective_weights()),
        share=share,
        step_tokens=config.scheduler_config.max_num_batched_tokens,
        groups=groups,
        weights=built.weights,
        selective_weights=built.selective_weights,
        others_fill=others_fill,
    )


def _codec_of(group: KvGroup, options: Options) -> str:
    """Raises `Misuse` for states, whose errors would add up with every token."""
    if group.kind is PartKind.STATE and options.codec != EXACT:
        raise Misuse("states of linear attention are stored exactly: leave it out", field="codec")
    return options.codec


def _require_small(groups: Sequence[KvGroup], kvs: Sequence[KvTensors]) -> None:
    """Raises `Misuse` if a part of the shortest chunk is larger than a block may be."""
    tokens = alignment_tokens(groups)
    for group, kv in zip(groups, kvs, strict=True):
        part_bytes = group.stored_blocks(tokens) * kv.block_bytes
        if is_split(groups) and part_bytes > MAX_PAYLOAD_BYTES:
            raise Misuse(
                f"KV cache group {group.number} ({group}) has {part_bytes} bytes for {tokens} "
                f"tokens, the least that all groups have whole engine blocks of; at most "
                f"{MAX_PAYLOAD_BYTES} are stored: set a smaller --block-size, or more TP ranks",
                field="block_size",
            )
