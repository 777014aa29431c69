"""How many bytes a value takes, by the names that vLLM's options and config.json use.

Source: `CacheDType` and `MambaDType` (vllm/config/cache.py, 0.32).
"""

from dataclasses import dataclass
from typing import Final

from neve.errors import Misuse
from neve.planner.sizes.fields import Fields

_FLOATS: Final = {"float32": 4, "float": 4, "bfloat16": 2, "float16": 2, "half": 2}
_BYTE: Final = ("fp8", "fp8_e4m3", "fp8_e5m2", "fp8_inc")
# One opaque row a token, in place of values: FlashMLA's fp8 with scales, its rotary part in bf16.
PACKED: Final = "fp8_ds_mla"
KV_DTYPES: Final = ("auto", *_FLOATS, *_BYTE, PACKED)
STATE_DTYPES: Final = ("auto", *_FLOATS)
# An indexer's keys: fp8 with a float32 scale for each 128 values, fp4 with a byte for each 32.
# Source: vllm/models/deepseek_v4/attention.py, DeepseekV4Indexer.
INDEX_DTYPES: Final = ("auto", "fp8", "fp4", *_FLOATS)


@dataclass(frozen=True)
class Widths:
    """Bytes of one value of KV and of a layer's state. `is_packed`: KV is `fp8_ds_mla`.

    `conv_bytes`: of the last inputs of a state's convolution; `state_bytes`: of the recurrent
    state; None: as the family does by default.
    """

    model_bytes: int
    kv_bytes: int
    is_packed: bool
    state_bytes: int | None
    index_dtype: str

    @classmethod
    def read(
        cls, fields: Fields, *, dtype: str, kv_dtype: str, state_dtype: str, index_dtype: str
    ) -> "Widths":
        """Raises `Misuse` for unknown names, and for `auto` if config.json names no dtype."""
        if kv_dtype not in KV_DTYPES:
            raise Misuse(
                f"unknown: {kv_dtype!r:.60}; known: {', '.join(KV_DTYPES)}", field="kv_dtype"
            )
        if state_dtype not in STATE_DTYPES:
            known = ", ".join(STATE_DTYPES)
            raise Misuse(f"unknown: {state_dtype!r:.60}; known: {known}", field="state_dtype")
        if index_dtype not in INDEX_DTYPES:
            known = ", ".join(INDEX_DTYPES)
            raise Misuse(f"unknown: {index_dtype!r:.60}; known: {known}", field="index_dtype")
        model_bytes = _model_bytes(fields, dtype)
        kv_bytes = 1 if kv_dtype in (*_BYTE, PACKED) else _FLOATS.get(kv_dtype, model_bytes)
        return cls(model_bytes, kv_bytes, kv_dtype == PACKED, _FLOATS.get(state_dtype), index_dtype)

    def state(self, fields: Fields, name: str | None = None, default: str | None = None) -> int:
        """Bytes of a value of a recurrent state. `name`: the field in which this family names its
        dtype; `default`: the dtype without the field; None: the model's."""
        if self.state_bytes is not None:
            return self.state_bytes
        said = (fields.word(name) if name else None) or default
        if said is None:
            return self.model_bytes
        if said not in _FLOATS:
            raise Misuse(f"unknown dtype {said!r:.60}", field=name)
        return _FLOATS[said]

    def index_row(self, width: int) -> int:
        """Bytes of an indexer's key of so many values."""
        if self.index_dtype in _FLOATS:
            return width * _FLOATS[self.index_dtype]
        if self.index_dtype == "fp4":
            return width // 2 + width // 32
        return width + width // 128 * 4


def _model_bytes(fields: Fields, dtype: str) -> int:
    name, field = dtype, "dtype"
    if dtype == "auto":
        said = fields.get("dtype", "torch_dtype")
        if said is None:
            raise Misuse("config.json names none: say which, such as bfloat16", field="dtype")
        name = str(said)
        field = "dtype" if fields.get("dtype") is not None else "torch_dtype"
    name = name.removeprefix("torch.")
    if name not in _FLOATS:
        raise Misuse(f"unknown: {name!r:.60}; known: {', '.join(_FLOATS)}", field=field)
    return _FLOATS[name]
