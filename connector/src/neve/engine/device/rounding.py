"""Whether two computations of the same KV differ by more than rounding."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import torch

from neve.engine.contract import Difference

# A number is off if it differs by more than this many rounding steps of its dtype, relative to the
# layer's root mean square. Batches of other shapes mostly differ by less than one step.
_STEPS: Final = 16
_LEAST: Final = 1e-3  # float32 that passed through faster kernels (TF32)
_MOST: Final = 0.25  # float8
# A layer differs if more than this share of its numbers is off. Fewer may come from single tokens
# that were routed to another expert.
SHARE: Final = 1 / 8
# Packed formats have no rounding step, so their bytes are compared.
_SHARE_OF_BYTES: Final = 1 / 2
_FLOAT8: Final = {
    "fp8": torch.float8_e4m3fn,
    "fp8_e4m3": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}


@dataclass(frozen=True)
class LayerFormat:
    """`inner`: shape of one engine block, as it was registered. `dtype`: None if
    the bytes are packed in an unknown way."""

    name: str
    inner: tuple[int, ...]
    dtype: torch.dtype | None


def number_type(dtype: torch.dtype, cache_dtype: str) -> torch.dtype | None:
    """The dtype of a KV tensor's numbers; vLLM registers float8 as bytes."""
    return dtype if dtype.is_floating_point else _FLOAT8.get(cache_dtype)


def first_difference(
    layers: Sequence[LayerFormat], computed: Iterator[torch.Tensor], stored: Iterator[torch.Tensor]
) -> str | None:
    """The first layer that differs by more than rounding, in words, and where to look, or None.

    `computed` and `stored` have the bytes (uint8) of every layer, in order.
    """
    for number, (layer, mine, theirs) in enumerate(zip(layers, computed, stored, strict=True)):
        if torch.equal(mine, theirs):
            continue
        if layer.dtype is None:
            off, most = mine != theirs, _SHARE_OF_BYTES
        else:
            off = _off(mine.view(layer.dtype).float(), theirs.view(layer.dtype).float(), layer)
            most = SHARE
        share = int(off.sum()) / off.numel()
        if share > most:
            keys = layer.dtype is not None and _only_keys(off, layer.inner)
            return (
                f"layer={layer.name} off={share:.0%} part={'keys' if keys else 'keys and values'} "
                f"look_at={_advice(number, keys)!r}"
            )
    return None


def first_different_bit(
    layers: Sequence[LayerFormat],
    computed: Iterator[torch.Tensor],
    stored: Iterator[torch.Tensor],
    block_of: Callable[[int, int], int],
) -> Difference | None:
    """Arguments as of `first_difference`; `block_of`: number of a layer and byte of it → engine
    block of the chunk.

    A layer with a number that differs by more than rounding goes before one without.
    """
    nearest: Difference | None = None
    for number, (layer, mine, theirs) in enumerate(zip(layers, computed, stored, strict=True)):
        other = mine != theirs
        if not bool(other.any()):
            continue
        if layer.dtype is None:
            return Difference(layer.name, block_of(number, _first(other)), is_rounding=False)
        off = _off(mine.view(layer.dtype).float(), theirs.view(layer.dtype).float(), layer)
        if bool(off.any()):
            block = block_of(number, _first(off) * layer.dtype.itemsize)
            return Difference(layer.name, block, is_rounding=False)
        nearest = nearest or Difference(layer.name, block_of(number, _first(other)), True)
    return nearest


def _first(true: torch.Tensor) -> int:
    return int(true.flatten().to(torch.uint8).argmax())


def tolerance(dtype: torch.dtype) -> float:
    """Allowed difference, relative to the root mean square."""
    return float(min(_MOST, max(_LEAST, _STEPS * torch.finfo(dtype).eps)))


def _off(mine: torch.Tensor, theirs: torch.Tensor, layer: LayerFormat) -> torch.Tensor:
    assert layer.dtype is not None
    scale = max(float(each.square().mean().sqrt()) for each in (mine, theirs))
    # Not "greater than": a NaN is off, unless both are.
    near = (mine - theirs).abs() <= tolerance(layer.dtype) * scale
    return ~(near | (mine.isnan() & theirs.isnan()))


def _only_keys(off: torch.Tensor, inner: Sequence[int]) -> bool:
    """Whether only keys are off. Kernels put keys before values, but at different depths: of the
    layer, an engine block, a head or a token."""
    for size in (off.numel(), *(math.prod(inner[depth:]) for depth in range(len(inner)))):
        if size % 2 or off.numel() % size:
            continue
        keys, values = off.view(-1, 2, size // 2).float().mean(dim=(0, 2)).tolist()
        if keys > SHARE and values < keys / 4:
            return True
    return False


def _advice(number: int, keys: bool) -> str:
    if keys:
        return "positions: RoPE parameters, --max-model-len, --hf-overrides"
    if number == 0:
        return "weights: revision, quantization, adapters, --model-impl"
    return "what lies between layers: attention backend, quantization, --model-impl"
