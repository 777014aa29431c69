"""Differences among vLLM 0.26 … 0.33, detected by attributes, never by version numbers.

Imports nothing of vLLM.
"""

from collections.abc import Iterator
from dataclasses import fields
from typing import Any, Final

# Attention with one latent KV vector, equal on every TP rank.
_LATENT: Final = frozenset(("MLAAttentionSpec", "SlidingWindowMLASpec"))
# Attention whose blocks belong to their request until it ends.
_KEEPING: Final = frozenset(
    ("FullAttentionSpec", "MLAAttentionSpec", "SinkFullAttentionSpec", "TQFullAttentionSpec")
)
# Attention over a window of tokens, which frees the blocks behind the window.
_WINDOWED: Final = frozenset(("SlidingWindowSpec", "SlidingWindowMLASpec"))


def layer_specs(group: Any) -> Iterator[Any]:
    """The specs of a KV cache group: one, or one a layer if the group mixes sizes."""
    spec = group.kv_cache_spec
    each = getattr(spec, "kv_cache_specs", None)
    yield from each.values() if isinstance(each, dict) else (spec,)


def describe_groups(kv_cache_config: Any) -> str:
    """Every KV cache group in words: its number, kind, window, and first layer."""
    words = []
    for number, group in enumerate(kv_cache_config.kv_cache_groups):
        spec = group.kv_cache_spec
        window = getattr(spec, "sliding_window", None)
        kind = type(spec).__name__ + (f", window {window}" if window else "")
        names = list(group.layer_names)
        layers = f"{len(names)} layers from {names[0]}" if names else "no layers"
        words.append(f"{number}: {kind} ({layers})")
    return "; ".join(words)


def keeps_state(kv_cache_config: Any) -> bool:
    """Whether some layers keep a running state (Mamba, linear attention) instead of KV."""
    return any(
        "Mamba" in base.__name__
        for group in kv_cache_config.kv_cache_groups
        for spec in layer_specs(group)
        for base in type(spec).__mro__
    )


def keeps_all(kv_cache_config: Any, longest: int) -> bool:
    """Whether requests of up to `longest` tokens keep the blocks of all of them until they end or
    are preempted.

    Decided by the exact class: `RSWASpec` is a `FullAttentionSpec`, and frees blocks.
    """
    return all(
        type(spec).__name__ in _KEEPING
        or (type(spec).__name__ in _WINDOWED and spec.sliding_window >= longest)
        for group in kv_cache_config.kv_cache_groups
        for spec in layer_specs(group)
    )


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
