"""int4 of KV: keys by channel, values by token, as in KIVI (arXiv 2402.02750). Plain torch.

Keys have channels of large numbers, so each channel of a head has a scale of its own, over the
tokens of one engine block; values have none, so each token has one, over the head. A number is
`zero + scale × code`, with the least number as zero, and half a byte for the code. A payload is
encoded as keys, then values; of either come the codes, the scales and the zeros, the latter bf16.

Engine blocks are encoded apart, so a payload of more of them takes as many times the bytes. The
core computes the same bits on a CPU (src/core/quantize.h).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import torch

from neve import _core
from neve.engine.device.lossy import DTYPES, LossyCodec
from neve.errors import Misuse

INT4: Final = "int4"
_STEPS: Final = 15
_LEAST_SCALE: Final = 2.0**-122  # the inverse of smaller ones is not finite, or nearly
_GROUP_BYTES: Final = 4  # scale and zero
_PARTS: Final = ("keys", "values")


class Block(NamedTuple):
    """One layer's engine block as payloads have it. `sizes`: of its dimensions, in the order of
    the bytes, without that of KV heads if payloads are one head's. `tokens`, `parts`: which of them
    count tokens, and keys and values; `parts` is None if either has a half of the last one, or if
    the layer has keys and values `apart`, all engine blocks of one before those of the other."""

    sizes: tuple[int, ...]
    tokens: int
    parts: int | None
    apart: bool


def block_of(
    sizes: Sequence[int],
    strides: Sequence[int] | None,
    *,
    apart: bool,
    is_cut: bool,
    tokens: int,
    vector: int,
) -> Block:
    """`sizes`: of one engine block's dimensions as an engine registers them. `strides`: None if
    payloads keep their order, else that of memory. `is_cut`: the first one counts smaller blocks of
    a kernel. Raises `Misuse` for what has no keys and values
    of `vector` numbers, or no single dimension of `tokens`."""
    first, last = int(is_cut), len(sizes) - 1
    tokens //= sizes[0] if is_cut else 1
    parts = None
    if sizes[last] == vector and not apart and sizes[first] == 2:
        parts = first
    is_known = sizes[last] == (vector if apart or parts is not None else 2 * vector)
    counting = [n for n in range(first, last) if sizes[n] == tokens and n != parts]
    order = list(range(len(sizes)))
    if strides is not None:
        order.sort(key=lambda n: -strides[n])
    if not is_known or len(counting) != 1 or order[-1] != last or vector % 2:
        raise Misuse(
            f"int4 needs to tell keys, values and {tokens} tokens of {vector} numbers in an engine "
            f"block of {tuple(sizes)}: use int8",
            field="codec",
        )
    return Block(
        tuple(sizes[n] for n in order),
        order.index(counting[0]),
        None if parts is None else order.index(parts),
        apart,
    )


class Form(NamedTuple):
    """All dimensions of a payload, in the order of its bytes; -1 is that of engine blocks."""

    sizes: tuple[int, ...]
    tokens: int
    parts: int | None


def form_of(blocks: Sequence[Block], *, joined: bool) -> Form:
    """`joined`: the layers of an engine block lie side by side. Raises `Misuse` if layers differ:
    then they have no dimension."""
    block, layers = blocks[0], len(blocks)
    if any(each != block for each in blocks):
        raise Misuse(f"int4 needs layers of one shape, got {set(blocks)}: use int8", field="codec")
    front = (layers, 2, -1) if block.apart else (-1, layers) if joined else (layers, -1)
    at = len(front)
    parts = 1 if block.apart else None if block.parts is None else block.parts + at
    return Form((*front, *block.sizes), block.tokens + at, parts)


@dataclass(frozen=True)
class Int4Codec(LossyCodec):
    """As `LossyCodec`, of payloads of one `form`."""

    form: Form

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise Misuse(f"cannot encode KV of {self.dtype}", field="codec")

    @property
    def tokens(self) -> int:
        return self.form.sizes[self.form.tokens]

    def encoded_bytes(self, plain_bytes: int) -> int:
        """Raises `Misuse` unless they are whole matrices of keys and of values."""
        pair_bytes = 2 * self.tokens * self.vector * self.dtype.itemsize
        pairs, rest = divmod(plain_bytes, pair_bytes)
        if rest:
            raise Misuse(
                f"{plain_bytes} bytes are no keys and values of {self.tokens} × {self.vector} "
                f"{self.dtype}",
                field="codec",
            )
        return int(pairs * sum(self._matrix_bytes(part) for part in _PARTS))

    def _matrix_bytes(self, part: str) -> int:
        groups = self.vector if part == "keys" else self.tokens
        return self.tokens * self.vector // 2 + groups * _GROUP_BYTES

    def encode(self, plain: torch.Tensor) -> torch.Tensor:
        kind, rows = self._on_cpu(plain), len(plain)
        encoded = []
        for part, view in zip(_PARTS, self._split(plain), strict=True):
            matrices = view.reshape(rows, -1, self.tokens, self.vector)
            if kind is None:
                encoded.append(self._by_torch(part, matrices))
                continue
            size = matrices.shape[1] * self._matrix_bytes(part)
            out = torch.empty((rows, size), dtype=torch.uint8)
            numbers = matrices.contiguous().flatten(1).view(torch.uint8)
            for row, room in zip(numbers, out, strict=True):
                assert _core.quantize_int4(part, kind, self.tokens, self.vector, row, room)
            encoded.append(out)
        return torch.cat(encoded, dim=1)

    def decode(self, encoded: torch.Tensor, out: torch.Tensor) -> None:
        kind, rows, start = self._on_cpu(out), len(out), 0
        for part, view in zip(_PARTS, self._split(out), strict=True):
            count = view[0].numel() // (self.tokens * self.vector)
            end = start + count * self._matrix_bytes(part)
            mine, start = encoded[:, start:end], end
            if kind is None:
                view.copy_(self._from_torch(part, mine, count).view(view.shape))
                continue
            numbers = torch.empty((rows, view[0].numel()), dtype=self.dtype)
            for row, room in zip(mine, numbers.view(torch.uint8), strict=True):
                assert _core.dequantize_int4(part, kind, self.tokens, self.vector, row, room)
            view.copy_(numbers.view(view.shape))

    def _split(self, rows: torch.Tensor) -> Sequence[torch.Tensor]:
        """Views of keys and values, `[rows, …, tokens, numbers]`."""
        sizes, tokens, parts = self.form
        shaped = rows.view(self.dtype).unflatten(1, sizes)
        if parts is None:
            both = shaped.chunk(2, -1)
            return [each.movedim(tokens + 1, -2) for each in both]
        tokens += 1 if tokens < parts else 0  # `unbind` takes a dimension away
        return [each.movedim(tokens, -2) for each in shaped.unbind(parts + 1)]

    def _by_torch(self, part: str, matrices: torch.Tensor) -> torch.Tensor:
        numbers = matrices.float().nan_to_num(0.0, 0.0, 0.0)
        group = -2 if part == "keys" else -1
        low = numbers.amin(group, keepdim=True) + 0.0  # no negative 0
        high = numbers.amax(group, keepdim=True) + 0.0
        share = 1.0 / _STEPS
        scale, zero = (high * share - low * share).bfloat16(), low.bfloat16()
        inverse = torch.where(scale.float() >= _LEAST_SCALE, 1.0 / scale.float(), 0.0)
        codes = ((numbers - zero.float()) * inverse).clamp_(0, _STEPS).round_().to(torch.uint8)
        lower, upper = codes.chunk(2, -1)
        found = (lower | upper << 4, scale.view(torch.uint8), zero.view(torch.uint8))
        return torch.cat([each.flatten(1) for each in found], dim=1)

    def _from_torch(self, part: str, encoded: torch.Tensor, count: int) -> torch.Tensor:
        """`[rows, matrices, tokens, numbers]`."""
        numbers_bytes = count * self.tokens * self.vector // 2
        packed = encoded[:, :numbers_bytes].reshape(-1, count, self.tokens, self.vector // 2)
        codes = torch.cat((packed & 15, packed >> 4), dim=-1).float()
        groups = encoded[:, numbers_bytes:].contiguous().view(torch.bfloat16).float()
        of_group = (1, self.vector) if part == "keys" else (self.tokens, 1)
        scale, zero = (each.unflatten(1, (count, *of_group)) for each in groups.chunk(2, 1))
        return (codes * scale + zero).to(self.dtype)
