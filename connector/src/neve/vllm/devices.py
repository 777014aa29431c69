"""Copies between a GPU's KV tensors and pinned staging, behind the engine's own work.

Each direction has a stream and a buffer on the device. A batch is gathered into the buffer by one
kernel a layer, and then moved as one contiguous run a block; a load goes the other way. Streams are
ordered by events; nobody ever waits for the whole device. The engine's thread only launches.

The kernels are plain torch, so they run on any device (the tests run them on the CPU).
"""

from collections.abc import Iterator, Sequence
from typing import Final, Protocol

import torch

# The buffer of one direction: a few blocks are enough to keep the bus busy.
_BUFFER_BYTES: Final = 64 << 20


class Layer(Protocol):
    """One registered tensor as integers; its dimension `dim` counts engine blocks."""

    @property
    def tensor(self) -> torch.Tensor: ...
    @property
    def dim(self) -> int: ...
    @property
    def block_bytes(self) -> int: ...


def payload_parts(
    layers: Sequence[Layer], buffer: torch.Tensor, engine_blocks: int
) -> Iterator[tuple[Layer, torch.Tensor]]:
    """Every layer's part of a buffer of payloads `[blocks, bytes]`, as `[blocks, *rows]`."""
    start = 0
    for layer in layers:
        end = start + layer.block_bytes * engine_blocks
        shape = list(layer.tensor.shape)
        shape[layer.dim] = engine_blocks
        part = buffer[:, start:end].view(layer.tensor.dtype)
        yield layer, part.unflatten(1, shape)
        start = end


def gather(layers: Sequence[Layer], index: torch.Tensor, buffer: torch.Tensor) -> None:
    """Engine blocks `index` `[blocks, engine blocks of each]` into payloads, one row a block."""
    for layer, part in payload_parts(layers, buffer, index.shape[1]):
        for place in range(index.shape[1]):
            rows = torch.index_select(layer.tensor, layer.dim, index[:, place])
            part.select(layer.dim + 1, place).copy_(rows.movedim(layer.dim, 0))


def scatter(layers: Sequence[Layer], index: torch.Tensor, skip: int, buffer: torch.Tensor) -> None:
    """Payloads into engine blocks `index`, without the first `skip` of the first block."""
    for layer, part in payload_parts(layers, buffer, index.shape[1]):
        for place in range(index.shape[1]):
            first = 1 if place < skip else 0
            rows = part.select(layer.dim + 1, place)[first:].movedim(0, layer.dim)
            layer.tensor.index_copy_(layer.dim, index[first:, place], rows)


class EventTicket:
    """Done when the stream has come so far. For any thread."""

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self._event = torch.cuda.Event()
        self._event.record(stream)

    def done(self) -> bool:
        return bool(self._event.query())

    def wait(self) -> None:
        self._event.synchronize()


class DeviceCopies:
    """Belongs to the engine's thread, whose current stream is the one that computes."""

    def __init__(self, layers: Sequence[Layer], device: torch.device) -> None:
        self._layers = layers
        self._device = device
        self._out = torch.cuda.Stream(device)
        self._in = torch.cuda.Stream(device)
        self._buffers: dict[bool, torch.Tensor] = {}

    def move_out(
        self, blocks: Sequence[Sequence[int]], staging: Sequence[torch.Tensor]
    ) -> EventTicket:
        """After what is computed now. The engine blocks must not change before the ticket."""
        self._out.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._out):
            buffer = self._buffer(inwards=False, payload_bytes=len(staging[0]))
            for first in range(0, len(blocks), len(buffer)):
                pieces = staging[first : first + len(buffer)]
                rows = buffer[: len(pieces)]
                gather(self._layers, self._index(blocks[first : first + len(buffer)]), rows)
                for piece, row in zip(pieces, rows, strict=True):
                    piece.copy_(row, non_blocking=True)
        return EventTicket(self._out)

    def move_in(
        self,
        blocks: Sequence[Sequence[int]],
        skip: int,
        staging: Sequence[torch.Tensor],
    ) -> EventTicket:
        """After what is computed now, which may still use these engine blocks for somebody else."""
        self._in.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._in):
            buffer = self._buffer(inwards=True, payload_bytes=len(staging[0]))
            for first in range(0, len(blocks), len(buffer)):
                end = first + len(buffer)
                pieces = staging[first:end]
                rows = buffer[: len(pieces)]
                for piece, row in zip(pieces, rows, strict=True):
                    row.copy_(piece, non_blocking=True)
                index = self._index(blocks[first:end])
                scatter(self._layers, index, 0 if first else skip, rows)
        return EventTicket(self._in)

    def fence(self) -> None:
        """What is computed from now on comes after the copies under way. The host doesn't wait."""
        torch.cuda.current_stream(self._device).wait_stream(self._out)

    def _buffer(self, *, inwards: bool, payload_bytes: int) -> torch.Tensor:
        """Made on the stream that uses it, which orders its users."""
        buffer = self._buffers.get(inwards)
        if buffer is None or buffer.shape[1] != payload_bytes:
            rows = max(1, _BUFFER_BYTES // payload_bytes)
            buffer = torch.empty((rows, payload_bytes), dtype=torch.uint8, device=self._device)
            self._buffers[inwards] = buffer
        return buffer

    def _index(self, blocks: Sequence[Sequence[int]]) -> torch.Tensor:
        """From pinned memory: a copy from pageable memory would wait for the stream."""
        return torch.tensor(blocks).pin_memory().to(self._device, non_blocking=True)
