"""One kernel that moves engine blocks of all layers, where a GPU has Triton (PyTorch brings it).

Plain torch takes a kernel for each layer. Their launches keep the engine's thread 2 to 5 ms for
each wave of a load, longer than its bytes are on their way (docs/benchmarks.md). Import this module
only where plain torch can stand in for it.
"""

from collections.abc import Sequence
from typing import Final

import torch
import triton  # type: ignore[import-not-found, unused-ignore]  # beside PyTorch for GPUs only
import triton.language as tl  # type: ignore[import-not-found, unused-ignore]

# 8-byte words of one program: 8 KiB of a row.
_WORDS: Final = 1024


class RowMover:
    """Moves rows between tensors `[engine blocks, words]`, all alike, and payloads.

    A payload has, tensor by tensor, the rows of the chunk's engine blocks (see
    `neve.engine.device.devices`). Raises `ValueError` for tensors that are not so.
    """

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        first = tensors[0]
        if any(
            each.dim() != 2
            or each.dtype != torch.int64
            or each.shape != first.shape
            or each.stride() != first.stride()
            or each.stride(1) != 1
            for each in tensors
        ):
            raise ValueError("layers differ, or a block's bytes are not contiguous")
        self._tensors = list(tensors)  # which keeps their memory
        self._bases = torch.tensor([each.data_ptr() for each in tensors]).to(first.device)

    def out_of(self, index: torch.Tensor, payloads: torch.Tensor) -> None:
        """Engine blocks `index` `[chunks, engine blocks of each]` into `[chunks, bytes]`."""
        self._move(index, 0, payloads, into=False)

    def into(self, index: torch.Tensor, skip: int, payloads: torch.Tensor) -> None:
        """The other way, without the first `skip` engine blocks of the first chunk."""
        self._move(index, skip, payloads, into=True)

    def _move(self, index: torch.Tensor, skip: int, payloads: torch.Tensor, *, into: bool) -> None:
        words = payloads.view(torch.int64)
        layers, row_words = len(self._tensors), self._tensors[0].shape[1]
        assert words.is_contiguous()
        assert words.shape[1] == layers * index.shape[1] * row_words
        if index.numel() <= skip:
            return
        grid = (index.numel() - skip, layers, -(-row_words // _WORDS))
        _kernel[grid](
            self._bases, index, words, skip, index.shape[1], row_words,
            self._tensors[0].stride(0), words.shape[1], INTO=into, WORDS=_WORDS,
        )  # fmt: skip


def _move_rows(  # type: ignore[no-untyped-def]  # Triton reads annotations, and knows its own
    bases, index, payloads, skip, each, row_words, stride, payload_words,
    INTO: tl.constexpr, WORDS: tl.constexpr,
):  # fmt: skip
    item = tl.program_id(0).to(tl.int64) + skip
    layer = tl.program_id(1).to(tl.int64)
    at = tl.program_id(2) * WORDS + tl.arange(0, WORDS)
    inside = at < row_words
    block = tl.load(index + item).to(tl.int64)
    row = tl.load(bases + layer).to(tl.pointer_type(tl.int64)) + block * stride + at
    payload = payloads + item // each * payload_words
    payload += (layer * each + item % each) * row_words + at
    if INTO:
        tl.store(row, tl.load(payload, mask=inside), mask=inside)
    else:
        tl.store(payload, tl.load(row, mask=inside), mask=inside)


# Compiled for all sizes at once: it takes a second, which no step has.
_SIZES: Final = ["skip", "each", "row_words", "stride", "payload_words"]
_kernel: Final = triton.jit(do_not_specialize=_SIZES)(_move_rows)
