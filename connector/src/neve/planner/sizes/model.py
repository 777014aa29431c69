"""`kv_size`: from a model's `config.json` to the size of its KV."""

from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches
from typing import Any

from neve.errors import Misuse
from neve.planner.sizes.families import ALIASES, FAMILIES, WRAPPERS
from neve.planner.sizes.fields import language_model
from neve.planner.sizes.groups import KvSize
from neve.planner.sizes.widths import Widths

_MOST_RANKS = 1024


def kv_size(
    config: Mapping[str, Any],
    *,
    dtype: str = "auto",
    kv_dtype: str = "auto",
    state_dtype: str = "auto",
    index_dtype: str = "auto",
    tp: int = 1,
    codec_ratio: float = 1.0,
) -> KvSize:
    """Reads the KV layout from a model's `config.json`; that of a multimodal model from its
    language model. Layers for speculative decoding don't count.

    `dtype`, `kv_dtype`, `state_dtype`: as vLLM's `--dtype`, `--kv-cache-dtype` and
    `--mamba-ssm-cache-dtype`; `auto` is config.json's dtype, and for states what vLLM makes of it.
    `index_dtype`: of the keys of an indexer; `auto` is fp8 with scales, as vLLM keeps them.
    `codec_ratio`: bytes before ÷ after the store's codec.

    Raises `Misuse` with the missing, unknown or contradictory field.
    """
    if not 1 <= tp <= _MOST_RANKS:
        raise Misuse(f"need 1 … {_MOST_RANKS}", field="tp")
    if not 0 < codec_ratio < 1e6:
        raise Misuse("need a ratio above 0", field="codec_ratio")
    (*outer, kind), fields = language_model(config)
    name = ALIASES.get(kind, kind)
    for wrapper in outer:
        if wrapper not in WRAPPERS:
            raise _unknown(wrapper, [*WRAPPERS, *FAMILIES])
    if name not in FAMILIES:
        raise _unknown(kind, [*FAMILIES])
    family = FAMILIES[name]
    widths = Widths.read(
        fields, dtype=dtype, kv_dtype=kv_dtype, state_dtype=state_dtype, index_dtype=index_dtype
    )
    layers = family.read(fields.with_defaults(family.defaults), widths, tp)
    return replace(KvSize.of_layers(name, layers), tp=tp, codec_ratio=codec_ratio)


def _unknown(kind: str, known: list[str]) -> Misuse:
    near = get_close_matches(kind, known, n=3)
    similar = f"; similar ones: {', '.join(near)}" if near else ""
    return Misuse(f"the architecture {kind!r:.60} is not known{similar}", field="model_type")
