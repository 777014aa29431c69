"""SGLang's arguments that decide the values of KV: all that the operator set, except those that
`HARMLESS` lists with a reason.

An argument that is not listed (of a newer SGLang) counts unless it has its default: an unknown one
may cost a shared page, but never shares a wrong one.
"""

import json
from collections.abc import Iterator, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

import msgspec
from sglang.srt.arg_groups.arg_utils import namespace_of

from neve.engine.weights import folder_revision
from neve.errors import Misuse

# Reason → SGLang's namespaces of arguments, or some of their arguments.
_REASONS: Final[dict[str, str]] = {
    "decides when and where work is done, and what is kept": """
        schedule memory disagg device exec.graph exec.overlap exec.offload
        model.context_length model.startup_weight_load_mode""",
    "decides how requests and answers look; page keys hold the tokens": "serving observability",
    "is part of the identity, or at most other rounding": """
        parallel exec.comm model.dtype model.kv_cache_dtype
        exec.kernel.attention_backend exec.kernel.prefill_attention_backend
        exec.kernel.decode_attention_backend exec.kernel.disable_flashinfer_autotune
        exec.kernel.flashinfer_autotune_skip_ops""",
    "names the weights, which the revision does by their content": """
        model.model_path model.revision model.load_format model.download_dir
        model.trust_remote_code model.model_checksum model.delete_ckpt_after_loading
        model.weight_loader_disable_mmap model.weight_loader_prefetch_checkpoints
        model.weight_loader_prefetch_num_threads model.weight_loader_drop_cache_after_load
        model.weight_cache_mode model.weight_cache_socket model.weight_cache_timeout""",
    "decides which tokens are sampled, not what they leave in the cache": """
        exec.kernel.sampling_backend exec.kernel.grammar_backend
        exec.features.enable_fp32_lm_head exec.features.enable_memory_saver
        exec.features.enable_weights_cpu_backup exec.features.enable_custom_logit_processor
        exec.features.enable_return_hidden_states exec.features.sampling_mask_max_tokens
        exec.features.disable_outlines_disk_cache""",
    "the keys of a LoRA adapter's pages hold its name and path; its content is added": """
        lora.enable_lora lora.lora_paths lora.max_lora_rank lora.max_loaded_loras
        lora.max_loras_per_batch lora.lora_eviction_policy lora.lora_drain_wait_threshold
        lora.lora_target_modules lora.enable_lora_overlap_loading""",
    "does not change what is computed for an image, or how it is named": """
        mm.mm_processor_worker_num mm.mm_io_worker_num mm.allowed_media_domains
        mm.media_url_max_file_size_mb mm.mm_preprocess_cache_size_mb
        mm.limit_mm_data_per_request mm.mm_feature_transport mm.enable_prefix_mm_cache""",
}
HARMLESS: Final = {name: reason for reason, text in _REASONS.items() for name in text.split()}
# Of these, arguments that decide what a draft model computes: one whose own context is shorter than
# the target's gets the target's as its `max_position_embeddings`, from which some RoPEs scale.
# Its layers may lie in the same pages. Source: `ModelConfig._derive_context_length` of SGLang.
OF_DRAFTERS: Final = ("model.context_length",)
# Entries of a model's config.json that name its origin, not what it computes.
_ORIGIN: Final = {"_name_or_path", "_commit_hash", "transformers_version", "torch_dtype", "dtype"}


def deciding_arguments(arguments: Any, *, starting: bool) -> dict[str, str]:
    """Name → value of SGLang's `ServerArgs` that count and are not at their default.

    Raises:
        Misuse: a LoRA adapter's content is not known: it is in no local folder, or the server is
            not `starting`, so that the folder may hold another one by now.
    """
    places = namespace_of(type(arguments))
    has_drafter = arguments.speculative_algorithm is not None
    found = {}
    for field in msgspec.structs.fields(type(arguments)):
        place = str(places.get(field.name, ""))
        value = getattr(arguments, field.name)
        name = f"{place}.{field.name}"
        is_harmless = place in HARMLESS or name in HARMLESS or field.name.startswith("_")
        if is_harmless and not (has_drafter and name in OF_DRAFTERS):
            continue
        if field.default_factory is not msgspec.NODEFAULT:
            default = field.default_factory()
        else:
            default = field.default
        if value != default:
            found[field.name] = json.dumps(value, sort_keys=True, default=str) + _content(value)
    for name, path in _adapters(arguments.lora_paths):
        found[f"lora {name}"] = _adapter_content(name, path, starting)
    return found


def _content(value: Any) -> str:
    """Digest of the file that an argument names; empty if it names none."""
    if not isinstance(value, str) or not Path(value).is_file():
        return ""
    return f" {blake2b(Path(value).read_bytes(), digest_size=16).hexdigest()}"


def model_settings(folder: Path) -> str:
    """Digest of the model's own config.json; empty if there is none."""
    path = folder / "config.json"
    if not path.is_file():
        return ""
    config = json.loads(path.read_text())
    kept = {name: value for name, value in config.items() if name not in _ORIGIN}
    return blake2b(json.dumps(kept, sort_keys=True).encode(), digest_size=16).hexdigest()


def _adapters(given: Any) -> Iterator[tuple[str, str]]:
    """Names and paths of `lora_paths`: a mapping, or records, objects and `name=path`."""
    if isinstance(given, Mapping):
        yield from given.items()
        return
    for adapter in given or ():
        if isinstance(adapter, str):
            name, _, path = adapter.partition("=")
            yield name, path or name
        elif isinstance(adapter, Mapping):
            yield adapter["lora_name"], adapter["lora_path"]
        else:
            yield adapter.lora_name, adapter.lora_path


def _adapter_content(name: str, path: str, starting: bool) -> str:
    weights = folder_revision(Path(path)) if starting and Path(path).exists() else None
    if weights is None:
        raise Misuse(
            f"can't tell the content of the LoRA adapter {name!r} in {path}, whose pages have keys "
            f"of its name and path: keep adapters in local folders and start with Neve, or load "
            f"them while the server runs",
            field="lora_paths",
        )
    return weights + _content(f"{path}/adapter_config.json")
