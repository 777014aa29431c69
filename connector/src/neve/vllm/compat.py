"""Differences among vLLM 0.26 … 0.33, detected by attributes, never by version numbers.

Imports nothing of vLLM.
"""

from collections.abc import Iterator
from dataclasses import fields
from typing import Any, Final

from neve.engine.groups import KvGroup

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
        kind += ", of a drafter" if getattr(group, "is_eagle_group", False) else ""
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


def groups_of(kv_cache_config: Any, longest: int) -> list[KvGroup] | None:
    """The KV cache groups, those with full attention first; None if some layer keeps
    anything else than the KV of all tokens, or of a window, or if groups have blocks of several
    sizes. A window that no request outgrows (`longest` tokens) counts as full attention.

    Decided by the exact class: `RSWASpec` is a `FullAttentionSpec`, and frees blocks. Also None if
    latent KV, which is equal on all TP ranks, is mixed with other KV, or if a drafter has a group
    of its own.
    """
    several = len(kv_cache_config.kv_cache_groups) > 1
    found = []
    for number, group in enumerate(kv_cache_config.kv_cache_groups):
        specs = list(layer_specs(group))
        if not all(type(spec).__name__ in _KEEPING | _WINDOWED for spec in specs):
            return None
        windows = {_window(spec, longest) for spec in specs}
        blocks = {int(spec.block_size) for spec in specs}
        special = (
            not getattr(group, "enable_kv_transfer", True)
            or not all(getattr(spec, "prefix_cacheable", True) for spec in specs)
            or getattr(group, "host_resident", False)
            or (several and getattr(group, "is_eagle_group", False))
        )
        if len(windows) != 1 or len(blocks) != 1 or special:
            return None
        found.append(KvGroup(tuple(group.layer_names), windows.pop(), blocks.pop(), number))
    latent = {
        bool(_LATENT & {base.__name__ for base in type(spec).__mro__})
        for group in kv_cache_config.kv_cache_groups
        for spec in layer_specs(group)
    }
    if len({each.block_tokens for each in found}) != 1 or (several and len(latent) != 1):
        return None
    return sorted(found, key=lambda each: each.window is not None)


def _window(spec: Any, longest: int) -> int | None:
    """Tokens that the engine keeps, the one being computed included; None: all.

    A drafter of several layers has more kept than attention reads. The engine takes a loaded window
    for filled down to them.
    """
    if type(spec).__name__ not in _WINDOWED:
        return None
    window = int(spec.sliding_window) + int(getattr(spec, "extra_retained_tokens", 0))
    return window if window < longest else None


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
