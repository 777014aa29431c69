"""Layers whose memory of a sequence has a fixed size: Mamba, linear attention, convolutions.

Each function returns the group of one layer: one state for each sequence. A state's last inputs of
the convolution are in the model's dtype, the recurrent part in a dtype of its own.

Source: `MambaStateShapeCalculator` (vllm/model_executor/layers/mamba/mamba_utils.py, 0.32), without
speculative decoding.
"""

from collections.abc import Callable

from neve.errors import Misuse
from neve.formats.parts import PartKind
from neve.planner.sizes.fields import Fields
from neve.planner.sizes.groups import KvGroup
from neve.planner.sizes.widths import Widths


def _divided(count: int, tp: int) -> int:
    if count % tp:
        raise Misuse(f"{count} can't be divided among {tp} ranks", field="tp")
    return count // tp


def _state(words: str, tp: int, size: Callable[[int], int]) -> KvGroup:
    """`size`: bytes of a rank's state, by the number of ranks."""
    return KvGroup(PartKind.STATE, words, 1, size(1), size(tp))


def mamba1(words: str, width: int, state: int, kernel: int, widths: Widths, tp: int) -> KvGroup:
    """`width`: channels of the inner layer."""

    def size(ranks: int) -> int:
        values = _divided(width, ranks)
        return values * ((kernel - 1) * widths.model_bytes + state * _recurrent(widths))

    return _state(words, tp, size)


def mamba2(
    *,
    inner: int,
    groups: int,
    heads: int,
    head: int,
    state: int,
    kernel: int,
    widths: Widths,
    recurrent_bytes: int,
    tp: int,
) -> KvGroup:
    def size(ranks: int) -> int:
        held = groups if groups % ranks == 0 else ranks  # groups are repeated for heads' sake
        channels = _divided(inner + 2 * held * state, ranks)
        conv = (kernel - 1) * channels * widths.model_bytes
        return conv + _divided(heads, ranks) * head * state * recurrent_bytes

    return _state(f"Mamba2 {heads} × {head} × {state}", tp, size)


def gated_delta(fields: Fields, widths: Widths, tp: int) -> KvGroup:
    """Gated DeltaNet: Qwen3-Next, Qwen3.5, Olmo Hybrid."""
    key_heads, heads = (
        fields.number("linear_num_key_heads"),
        fields.number("linear_num_value_heads"),
    )
    key, value = fields.number("linear_key_head_dim"), fields.number("linear_value_head_dim")
    kernel = fields.number("linear_conv_kernel_dim")
    recurrent = widths.state(fields, "mamba_ssm_dtype")

    def size(ranks: int) -> int:
        channels = _divided(2 * key * key_heads + value * heads, ranks)
        conv = (kernel - 1) * channels * widths.model_bytes
        return conv + _divided(heads, ranks) * value * key * recurrent

    return _state(f"Gated DeltaNet {heads} × {value} × {key}", tp, size)


def delta(fields: Fields, widths: Widths, tp: int) -> KvGroup:
    """Kimi Delta Attention. Its recurrent state is in float32."""
    own = fields.inside("linear_attn_config")
    heads, head = own.number("num_heads"), own.number("head_dim")
    kernel = own.number("short_conv_kernel_size")
    recurrent = widths.state(fields, default="float32")

    def size(ranks: int) -> int:
        channels = _divided(3 * heads * head, ranks)
        conv = (kernel - 1) * channels * widths.model_bytes
        return conv + _divided(heads, ranks) * head * head * recurrent

    return _state(f"KDA {heads} × {head} × {head}", tp, size)


def lightning(fields: Fields, widths: Widths, tp: int, heads: int, head: int) -> KvGroup:
    """Linear attention without a convolution: MiniMax-Text-01."""
    return _state(
        f"linear attention {heads} × {head} × {head}",
        tp,
        lambda ranks: _divided(heads, ranks) * head * head * widths.state(fields),
    )


def short_conv(width: int, kernel: int, widths: Widths, tp: int) -> KvGroup:
    """The last inputs of a short convolution: LFM2."""
    return _state(
        f"convolution {width} × {kernel}",
        tp,
        lambda ranks: (kernel - 1) * _divided(width, ranks) * widths.model_bytes,
    )


def _recurrent(widths: Widths) -> int:
    return widths.model_bytes if widths.state_bytes is None else widths.state_bytes
