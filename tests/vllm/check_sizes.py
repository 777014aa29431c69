"""Published models' KV by vLLM's own model code, beside what the planner reads from config.json.

    python check_sizes.py [--list] [MODEL...]

Run by the vLLM interpreter. Models are built without weights, one layer after the other asked for
its `KVCacheSpec`. Fails where a size differs; `--list` prints them as lines of JSON.
"""

import json
import os
import sys
import tempfile
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

os.environ |= {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_ALLOW_CHUNKED_LOCAL_ATTN_WITH_HYBRID_KV_CACHE": "1",
    "HF_HUB_OFFLINE": "1",
}
sys.path.append(str(Path(__file__).parents[1]))

import torch
from vllm.config import set_current_vllm_config
from vllm.distributed import ensure_model_parallel_initialized, init_distributed_environment
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
from vllm.model_executor.model_loader.utils import initialize_model
from vllm.model_executor.models import registry
from vllm.platforms.cpu import CpuPlatform
from vllm.v1.attention.backends.registry import AttentionBackendEnum

from neve.formats.parts import PartKind
from neve.planner.sizes import kv_size

CONFIGS = json.loads((Path(__file__).parents[1] / "neve/data/model_configs.json").read_text())
# Language models of those whose images need packages that are not here.
LANGUAGE = {
    "Gemma-3-27B": "Gemma3ForCausalLM", "Gemma-3n-E4B": "Gemma3nForCausalLM",
    "Llama-4-Scout": "Llama4ForCausalLM",
}  # fmt: skip
# Not built without weights (Gemma 3n) and without a GPU's packages (Kimi Linear).
NOT_HERE = ("Gemma-3n-E4B", "Kimi-Linear-48B-A3B")
FIRST = "Qwen3-30B-A3B"  # has experts: vLLM makes their groups of ranks only then
chosen_backend = CpuPlatform.get_attn_backend_cls
QUICK = ("Qwen3-30B-A3B", "DeepSeek-V3", "gpt-oss-120b", "Qwen3-Next-80B-A3B", "Llama-3-8B")


def inspected_here(work):
    """vLLM looks at each model's class in a process of its own; this one will do here."""
    return work()


def dense_backend(cls, selected, attn_selector_config, **more):
    """vLLM has no sparse attention on CPU; what a layer keeps does not depend on the kernel.

    Nor on the processor: with AMX vLLM would take another MLA, unless this one is asked for.
    """
    dense = attn_selector_config._replace(use_sparse=False)
    if dense.use_mla:
        selected = AttentionBackendEnum.CPU_MLA
    return chosen_backend(selected, dense, **more)


def layer_specs(folder, config, is_first):
    """Specs of a model's layers, and the dtype that vLLM chose for its KV."""
    (folder / "config.json").write_text(json.dumps(config))
    arguments = EngineArgs(
        model=str(folder), skip_tokenizer_init=True, load_format="dummy", enforce_eager=True,
        dtype="bfloat16", enable_prefix_caching="kv_lora_rank" not in config,
        mamba_ssm_cache_dtype="float32",
        max_model_len=config.get("max_position_embeddings", 8192),
    )  # fmt: skip
    engine = arguments.create_engine_config()
    with set_current_vllm_config(engine):
        if is_first:
            init_distributed_environment(1, 0, f"file://{folder}/store", 0, "gloo")
            ensure_model_parallel_initialized(1, 1)
        with torch.device("meta"):
            initialize_model(vllm_config=engine)
        layers = engine.compilation_config.static_forward_context.values()
        own = (
            each for each in layers
            if isinstance(each, AttentionLayerBase)
            and getattr(each, "kv_sharing_target_layer_name", None) is None
        )  # fmt: skip
        specs = [spec for each in own if (spec := each.get_kv_cache_spec(engine)) is not None]
        return specs, engine.cache_config.cache_dtype


def sizes_of(specs):
    """(kind, span) → bytes of a token, or of a state, all layers."""
    found = Counter()
    for spec in specs:
        name = type(spec).__name__
        if name == "MambaSpec":
            found["state"] += spec.real_page_size_bytes
            continue
        span = getattr(spec, "attention_chunk_size", None) or getattr(spec, "sliding_window", None)
        kind = "full" if span is None else "local" if name.startswith("Chunked") else "window"
        size = spec.real_page_size_bytes / spec.block_size
        found[f"{kind} {span}" if span else kind] += size
    return dict(sorted(found.items()))


def planned(config, kv_dtype):
    kv = kv_size(config, dtype="bfloat16", kv_dtype=kv_dtype, state_dtype="float32")
    found = Counter()
    for group in kv.groups:
        size = group.fixed_bytes if group.kind is PartKind.STATE else group.stored_bytes_per_token
        name = f"{group.kind} {group.span_tokens}" if group.span_tokens else str(group.kind)
        found[name] += size
    return dict(sorted(found.items()))


def main():
    others = [name for name in CONFIGS if name not in NOT_HERE]
    names = [name for name in sys.argv[1:] if name != "--list"] or others
    names = [FIRST, *(name for name in names if name != FIRST)]
    registry._run_in_subprocess = inspected_here
    CpuPlatform.get_attn_backend_cls = classmethod(dense_backend)
    torch.cuda.Event = SimpleNamespace  # DeepSeek V4 makes some before it knows its device
    differing = []
    for number, name in enumerate(names):
        config = CONFIGS[name]
        if name in LANGUAGE:
            config = config["text_config"] | {"architectures": [LANGUAGE[name]]}
        row, kv_dtype = {"model": name}, "auto"
        with tempfile.TemporaryDirectory() as folder:
            try:
                specs, kv_dtype = layer_specs(Path(folder), config, number == 0)
                row["engine"] = sizes_of(specs)
            except Exception as error:
                if "--list" not in sys.argv:
                    raise
                row["why"] = " ".join(str(error).split())[:400] or repr(error)
        row["planned"] = planned(CONFIGS[name], kv_dtype)
        row["kv_dtype"] = kv_dtype
        if row.get("engine") != row["planned"]:
            differing.append(row)
        print(json.dumps(row), flush=True)
    assert "--list" in sys.argv or not differing, differing


if __name__ == "__main__":
    main()
