"""Lossy codecs of KV, by plain torch: they run on the device where the KV is, and on the CPU.

A payload is cut into vectors of `vector` numbers, one head of one token in the usual layouts. The
encoded payload has the numbers of all vectors, then their scales, bf16, one each:

    int8   round(x ÷ scale), scale = largest |x| ÷ 127
    fp8    x ÷ scale as float8 e4m3, scale = largest |x| ÷ 448

What a codec stores is part of a space's identity: exact blocks and encoded ones never meet.
The core computes the same bits on a CPU (src/core/quantize.h).
"""

from dataclasses import dataclass
from typing import Final

import torch

from neve import _core
from neve.errors import Misuse

INT8: Final = "int8"
FP8: Final = "fp8"
LOSSY: Final = (INT8, FP8)
SCALE_BYTES: Final = 2
_LARGEST: Final = {INT8: 127.0, FP8: 448.0}
_CODES: Final = {INT8: torch.int8, FP8: torch.float8_e4m3fn}
_CORE: Final = {torch.bfloat16: "bfloat16", torch.float32: "float32"}
DTYPES: Final = (torch.bfloat16, torch.float16, torch.float32)


@dataclass(frozen=True)
class LossyCodec:
    """Encodes rows of bytes that are numbers of `dtype`, in vectors of `vector` numbers.

    Raises `Misuse` for an unknown codec, and for KV that is encoded already, such as fp8.
    """

    name: str
    dtype: torch.dtype
    vector: int

    def __post_init__(self) -> None:
        if self.name not in LOSSY:
            raise Misuse(f"need one of {LOSSY}, got {self.name!r}", field="codec")
        if self.dtype not in DTYPES:
            raise Misuse(f"cannot encode KV of {self.dtype}", field="codec")

    def encoded_bytes(self, plain_bytes: int) -> int:
        """Raises `Misuse` unless they are whole vectors."""
        width: int = self.dtype.itemsize
        numbers, odd = divmod(plain_bytes, width)
        vectors, rest = divmod(numbers, self.vector)
        if odd or rest:
            raise Misuse(f"{plain_bytes} bytes are no vectors of {self.vector} {self.dtype}")
        return numbers + vectors * SCALE_BYTES

    def encode(self, plain: torch.Tensor) -> torch.Tensor:
        """`[rows, bytes]` to `[rows, encoded bytes]`, uint8, on the same device and stream.

        What is no finite number becomes 0.
        """
        if (kind := self._on_cpu(plain)) is not None:
            size = self.encoded_bytes(plain.shape[1])
            encoded = torch.empty((len(plain), size), dtype=torch.uint8)
            for row, out in zip(plain, encoded, strict=True):
                assert _core.quantize(self.name, kind, self.vector, row, out)
            return encoded
        limit = _LARGEST[self.name]
        vectors = plain.view(self.dtype).unflatten(1, (-1, self.vector)).float()
        vectors = vectors.nan_to_num_(0.0, 0.0, 0.0)
        scale = (vectors.abs().amax(-1, keepdim=True) / limit).to(torch.bfloat16)
        inverse = torch.where(scale > 0, 1.0 / scale.float(), 0.0)
        scaled = (vectors * inverse).clamp_(-limit, limit)
        codes = scaled.round_() if self.name == INT8 else scaled
        parts = (codes.to(_CODES[self.name]).view(torch.uint8), scale.view(torch.uint8))
        return torch.cat([part.flatten(1) for part in parts], dim=1)

    def decode(self, encoded: torch.Tensor, out: torch.Tensor) -> None:
        """The other way, into `out` `[rows, bytes]`."""
        if (kind := self._on_cpu(out)) is not None:
            for row, plain in zip(encoded, out, strict=True):
                assert _core.dequantize(self.name, kind, self.vector, row, plain)
            return
        numbers = out.shape[1] // self.dtype.itemsize
        codes = encoded[:, :numbers].contiguous().view(_CODES[self.name])
        scale = encoded[:, numbers:].contiguous().view(torch.bfloat16).float().unsqueeze(-1)
        plain = codes.float().unflatten(1, (-1, self.vector)) * scale
        out.copy_(plain.to(self.dtype).flatten(1).view(torch.uint8))

    def _on_cpu(self, rows: torch.Tensor) -> str | None:
        """The core's name of the dtype if it computes these rows, which it does without the GIL."""
        return _CORE.get(self.dtype) if rows.device.type == "cpu" else None


def relative_error(exact: torch.Tensor, decoded: torch.Tensor) -> float:
    """Root of the mean square error over that of the numbers; 0 for KV of zeros."""
    square = exact.float().square().mean().item()
    if square == 0:
        return 0.0
    return float(((exact.float() - decoded.float()).square().mean().item() / square) ** 0.5)
