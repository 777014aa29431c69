"""Reads a model's `config.json`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from neve.errors import Misuse
from neve.formats.parts import PartKind
from neve.planner.sizes.groups import KvGroup, KvSize

# Source: vLLM's CacheDType (vllm/config/cache.py) and the names that config.json uses.
_DTYPE_BYTES: Final = {"float32": 4, "float": 4, "bfloat16": 2, "float16": 2, "half": 2, "int8": 1}
# Layers whose state has a fixed size instead of KV per token, as named in `layer_types`.
_STATE_LAYERS: Final = frozenset(("linear_attention", "mamba", "mamba2", "recurrent", "conv"))
# DeepSeek-V3.2's indexer keeps an fp8 key and one float32 scale for every 128 of its values.
# Source: vllm/model_executor/models/deepseek_v2.py, DeepseekV32Indexer.
_INDEXER_GROUP: Final = 128


@dataclass(frozen=True)
class ModelKv:
    """The KV of one token: `layers` × `heads` × `values_per_head` elements of `element_bytes`.

    TP ranks divide the heads. `latent`: MLA, one compressed vector; every TP rank holds it, one
    stores it.
    """

    layers: int
    heads: int
    values_per_head: int
    latent: bool
    element_bytes: int
    extra_bytes_per_layer: int = 0

    @property
    def bytes_per_token(self) -> int:
        """Stored bytes of one token, all layers and all TP ranks together."""
        values = self.heads * self.values_per_head * self.element_bytes
        return self.layers * (values + self.extra_bytes_per_layer)

    def bytes_per_token_of_rank(self, tp_size: int) -> int:
        """Bytes of one token on one TP rank. With fewer heads than ranks, heads are replicated."""
        if self.latent:
            return self.bytes_per_token
        heads = max(1, self.heads // tp_size)
        return self.layers * heads * self.values_per_head * self.element_bytes


def model_kv(config: Mapping[str, Any], *, kv_dtype: str = "auto") -> ModelKv:
    """Reads the KV layout from a model's `config.json`. Raises `Misuse` with the missing entry.

    Sliding-window layers count fully: a block's KV is stored before the window moves past it.
    """
    for key in ("text_config", "llm_config", "language_config"):  # multimodal models nest it
        if isinstance(config.get(key), Mapping):
            config = dict(config) | dict(config[key])
            break
    layers = _attention_layers(config)
    element_bytes = _element_bytes(config, kv_dtype)
    if config.get("kv_lora_rank"):
        extra = 0
        if index := config.get("index_head_dim"):
            extra = int(index) + int(index) // _INDEXER_GROUP * 4
        width = _number(config, "kv_lora_rank") + _number(config, "qk_rope_head_dim")
        return ModelKv(layers, 1, width, True, element_bytes, extra)
    attention_heads = _number(config, "num_attention_heads", "n_head")
    if config.get("multi_query"):
        heads = 1
    elif config.get("num_key_value_heads"):
        heads = _number(config, "num_key_value_heads")
    else:
        heads = attention_heads
    if config.get("head_dim"):
        head_dim = _number(config, "head_dim")
    else:
        head_dim = _number(config, "hidden_size", "n_embd") // attention_heads
    return ModelKv(layers, heads, 2 * head_dim, False, element_bytes)


def kv_size(
    config: Mapping[str, Any],
    *,
    dtype: str = "auto",
    kv_dtype: str = "auto",
    tp: int = 1,
    codec_ratio: float = 1.0,
) -> KvSize:
    """Reads the KV layout from a model's `config.json`. `dtype`, `kv_dtype`: as vLLM's `--dtype`
    and `--kv-cache-dtype`. Raises `Misuse` with the missing or unknown field."""
    kv = model_kv(config, kv_dtype=dtype if kv_dtype == "auto" else kv_dtype)
    group = KvGroup(
        PartKind.FULL,
        "MLA" if kv.latent else f"{kv.heads} KV heads",
        kv.layers,
        kv.bytes_per_token // kv.layers,
        kv.bytes_per_token_of_rank(tp) // kv.layers,
    )
    return KvSize((group,), tp, codec_ratio)


def _attention_layers(config: Mapping[str, Any]) -> int:
    layers = _number(config, "num_hidden_layers", "n_layer", "num_layers")
    kinds = config.get("layer_types") or config.get("layers_block_type")
    if kinds:
        layers = sum(kind not in _STATE_LAYERS for kind in kinds[:layers])
    # Gemma 3n: the last layers read an earlier layer's KV.
    return layers - int(config.get("num_kv_shared_layers") or 0)


def _element_bytes(config: Mapping[str, Any], kv_dtype: str) -> int:
    name = kv_dtype
    if name == "auto":
        name = str(config.get("dtype") or config.get("torch_dtype") or "bfloat16")
    name = name.removeprefix("torch.")
    if name in _DTYPE_BYTES:
        return _DTYPE_BYTES[name]
    if name in ("fp8", "fp8_e4m3", "fp8_e5m2", "fp8_inc"):
        return 1
    raise Misuse(f"unknown KV dtype {name!r}; known: auto, fp8, {', '.join(_DTYPE_BYTES)}")


def _number(config: Mapping[str, Any], *names: str) -> int:
    for name in names:
        value = config.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    raise Misuse("config.json has no such positive number", field=names[0])
