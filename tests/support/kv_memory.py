"""What vLLM's KV cache groups hold and need: of a running engine, and of a model that is not there.

    python kv_memory.py < shapes.json

Run by the vLLM interpreter; needs no model and no GPU. Reads a list of shapes (`Shape` as JSON),
answers with a list of `describe`'s results. All figures are vLLM's own arithmetic.
"""

import json
import sys
from types import SimpleNamespace
from typing import Any


def describe(config: Any, kv: Any) -> dict[str, Any]:
    """`config`: vLLM's configuration, `kv`: its `KVCacheConfig`.

    Of each group `bytes`: what one block really holds, in all its layers; `request_blocks`: those
    that the longest request needs. `concurrency`: requests of that length that fit.
    """
    from vllm.v1.core.kv_cache_utils import get_max_concurrency_for_kv_cache_config

    from neve.vllm.compat import layer_specs

    groups = []
    for group in kv.kv_cache_groups:
        spec, layers = group.kv_cache_spec, len(group.layer_names)
        each = list(layer_specs(group))
        sizes = [_block_bytes(one) for one in each]
        needed = -(-spec.max_memory_usage_bytes(config) // spec.page_size_bytes)
        groups.append(
            {
                "kind": type(each[0]).__name__,
                "window": getattr(each[0], "sliding_window", None)
                or getattr(each[0], "attention_chunk_size", None),
                "layers": layers,
                "block_tokens": spec.block_size,
                "bytes": sum(sizes) if len(sizes) > 1 else layers * sizes[0],
                "request_blocks": needed,
                "dtypes": [str(dtype).removeprefix("torch.") for dtype in _dtypes(each[0])],
            }
        )
    return {
        "groups": groups,
        "blocks": kv.num_blocks,
        "longest": config.model_config.max_model_len,
        "concurrency": get_max_concurrency_for_kv_cache_config(config, kv) if groups else None,
    }


def _dtypes(spec: Any) -> tuple[Any, ...]:
    """Of a state's parts: of the convolution, of the recurrence."""
    return tuple(getattr(spec, "dtypes", ()))


def _block_bytes(spec: Any) -> int:
    """Of one layer, without padding."""
    for name in ("unpadded_page_size_bytes", "real_page_size_bytes", "page_size_bytes"):
        if hasattr(spec, name):
            return int(getattr(spec, name))
    raise AssertionError(spec)


def of_shape(shape: dict[str, Any]) -> dict[str, Any]:
    """`describe` for a model that is not there.

    `layers`: each layer's kind (full, window, state); `heads`, `head_dim` of KV; `window`;
    `state`: (key heads, value heads, key dim, value dim, convolution) of gated delta nets;
    `longest` tokens; `memory_bytes` for KV; `hybrid`: whether the hybrid KV cache manager is on.
    Elements have two bytes. Raises what vLLM raises for a shape that it can't manage so.
    """
    import torch
    from vllm.config import VllmConfig
    from vllm.v1.core.kv_cache_utils import get_kv_cache_config_from_groups, get_kv_cache_groups
    from vllm.v1.core.single_type_kv_cache_manager import register_all_kvcache_specs
    from vllm.v1.kv_cache_interface import FullAttentionSpec, MambaSpec, SlidingWindowSpec

    config = VllmConfig()
    config.model_config = SimpleNamespace(max_model_len=shape["longest"])
    config.cache_config.kv_cache_layout = "LBNHC"
    config.cache_config.mamba_cache_mode = "align"
    config.scheduler_config.disable_hybrid_kv_cache_manager = not shape["hybrid"]
    register_all_kvcache_specs(config)
    attention = {
        "num_kv_heads": shape["heads"],
        "head_size": shape["head_dim"],
        "dtype": torch.bfloat16,
        "block_size": 16,
    }
    state: dict[str, Any] = {}
    if "state" in shape:
        from vllm.model_executor.layers.mamba.mamba_utils import MambaStateShapeCalculator

        key_heads, value_heads, key_dim, value_dim, convolution = shape["state"]
        shapes = MambaStateShapeCalculator.gated_delta_net_state_shape(
            1, key_heads, value_heads, key_dim, value_dim, convolution
        )
        dtypes = (torch.bfloat16, torch.bfloat16)
        real = MambaSpec(block_size=16, shapes=shapes, dtypes=dtypes).page_size_bytes
        token = FullAttentionSpec(**attention).page_size_bytes // 16
        # As vLLM does: attention's block grows until its page holds a state.
        attention["block_size"] = -(-real // (16 * token)) * 16
        state = {
            "block_size": attention["block_size"],
            "shapes": shapes,
            "dtypes": dtypes,
            "page_size_padded": attention["block_size"] * token,
            "mamba_cache_mode": "align",
        }
    specs: dict[str, Any] = {}
    for number, kind in enumerate(shape["layers"]):
        if kind == "full":
            specs[f"layer {number}"] = FullAttentionSpec(**attention)
        elif kind == "window":
            specs[f"layer {number}"] = SlidingWindowSpec(
                **attention, sliding_window=shape["window"]
            )
        else:
            specs[f"layer {number}"] = MambaSpec(**state)
    groups = get_kv_cache_groups(config, specs)
    kv = get_kv_cache_config_from_groups(config, groups, shape["memory_bytes"])
    return describe(config, kv)


def main() -> None:
    results = []
    for shape in json.load(sys.stdin):
        try:
            results.append(of_shape(shape))
        except Exception as error:
            results.append({"error": f"{type(error).__name__}: {error}"})
    print(json.dumps(results))


if __name__ == "__main__":
    main()
