"""Copies between a GPU's KV tensors and pinned staging, on streams beside the engine's own.

Each direction has a stream and a buffer on the device. A save gathers a batch into the buffer, by
one kernel a layer or two if a chunk has several engine blocks (one kernel in all if the layers of a
block lie side by side, or with `one_kernel`), then copies it to staging, one copy for each run of
neighbours. A load goes the other way. Events order the streams; no call waits for the whole device.
The engine's thread only launches, except in `fence`.

The kernels are plain torch, so they run on any device (the tests run them on the CPU).
"""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

import torch

from neve import log_events
from neve.engine.device.lossy import LossyCodec

if TYPE_CHECKING:
    from neve.engine.device.rows import RowMover

# Bytes of one direction's buffer: many blocks a kernel, so that launches cost little. At most one
# in `_SHARE_OF_FREE` of the bytes that the engine left free.
_BUFFER_BYTES: Final = 512 << 20
_SHARE_OF_FREE: Final = 8
# A codec computes in float32 beside the buffer, which is then so much smaller.
_CODEC_SHARE: Final = 4


class Layer(Protocol):
    """One registered tensor as integers; its dimension `dim` (0 or 1) counts engine blocks.

    `head`: the dimension that counts KV heads, if a chunk has a payload for each head.
    """

    @property
    def tensor(self) -> torch.Tensor: ...
    @property
    def dim(self) -> int: ...
    @property
    def head(self) -> int | None: ...


class Rows(NamedTuple):
    """A tensor whose first dimension counts engine blocks; `head` as in `Layer`."""

    tensor: torch.Tensor
    head: int | None


def split(layers: Sequence[Layer]) -> list[Rows]:
    """The tensors to copy, in the payload's order.

    `[2, blocks, ...]` becomes two: a payload has the K of all its engine blocks, then their V.
    """
    rows: list[Rows] = []
    for layer in layers:
        if layer.dim == 0:
            rows.append(Rows(layer.tensor, layer.head))
        else:
            head = None if layer.head is None else layer.head - 1
            rows += [Rows(tensor, head) for tensor in layer.tensor.unbind(0)]
    return rows


def _parts(
    every: Sequence[Rows], heads: int, buffer: torch.Tensor, engine_blocks: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Every tensor's part of staging `[chunks, bytes]`, as `[chunks, engine blocks, *rest]`."""
    payloads = buffer.unflatten(1, (heads, -1))
    start = 0
    for tensor, head in every:
        row = list(tensor.shape[1:])
        end = start + engine_blocks * math.prod(row) * tensor.element_size() // heads
        part = payloads[:, :, start:end].view(tensor.dtype)
        if head is None:
            part = part.unflatten(2, (engine_blocks, *row)).squeeze(1)
        else:
            del row[head - 1]
            part = part.unflatten(2, (engine_blocks, *row)).movedim(1, head + 1)
        yield tensor, part
        start = end


def gather(every: Sequence[Rows], heads: int, index: torch.Tensor, buffer: torch.Tensor) -> None:
    """Engine blocks `index` `[chunks, engine blocks of each]` into staging, one row a chunk."""
    flat = index.flatten()
    for tensor, part in _parts(every, heads, buffer, index.shape[1]):
        if part.is_contiguous() or part.shape[1] == 1:  # a row each: no second buffer
            torch.index_select(tensor, 0, flat, out=part.flatten(0, 1))
        else:
            part.copy_(torch.index_select(tensor, 0, flat).view(part.shape))


def scatter(
    every: Sequence[Rows], heads: int, index: torch.Tensor, skip: int, buffer: torch.Tensor
) -> None:
    """Staging into engine blocks `index`, without the first `skip` of the first chunk."""
    flat = index.flatten()[skip:]
    for tensor, part in _parts(every, heads, buffer, index.shape[1]):
        tensor.index_copy_(0, flat, part.flatten(0, 1)[skip:])


def encode_rows(codec: LossyCodec, heads: int, rows: torch.Tensor) -> torch.Tensor:
    """Staging `[chunks, bytes]` with each of its payloads encoded."""
    return codec.encode(rows.view(len(rows) * heads, -1)).view(len(rows), -1)


def decode_rows(codec: LossyCodec, heads: int, stored: torch.Tensor, rows: torch.Tensor) -> None:
    """The other way, into `rows`."""
    payloads = len(rows) * heads
    codec.decode(stored.view(payloads, -1), rows.view(payloads, -1))


def runs(pieces: Sequence[torch.Tensor]) -> Iterator[tuple[int, torch.Tensor]]:
    """Neighbours in memory as one tensor `[pieces, bytes]`, with the number of the first.

    One copy a run: a copy for each of many blocks would fill the launch queue and stop the engine.
    """
    first, size = 0, pieces[0].numel()
    for number in range(1, len(pieces) + 1):
        if number == len(pieces) or not _are_neighbours(pieces[number - 1], pieces[number]):
            yield first, pieces[first].as_strided((number - first, size), (size, 1))
            first = number


def _are_neighbours(piece: torch.Tensor, after: torch.Tensor) -> bool:
    if piece.untyped_storage().data_ptr() != after.untyped_storage().data_ptr():
        return False
    return bool(piece.storage_offset() + piece.numel() == after.storage_offset())


class EventTicket:
    """Done when the stream reached this point. May be used from any thread."""

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self._event = torch.cuda.Event()
        self._event.record(stream)

    def done(self) -> bool:
        return bool(self._event.query())

    def wait(self) -> None:
        self._event.synchronize()


class StreamMark:
    """When the computing stream reached this point, measured by the device."""

    def __init__(self, device: torch.device) -> None:
        self._event = torch.cuda.Event(enable_timing=True)
        self._event.record(torch.cuda.current_stream(device))

    def done(self) -> bool:
        return bool(self._event.query())

    def since(self, earlier: "StreamMark") -> float:
        return float(earlier._event.elapsed_time(self._event)) / 1000


class DeviceCopies:
    """Belongs to the engine's thread, whose current stream is the computing one."""

    def __init__(
        self,
        layers: Sequence[Layer],
        device: torch.device,
        heads: int,
        *,
        sharers: int = 1,
        codec: LossyCodec | None = None,
        one_kernel: bool = False,
    ) -> None:
        """`sharers`: objects of this class on the device, which share the room for buffers.
        `one_kernel`: copy by `neve.engine.device.rows` if that can be.
        `codec`: staging holds encoded payloads, buffers plain ones."""
        self._codec = codec
        self._sharers = sharers
        self._rows = split(layers)
        self._heads = heads
        self._device = device
        self._out = torch.cuda.Stream(device)
        self._in = torch.cuda.Stream(device)
        self._buffers: dict[bool, torch.Tensor] = {}
        self._mover = self._make_mover() if one_kernel else None

    def _make_mover(self) -> "RowMover | None":
        """Compiled now, and only if it moves the same bytes as plain torch here."""
        if self._heads > 1:
            return None
        try:
            from neve.engine.device.rows import RowMover

            mover = RowMover([tensor for tensor, _ in self._rows])
            if not self._is_right(mover):
                raise RuntimeError("the kernel moves other bytes than plain torch")
        except Exception as error:  # plain torch does the same
            log_events.COPIES_BY_LAYER.log(detail=error)
            return None
        return mover

    def _is_right(self, mover: "RowMover") -> bool:
        """Tries the last two engine blocks, as one chunk; nothing is known of them yet, and
        they keep what they hold."""
        last = min(len(tensor) for tensor, _ in self._rows) - 1
        index = torch.tensor([[last, max(0, last - 1)]], device=self._device)
        held, found = (
            torch.empty((1, self._plain_bytes([[0, 0]])), dtype=torch.uint8, device=self._device)
            for _ in range(2)
        )
        gather(self._rows, 1, index, held)
        tried = torch.randint_like(held, 256)
        try:
            scatter(self._rows, 1, index, 0, tried)
            mover.out_of(index, found)
            is_right = torch.equal(found, tried)
            tried = torch.randint_like(held, 256)
            mover.into(index, 0, tried)
            gather(self._rows, 1, index, found)
            return bool(is_right and torch.equal(found, tried))
        finally:
            scatter(self._rows, 1, index, 0, held)

    def move_out(
        self, blocks: Sequence[Sequence[int]], staging: Sequence[torch.Tensor]
    ) -> EventTicket:
        """Copies after the launched computation. The engine blocks must not change before the
        ticket is done."""
        self._out.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._out):
            buffer = self._buffer(inwards=False, payload_bytes=self._plain_bytes(blocks))
            for first in range(0, len(blocks), len(buffer)):
                pieces = staging[first : first + len(buffer)]
                rows = buffer[: len(pieces)]
                index = self._index(blocks[first : first + len(buffer)])
                if self._mover is not None:
                    self._mover.out_of(index, rows)
                else:
                    gather(self._rows, self._heads, index, rows)
                if self._codec is not None:
                    rows = encode_rows(self._codec, self._heads, rows)
                for at, run in runs(pieces):
                    run.copy_(rows[at : at + len(run)], non_blocking=True)
        return EventTicket(self._out)

    def move_in(
        self,
        blocks: Sequence[Sequence[int]],
        skip: int,
        staging: Sequence[torch.Tensor],
    ) -> EventTicket:
        """Copies after the launched computation, which may still use these blocks for others."""
        self._in.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._in):
            buffer = self._buffer(inwards=True, payload_bytes=self._plain_bytes(blocks))
            for first in range(0, len(blocks), len(buffer)):
                end = first + len(buffer)
                pieces = staging[first:end]
                rows = buffer[: len(pieces)]
                stored = rows
                if self._codec is not None:
                    shape = (len(pieces), len(pieces[0]))
                    stored = torch.empty(shape, dtype=torch.uint8, device=self._device)
                for at, run in runs(pieces):
                    stored[at : at + len(run)].copy_(run, non_blocking=True)
                if self._codec is not None:
                    decode_rows(self._codec, self._heads, stored, rows)
                index = self._index(blocks[first:end])
                skipped = 0 if first else skip
                if self._mover is not None:
                    self._mover.into(index, skipped, rows)
                else:
                    scatter(self._rows, self._heads, index, skipped, rows)
        return EventTicket(self._in)

    def fence(self) -> None:
        """Waits for the copies out of engine blocks, so that the blocks may change hands.

        The host waits, not only the computing stream: another connector may load into these blocks
        on streams that wait for no other (as vLLM's do, v1/kv_offload/cpu/gpu_worker.py).
        """
        EventTicket(self._out).wait()

    def release(self) -> None:
        """Frees the buffers; no copy may be under way."""
        self._buffers.clear()

    def _plain_bytes(self, blocks: Sequence[Sequence[int]]) -> int:
        """Of a chunk's payloads, before the codec."""
        rows = (math.prod(tensor.shape[1:]) * tensor.element_size() for tensor, _ in self._rows)
        return int(len(blocks[0]) * sum(rows))

    def _buffer(self, *, inwards: bool, payload_bytes: int) -> torch.Tensor:
        """Made on the stream that uses it, so that stream order protects it."""
        buffer = self._buffers.get(inwards)
        if buffer is None or buffer.shape[1] != payload_bytes:
            free_bytes, _ = torch.cuda.mem_get_info(self._device)
            room_bytes = min(_BUFFER_BYTES, free_bytes // _SHARE_OF_FREE) // self._sharers
            room_bytes //= 1 if self._codec is None else _CODEC_SHARE
            rows = max(1, room_bytes // payload_bytes)
            buffer = torch.empty((rows, payload_bytes), dtype=torch.uint8, device=self._device)
            self._buffers[inwards] = buffer
        return buffer

    def _index(self, blocks: Sequence[Sequence[int]]) -> torch.Tensor:
        """From pinned memory: a copy from pageable memory would wait for the stream."""
        return torch.tensor(blocks).pin_memory().to(self._device, non_blocking=True)
