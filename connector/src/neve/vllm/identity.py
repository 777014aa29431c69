"""What this node declares about itself, from vLLM's configuration and the registered KV tensors."""

import json
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neve.space import SpaceIdentity
from neve.vllm.compat import describe_groups, keeps_all
from neve.vllm.options import Options
from neve.vllm.sharding import CANONICAL
from neve.vllm.weights import folder_revision

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig

    from neve.vllm.tensors import KvTensors

# Raised when the payload's order changes (see neve.vllm.tensors).
LAYOUT_VERSION = 2
# Entries of a model's configuration that say where it came from, not what it computes.
_NOT_THE_MODEL = {"_name_or_path", "_commit_hash", "transformers_version", "torch_dtype"}


def why_unsupported(config: "VllmConfig", kv_cache_config: "KVCacheConfig") -> str | None:
    """Why this engine can't use Neve, in words for its operator; None when it can."""
    groups = len(kv_cache_config.kv_cache_groups)
    if groups != 1:
        return (
            f"the model has {groups} KV cache groups and Neve handles 1 "
            f"({describe_groups(kv_cache_config)}); "
            f"--disable-hybrid-kv-cache-manager makes them one where that is possible"
        )
    if not keeps_all(kv_cache_config):
        # What a request gave back is another's by the time a block of it is copied, or asked for.
        return (
            f"requests give blocks back while they run ({describe_groups(kv_cache_config)}); "
            f"--disable-sliding-window keeps them, for prompts no longer than the window"
        )
    if getattr(config.cache_config, "calculate_kv_scales", False):
        return "calculate_kv_scales makes KV depend on the first batch; use calibrated scales"
    cache, scheduler = config.cache_config, config.scheduler_config
    if not (scheduler.enable_chunked_prefill or cache.enable_prefix_caching):
        # Attention that can only compute whole prompts (MLA on CPU) gives wrong tokens after a
        # load; vLLM then switches both off.
        return "neither chunked prefill nor prefix caching is on; Neve needs one of them"
    parallel = config.parallel_config
    for name in ("decode_context_parallel_size", "prefill_context_parallel_size"):
        if getattr(parallel, name, 1) > 1:
            return f"{name} > 1 splits blocks between ranks in a way Neve doesn't know"
    return None


def kernel_names(config: "VllmConfig") -> dict[str, str]:
    """Layer name → attention backend and, on CPU, the instruction set that packs its KV."""
    names = {}
    for name, layer in config.compilation_config.static_forward_context.items():
        backend = getattr(layer, "attn_backend", None)
        if backend is not None:
            names[name] = f"{backend.get_name()}/{getattr(layer, 'isa', '')}"
    return names


def identify(
    config: "VllmConfig", tensors: "KvTensors", options: Options, *, tp_rank: int, pp_rank: int
) -> SpaceIdentity:
    """The identity of this rank's KV. Reads the weight files' contents (sampled when large).

    `tp_rank` is 0 for all ranks that hold the same KV. In the canonical layout no TP size matters:
    `tensors.layout` is of one KV head, and tells so.
    """
    model = config.model_config
    parallel = config.parallel_config
    folder = Path(model.model)
    canonical = options.layout == CANONICAL
    return SpaceIdentity(
        model=folder.resolve().name if folder.is_dir() else str(model.model),
        revision=_revision(config, options),
        dtype=str(model.dtype),
        kv_dtype=f"{config.cache_config.cache_dtype}:{tensors.dtypes}",
        layout=tensors.layout,
        layout_version=LAYOUT_VERSION,
        engine_block_tokens=config.cache_config.block_size,
        bytes_per_token=tensors.bytes_per_token,
        tp_size=1 if canonical else parallel.tensor_parallel_size,
        tp_rank=0 if canonical else tp_rank,
        pp_size=parallel.pipeline_parallel_size,
        pp_rank=pp_rank,
    )


def _revision(config: "VllmConfig", options: Options) -> str:
    """Names the weights and every setting that changes what they compute."""
    model = config.model_config
    load = config.load_config
    load_format = str(getattr(load.load_format, "value", load.load_format))
    folder = Path(model.model)
    if load_format == "dummy":
        weights = f"dummy:seed={model.seed}"
    elif options.revision is not None:
        weights = f"set:{options.revision}"
    elif commit := getattr(model.hf_config, "_commit_hash", None):
        weights = f"commit:{commit}"
    elif folder.is_dir():
        weights = f"files:{folder_revision(folder)}"
    else:
        weights = f"name:{model.revision or 'main'}"
    return f"{weights} settings:{_settings_digest(config)}"


def _settings_digest(config: "VllmConfig") -> str:
    """16 bytes in hex over the model's configuration after overrides, and the speculator's."""
    settings: dict[str, Any] = {"quantization": str(config.model_config.quantization)}
    settings["model"] = _plain(config.model_config.hf_config)
    media = getattr(config.model_config, "multimodal_config", None)
    if media is not None and media.mm_processor_kwargs:
        # Media are named by their content before it is resized, cropped, normalized.
        settings["media"] = media.mm_processor_kwargs
    speculative = config.speculative_config
    if speculative is not None:
        # A drafter's layers are among the KV tensors.
        draft = getattr(speculative, "draft_model_config", None)
        settings["speculative"] = [
            str(speculative.method),
            str(speculative.model),
            _plain(draft.hf_config) if draft is not None else None,
        ]
    canonical = json.dumps(settings, sort_keys=True, default=str)
    return blake2b(canonical.encode(), digest_size=16).hexdigest()


def _plain(hf_config: Any) -> Any:
    """The configuration as plain data without what names its origin, at every depth."""

    def strip(value: Any) -> Any:
        if isinstance(value, dict):
            return {str(k): strip(v) for k, v in value.items() if k not in _NOT_THE_MODEL}
        if isinstance(value, (list, tuple)):
            return [strip(item) for item in value]
        return value

    return strip(hf_config.to_dict())
