"""An engine's own KV cache groups beside the size that the planner reads from config.json."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from neve.formats.parts import PartGroup, PartKind
from neve.planner.sizes import kv_size

# `full`, `window 128`, `local 8192`: bytes of a token; `state`: bytes of a state. All layers of it.
Sizes = dict[str, float]


def parts_of(groups: Sequence[Mapping[str, Any]], longest: int) -> list[PartGroup]:
    """The engine's groups (see support.kv_memory) as the planner takes them."""
    found = []
    for each in groups:
        name, span, block_tokens = each["kind"], each["window"], each["block_tokens"]
        if name == "MambaSpec":
            found.append(PartGroup(PartKind.STATE, None, block_tokens, state_bytes=each["bytes"]))
            continue
        kind = PartKind.FULL
        if span is not None and span < longest:
            if name.startswith("SlidingWindow"):
                kind = PartKind.WINDOW
            elif name == "ChunkedLocalAttentionSpec":
                kind = PartKind.LOCAL
        span = None if kind is PartKind.FULL else span
        found.append(PartGroup(kind, span, block_tokens, each["bytes"] // block_tokens))
    return found


def engine_sizes(engine: Mapping[str, Any]) -> Sizes:
    """Of an engine's `describe` (see support.kv_memory)."""
    found: Counter[str] = Counter()
    for part in parts_of(engine["groups"], engine["longest"]):
        found[_name(part.kind, part.span_tokens)] += part.bytes_per_token + part.state_bytes
    return dict(sorted(found.items()))


def planned_sizes(config: Mapping[str, Any], engine: Mapping[str, Any], *, dtype: str) -> Sizes:
    """What the planner makes of `config`, for an engine with this dtype and greatest length."""
    states = [each["dtypes"][-1] for each in engine["groups"] if each.get("dtypes")]
    kv = kv_size(
        {**config, "max_position_embeddings": engine["longest"]},
        dtype=dtype,
        state_dtype=states[0] if states else "auto",
    )
    found: Counter[str] = Counter()
    for group in kv.groups:
        is_state = group.kind is PartKind.STATE
        size = group.fixed_bytes if is_state else group.stored_bytes_per_token
        found[_name(group.kind, group.span_tokens)] += size
    return dict(sorted(found.items()))


def _name(kind: PartKind, span: int | None) -> str:
    return f"{kind} {span}" if span else str(kind)
