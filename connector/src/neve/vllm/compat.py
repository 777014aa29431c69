"""Differences among vLLM 0.26 … 0.33, detected by attributes, never by version numbers.

Imports nothing of vLLM.
"""

from collections.abc import Iterator
from dataclasses import fields
from typing import Any, Final

from neve.engine.groups import KvGroup
from neve.formats.parts import PartKind

# Attention with one latent KV vector, equal on every TP rank.
_LATENT: Final = frozenset(("MLAAttentionSpec", "SlidingWindowMLASpec"))
# What a layer keeps, by its spec's exact class: `RSWASpec` is a `FullAttentionSpec`, and frees
# blocks.
_KINDS: Final = {
    "FullAttentionSpec": PartKind.FULL,
    "MLAAttentionSpec": PartKind.FULL,
    "SinkFullAttentionSpec": PartKind.FULL,
    "TQFullAttentionSpec": PartKind.FULL,
    "SlidingWindowSpec": PartKind.WINDOW,
    "SlidingWindowMLASpec": PartKind.WINDOW,
    "ChunkedLocalAttentionSpec": PartKind.LOCAL,
    "MambaSpec": PartKind.STATE,
}
KNOWN: Final = frozenset(_KINDS)


def layer_specs(group: Any) -> Iterator[Any]:
    """The specs of a KV cache group: one, or one a layer if the group mixes sizes."""
    spec = group.kv_cache_spec
    each = getattr(spec, "kv_cache_specs", None)
    yield from each.values() if isinstance(each, dict) else (spec,)


def describe_groups(kv_cache_config: Any) -> str:
    """Every KV cache group in words: its number, kind, window, and first layer."""
    words = []
    for number, group in enumerate(kv_cache_config.kv_cache_groups):
        kinds = []
        for spec in layer_specs(group):
            kind = type(spec).__name__
            window = getattr(spec, "sliding_window", None)
            local = getattr(spec, "attention_chunk_size", None)
            kind += f", window {window}" if window else ""
            kind += f", local chunk {local}" if local else ""
            kinds.append(kind)
        kind = " and ".join(dict.fromkeys(kinds))
        kind += ", of a drafter" if getattr(group, "is_eagle_group", False) else ""
        names = list(group.layer_names)
        layers = f"{len(names)} layers from {names[0]}" if names else "no layers"
        words.append(f"{number}: {kind} ({layers})")
    return "; ".join(words)


def state_specs(kv_cache_config: Any) -> list[Any]:
    """Of layers that keep a running state (Mamba, linear attention) instead of KV."""
    return [
        spec
        for group in kv_cache_config.kv_cache_groups
        for spec in layer_specs(group)
        if any("Mamba" in base.__name__ for base in type(spec).__mro__)
    ]


def describe_states(kv_cache_config: Any) -> dict[str, str]:
    """By layer, what its state consists of: vLLM registers states as mere bytes."""
    found = {}
    for group in kv_cache_config.kv_cache_groups:
        spec = group.kv_cache_spec
        each = getattr(spec, "kv_cache_specs", None)
        for name in group.layer_names:
            own = each[name] if isinstance(each, dict) else spec
            if type(own).__name__ == "MambaSpec":
                found[name] = f"{own.mamba_type} {own.shapes} {own.dtypes}"
    return found


def has_cross_attention(kv_cache_config: Any) -> bool:
    """Whether some layers keep the KV of an encoder's output."""
    return any(
        "CrossAttention" in base.__name__
        for group in kv_cache_config.kv_cache_groups
        for spec in layer_specs(group)
        for base in type(spec).__mro__
    )


def sees_ahead(kv_cache_config: Any) -> bool:
    """Whether some layers attend to later tokens (prefix LM, encoder-only attention)."""
    return any(
        getattr(spec, "non_causal", False) or "EncoderOnly" in type(spec).__name__
        for group in kv_cache_config.kv_cache_groups
        for spec in layer_specs(group)
    )


def reads_an_encoder(config: Any) -> bool:
    """Whether the model's decoder reads an encoder, as Whisper's does."""
    return bool(getattr(config.model_config, "is_encoder_decoder", False))


def pools_all_tokens(config: Any) -> bool:
    """Whether an answer is pooled of all tokens of a prompt (MEAN, CLS, STEP): then even vLLM's own
    prefix cache is of no use, whatever its setting. LAST needs the last token alone."""
    model = config.model_config
    if getattr(model, "pooler_config", None) is None:
        return False
    return not getattr(model, "is_prefix_caching_supported", True)


def groups_of(kv_cache_config: Any, longest: int) -> list[KvGroup] | None:
    """The KV cache groups, sorted by kind; None if some layer keeps something that Neve does not
    know, or a drafter has a group of its own.

    A window or a local chunk that no request outgrows (`longest` tokens) counts as full attention.
    """
    several = len(kv_cache_config.kv_cache_groups) > 1
    found = []
    for number, group in enumerate(kv_cache_config.kv_cache_groups):
        specs = list(layer_specs(group))
        if not all(type(spec).__name__ in _KINDS for spec in specs):
            return None
        kinds = {_kind(spec, longest) for spec in specs}
        blocks = {int(spec.block_size) for spec in specs}
        special = (
            not getattr(group, "enable_kv_transfer", True)
            or not all(getattr(spec, "prefix_cacheable", True) for spec in specs)
            or getattr(group, "host_resident", False)
            or (several and getattr(group, "is_eagle_group", False))
        )
        if len(kinds) != 1 or len(blocks) != 1 or special:
            return None
        ((kind, span),) = kinds
        found.append(KvGroup(tuple(group.layer_names), span, blocks.pop(), number, kind))
    return sorted(found, key=lambda each: list(PartKind).index(each.kind))


def _kind(spec: Any, longest: int) -> tuple[PartKind, int | None]:
    """What a layer keeps, and its window or local chunk in tokens.

    A drafter of several layers has more of a window kept than attention reads. The engine takes a
    loaded window for filled down to them.
    """
    kind, span = _KINDS[type(spec).__name__], None
    if kind is PartKind.WINDOW:
        span = int(spec.sliding_window) + int(getattr(spec, "extra_retained_tokens", 0))
    elif kind is PartKind.LOCAL:
        span = int(spec.attention_chunk_size)
    if span is not None and span >= longest:
        return PartKind.FULL, None
    return kind, span


def holds_latent(kv_cache_config: Any) -> bool:
    """Whether all KV is of MLA: then every TP rank holds the same bytes."""
    specs = [spec for group in kv_cache_config.kv_cache_groups for spec in layer_specs(group)]
    return bool(specs) and all(
        _LATENT & {base.__name__ for base in type(spec).__mro__} for spec in specs
    )


def names_media(config: Any) -> bool:
    """Whether images and other media have ids of their content. Without a cache for media, vLLM
    numbers them, starting at 1 in every process."""
    media = config.model_config.multimodal_config
    if media is None or config.cache_config.enable_prefix_caching:
        return True
    return bool(getattr(media, "mm_processor_cache_gb", 0))


def has_token_ids(request: Any) -> bool:
    """Whether a request's KV follows from token ids that do not change.

    Prompts that mix token ids and embeddings have `prompt_is_token_ids`; `resumable` prompts grow
    from outside.
    """
    return (
        request.prompt_embeds is None
        and getattr(request, "prompt_is_token_ids", None) is None
        and not getattr(request, "resumable", False)
    )


def job_rows(job: Any) -> list[int]:
    """The rows of vLLM's DRAM tier that a job reads or writes: `block_ids` until 0.29."""
    rows = getattr(job, "chunk_ids", None)
    return [int(row) for row in (job.block_ids if rows is None else rows)]


def job_result(kind: type, **known: Any) -> Any:
    """A `JobResult` with the fields that this release has; until 0.27 only the success."""
    wanted = {field.name for field in fields(kind)}
    return kind(**{name: value for name, value in known.items() if name in wanted})
