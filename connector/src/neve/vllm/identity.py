"""The identity of a rank's KV, from vLLM's configuration, its model and the registered tensors."""

import json
import re
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from neve import log_events
from neve.engine.groups import KvGroup, alignment_tokens, is_split
from neve.engine.options import Options
from neve.engine.sharding import CANONICAL, RANK
from neve.engine.weights import folder_revision
from neve.errors import Misuse
from neve.formats.parts import PartKind
from neve.formats.space import SpaceIdentity
from neve.vllm.compat import (
    describe_groups,
    groups_of,
    has_cross_attention,
    pools_all_tokens,
    reads_an_encoder,
    sees_ahead,
    state_specs,
)
from neve.vllm.settings import LAYERLESS_DRAFTERS, deciding_settings

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig

    from neve.engine.device.tensors import KvTensors
    from neve.vllm.built import BuiltModel

# Raised when the payload's order changes (see neve.engine.device.tensors).
LAYOUT_VERSION = 2
# `--load-format` values whose weights are the files of the model's folder, or of its hub's commit.
_READ_FROM_FOLDERS: Final = frozenset(
    """auto hf safetensors fastsafetensors instanttensor pt npcache mistral gguf bitsandbytes
    sharded_state runai_streamer runai_streamer_sharded""".split()  # noqa: SIM905
)


# Why an encoder-decoder model is served without Neve, in words for its operator.
READS_AN_ENCODER: Final = (
    "the model's decoder reads an encoder (cross attention), whose KV follows from audio or another"
    " text, not from the prompt's tokens; vLLM runs such models only without a connector"
)


def why_unsupported(
    config: "VllmConfig",
    kv_cache_config: "KVCacheConfig | None",
    options: Options,
    *,
    supports_groups: bool,
) -> str | None:
    """Why this engine can't use Neve, in words for its operator; None if it can. Never raises.

    `supports_groups`: this vLLM tells connectors what they need to know of several KV cache groups.
    """
    try:
        return _why_unsupported(config, kv_cache_config, options, supports_groups)
    except Exception as error:  # a later vLLM's configuration
        log_events.HOOK_BROKEN.log(hook="__init__", exc_info=True)
        return f"vLLM describes the model's KV in a way that Neve doesn't know ({error!r})"


def _why_unsupported(
    config: "VllmConfig",
    kv_cache_config: "KVCacheConfig | None",
    options: Options,
    supports_groups: bool,
) -> str | None:
    if kv_cache_config is None:
        return "vLLM gave the connector no description of the model's KV"
    if not kv_cache_config.kv_cache_groups:
        return "the model keeps no KV (it only encodes), so there is nothing to share"
    if reads_an_encoder(config) or has_cross_attention(kv_cache_config):
        return READS_AN_ENCODER
    if sees_ahead(kv_cache_config):
        return (
            f"layers attend to later tokens too, so KV depends on what follows it "
            f"({describe_groups(kv_cache_config)})"
        )
    states = state_specs(kv_cache_config)
    groups = groups_of(kv_cache_config, config.model_config.max_model_len)
    if groups is None:
        way_out = "; --disable-hybrid-kv-cache-manager makes them one where that is possible"
        return (
            f"Neve knows full attention, sliding windows, chunked local attention and states of "
            f"linear attention, not all of these KV cache groups "
            f"({describe_groups(kv_cache_config)}){'' if states else way_out}"
        )
    if states and not all(getattr(spec, "mamba_cache_mode", "") == "align" for spec in states):
        return (
            f"layers keep a running state in place of KV ({describe_groups(kv_cache_config)}), "
            f"which vLLM gives to connectors with its prefix cache on only: start it with "
            f"--enable-prefix-caching"
        )
    if states and options.family is not None:
        return (
            f"layers keep a running state in place of KV ({describe_groups(kv_cache_config)}), "
            f"which no attestation compares yet: leave out the option 'family'"
        )
    if states and any(getattr(spec, "num_speculative_blocks", 0) for spec in states):
        return (
            f"layers keep a running state in place of KV ({describe_groups(kv_cache_config)}), "
            f"which Neve does not follow through speculative decoding: leave out "
            f"--speculative-config"
        )
    if is_split(groups) and not supports_groups:
        # Such requests free blocks while running, so a block may belong to another request before
        # it is copied.
        return (
            f"requests give blocks back while they run ({describe_groups(kv_cache_config)}), which "
            f"Neve follows from vLLM 0.30 on; --disable-hybrid-kv-cache-manager or "
            f"--disable-sliding-window keeps them"
        )
    if is_split(groups) and options.layout == CANONICAL:
        return (
            f"the layout '{CANONICAL}' needs one KV cache group of full attention "
            f"({describe_groups(kv_cache_config)}): use '{RANK}'"
        )
    if getattr(config.cache_config, "calculate_kv_scales", False):
        return "calculate_kv_scales makes KV depend on the first batch; use calibrated scales"
    if pools_all_tokens(config):
        return "the model's answer is pooled of all tokens of the prompt, so all must be computed"
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
    config: "VllmConfig",
    kvs: "Sequence[KvTensors]",
    groups: Sequence[KvGroup],
    options: Options,
    built: "BuiltModel",
    *,
    tp_rank: int,
    pp_rank: int,
) -> SpaceIdentity:
    """The identity of this rank's KV. Reads the weight files' contents (sampled when large).

    `tp_rank` is 0 for all ranks that hold the same KV. The canonical layout names no TP size:
    the layout describes one KV head. `kvs` has one entry for each of `groups`.

    Raises:
        Misuse: the weights can't be named; the message says which option names them.
    """
    model = config.model_config
    parallel = config.parallel_config
    folder = Path(model.model)
    canonical = options.layout == CANONICAL
    dtypes = [kv.dtypes for kv in kvs]
    return SpaceIdentity(
        model=folder.resolve().name if folder.is_dir() else str(model.model),
        revision=_revision(config, options, built),
        dtype=str(model.dtype),
        kv_dtype=f"{config.cache_config.cache_dtype}:{','.join(dict.fromkeys(dtypes))}",
        layout=_layout(kvs, groups),
        layout_version=LAYOUT_VERSION,
        engine_block_tokens=alignment_tokens(groups),
        bytes_per_token=_bytes_per_token(kvs, groups),
        tp_size=1 if canonical else parallel.tensor_parallel_size,
        tp_rank=0 if canonical else tp_rank,
        pp_size=parallel.pipeline_parallel_size,
        pp_rank=pp_rank,
        codec=kvs[0].codec,
    )


def _bytes_per_token(kvs: "Sequence[KvTensors]", groups: Sequence[KvGroup]) -> int:
    """Of KV; a state has no bytes a token. At least 1, for a model of states alone."""
    pairs = zip(kvs, groups, strict=True)
    return sum(kv.bytes_per_token for kv, group in pairs if group.kind is not PartKind.STATE) or 1


def _layout(kvs: "Sequence[KvTensors]", groups: Sequence[KvGroup]) -> str:
    """The layout of each group, and which tokens of a chunk it holds."""
    if not is_split(groups):
        return kvs[0].layout
    words = [f"{group}: {kv.layout}" for group, kv in zip(groups, kvs, strict=True)]
    digest = blake2b("\n".join(words).encode(), digest_size=16).hexdigest()
    return f"{len(groups)} groups, first {words[0][:600]}, all {digest}"


def _revision(config: "VllmConfig", options: Options, built: "BuiltModel") -> str:
    """Names the weights and everything else that decides the KV's values. Raises `Misuse`."""
    model, load, speculative = config.model_config, config.load_config, config.speculative_config
    weights = _weights(model, load, options)
    decides: dict[str, Any] = {
        "settings": deciding_settings(config),
        "built": built.describe(),
    }
    layers = getattr(speculative, "method", None) not in LAYERLESS_DRAFTERS
    draft = getattr(speculative, "draft_model_config", None) if layers else None
    if draft is not None and draft.model != model.model:
        decides["drafter"] = _weights(draft, load, options)
    canonical = json.dumps(decides, sort_keys=True)
    return f"{weights} settings:{blake2b(canonical.encode(), digest_size=16).hexdigest()}"


def _weights(model: Any, load: Any, options: Options) -> str:
    """Names the weights by their content or commit. Raises `Misuse` if neither is known."""
    load_format = str(getattr(load.load_format, "value", load.load_format))
    if load_format == "dummy":
        return f"dummy:seed={model.seed}"
    if options.revision is not None:
        return f"set:{options.revision}"
    place, why = Path(model.model), ""
    elsewhere = getattr(model, "model_weights", "") or ""
    if load_format not in _READ_FROM_FOLDERS:
        why = f"--load-format {load_format} may read them from anywhere"
    elif elsewhere and elsewhere != model.model:
        why = f"they come from {elsewhere}"
    elif place.exists():
        content = folder_revision(place)
        if content is not None:
            return f"files:{content}"
        why = f"no weight file lies in {place}"
    else:
        commit = _commit(model)
        if commit is not None:
            return f"commit:{commit}"
        why = f"of {model.model} no commit is known"
    raise Misuse(
        f"can't tell which weights this engine has ({why}), and engines with other weights must "
        f"not share KV: name them in kv_connector_extra_config, with another name whenever they "
        f"change",
        field="revision",
    )


def _commit(model: Any) -> str | None:
    """The commit of a model from a hub; a branch or tag may move."""
    if not getattr(model, "hf_config_path", None):
        commit = getattr(model.hf_config, "_commit_hash", None)
        if commit is not None:
            return str(commit)
    revision = str(model.revision or "")
    return revision if re.fullmatch("[0-9a-f]{40}", revision) else None
