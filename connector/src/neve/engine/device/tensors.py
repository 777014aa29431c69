"""Copies between the engine's KV tensors and staging memory.

A payload holds, layer by layer in registered order, the bytes of the chunk's engine blocks. If the
engine lays the layers of a block side by side, a payload holds whole engine blocks of all layers
instead. The bytes of an engine block are opaque: the attention kernel defines them. `layout`
describes them by shape and stride, never by engine version.

With `heads`, a chunk has one payload for each KV head, with that head's bytes of every layer, in
the order of the tensor's other dimensions. `layout` then names neither the rank's number of heads
nor strides: these follow the TP size, while the meaning of the bytes does not.

With a lossy codec (`neve.engine.device.lossy`) a payload is encoded before it leaves the device.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b

import torch

from neve.engine.contract import Difference, Mark, Ticket
from neve.engine.device.devices import DeviceCopies, StreamMark, gather, split
from neve.engine.device.int4 import INT4, Block, Int4Codec, block_of, form_of
from neve.engine.device.loss_probe import LossProbe
from neve.engine.device.lossy import DTYPES, LossyCodec
from neve.engine.device.rounding import (
    LayerFormat,
    first_difference,
    first_different_bit,
    number_type,
)
from neve.engine.staging import Done
from neve.errors import Misuse
from neve.formats.space import EXACT

# Pinned memory allocated at once: PyTorch rounds up to a power of two.
_SLAB_BYTES = 256 << 20

# Bytes are moved as integers: some dtypes (float8) have no index_select on some devices.
_INTEGER = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class _Layer:
    name: str
    tensor: torch.Tensor  # integers, any shape; dimension `dim` counts engine blocks
    dim: int
    dtype: torch.dtype
    head: int | None = None  # the dimension that counts KV heads, where payloads are one head's

    @property
    def block_bytes(self) -> int:
        rows = self.tensor.shape[self.dim]
        return int(self.tensor.numel() // rows * self.tensor.element_size())

    def describe(self) -> str:
        """Shape and strides of one engine block, free of how many blocks there are.

        Strides at or above a block's are a matter of memory size, so they are written as `*`.
        """
        parts = []
        edge = 0 if self.head is not None else self.tensor.stride(self.dim)
        for dim, (size, stride) in enumerate(
            zip(self.tensor.shape, self.tensor.stride(), strict=True)
        ):
            if dim == self.dim:
                parts.append("N")
            elif dim == self.head:
                parts.append("H")
            else:
                parts.append(f"{size}:{'*' if stride >= edge else stride}")
        return f"{self.dtype}[{','.join(parts)}]"


class StagingBlock:
    """Memory for one chunk's payloads. `views`: one for each of `layers`, shaped like the layer's
    engine blocks. Made by `KvTensors.allocate`.
    """

    def __init__(
        self, memory: torch.Tensor, layers: Sequence[_Layer], engine_blocks: int, heads: int
    ) -> None:
        self.bytes = memory
        self.memory = memoryview(memory.numpy())
        self.views: list[torch.Tensor] = []
        payloads = memory.view(heads, -1)
        start = 0
        for layer in layers:
            end = start + layer.block_bytes * engine_blocks // heads
            shape = list(layer.tensor.shape)
            shape[layer.dim] = engine_blocks
            view = payloads[:, start:end].view(layer.tensor.dtype)
            if layer.head is None:
                view = view.view(shape)
            else:
                del shape[layer.head]
                view = view.unflatten(1, shape).movedim(0, layer.head)
            self.views.append(view)
            start = end


class KvTensors:
    """The registered KV tensors of one rank.

    Raises `Misuse` when a tensor isn't made of whole engine blocks in a way known here.
    """

    def __init__(
        self,
        kv_caches: Mapping[str, torch.Tensor],
        *,
        num_blocks: int,
        block_tokens: int,
        kernels: Mapping[str, str] | None = None,
        heads: int | None = None,
        cache_dtype: str = "auto",
        sharers: int = 1,
        one_kernel: bool = False,
        codec: str = EXACT,
        vector: int = 0,
    ) -> None:
        """`kernels` names what wrote a layer's bytes (backend, ISA): equal shapes don't prove equal
        meaning. `heads`: KV heads that every layer has here, when payloads are to be one head's.
        `cache_dtype`: the engine's name for what it keeps in tensors of bytes. `sharers`,
        `one_kernel`: as in `DeviceCopies`. `codec`: to store with loss, in vectors of `vector`
        numbers; KV that is fp8 already is left as it is."""
        self._layers: list[_Layer] = []
        seen = set()
        for name, tensor in kv_caches.items():
            if not isinstance(tensor, torch.Tensor):
                raise Misuse(f"layer {name} has {type(tensor).__name__}, not one KV tensor")
            place = (tensor.data_ptr(), tuple(tensor.shape), tuple(tensor.stride()))
            if place in seen:  # Layers that share one KV tensor are stored once.
                continue
            seen.add(place)
            layer = _as_layer(name, tensor, num_blocks)
            if heads is not None:
                dim = _head_dim(name, tensor.shape, num_blocks, heads, block_tokens)
                more = layer.tensor.dim() - tensor.dim()  # 1 where blocks are cut for a kernel
                layer = replace(layer, head=dim + more)
            self._layers.append(layer)
        if not self._layers:
            raise Misuse("the engine registered no KV tensors")
        every = [
            f"{layer.name}={layer.describe()}@{(kernels or {}).get(layer.name, '')}"
            for layer in self._layers
        ]
        self._formats = [
            LayerFormat(
                layer.name,
                tuple(size for dim, size in enumerate(layer.tensor.shape) if dim != layer.dim),
                number_type(layer.dtype, cache_dtype),
            )
            for layer in self._layers
        ]
        self.dtypes = ",".join(sorted({str(layer.dtype) for layer in self._layers}))
        kind = "" if heads is None else "by KV head: "
        registered = [
            (layer, layer.tensor.dim() > kv_caches[layer.name].dim()) for layer in self._layers
        ]
        if heads is None:
            self._layers = [_as_run(layer) for layer in self._layers]
            joined = _joined(self._layers)
            if joined is not None:
                self._layers, kind = [joined], "side by side: "
        digest = blake2b("\n".join(every).encode(), digest_size=16).hexdigest()
        self.layout = f"{kind}{len(every)} layers, first {every[0][:400]}, all {digest}"
        self._codec = self._codec_of(codec, vector, registered, block_tokens)
        if self._codec is not None:
            self.layout = f"{codec} of {vector}: {self.layout}"
        self._probe = None if self._codec is None else LossProbe(self._codec)
        self._device = self._layers[0].tensor.device
        self.defers = self._device.type == "cuda"
        self._heads = heads or 1
        self._copies = (
            DeviceCopies(
                self._layers,
                self._device,
                self._heads,
                sharers=sharers,
                codec=self._codec,
                one_kernel=one_kernel,
            )
            if self.defers
            else None
        )
        self._plain_bytes = sum(layer.block_bytes for layer in self._layers)
        self.block_bytes = self._plain_bytes
        if self._codec is not None:
            for layer in self._layers:  # else a vector would have numbers of two layers
                self._codec.encoded_bytes(layer.block_bytes // self._heads)
            self.block_bytes = self._codec.encoded_bytes(self._plain_bytes)
        self._scratch: StagingBlock | None = None
        if self.block_bytes % (block_tokens * self._heads):
            raise Misuse(f"{self.block_bytes} bytes don't divide by {block_tokens} tokens")
        self.bytes_per_token = self.block_bytes // (block_tokens * self._heads)  # of one payload

    @property
    def codec(self) -> str:
        """The lossy codec of payloads, or EXACT."""
        return EXACT if self._codec is None else self._codec.name

    def _codec_of(
        self, name: str, vector: int, registered: Sequence[tuple[_Layer, bool]], tokens: int
    ) -> LossyCodec | None:
        dtypes = {form.dtype for form in self._formats}
        if name == EXACT or not any(dtype in DTYPES for dtype in dtypes):
            return None
        if len(dtypes) > 1:
            raise Misuse(f"layers have KV of several dtypes ({self.dtypes})", field="codec")
        (dtype,) = dtypes
        assert dtype is not None
        if name != INT4:
            return LossyCodec(name, dtype, vector)
        runs = self._layers if len(self._layers) == len(registered) else [None] * len(registered)
        blocks = [
            _int4_block(layer, run, tokens, vector, is_cut=is_cut)
            for (layer, is_cut), run in zip(registered, runs, strict=True)
        ]
        return Int4Codec(INT4, dtype, vector, form_of(blocks, joined=runs[0] is None))

    def allocate(self, engine_blocks: int, most: int = 1) -> list[StagingBlock]:
        """Staging for one to `most` chunks of `engine_blocks` engine blocks each.

        Pinned on an accelerator, and then many at once: each pinning costs a millisecond.
        """
        size = self.block_bytes * engine_blocks
        if self._copies is None:
            memory = torch.empty(size, dtype=torch.uint8)
            if self._codec is not None:
                return [StagingBlock(memory, (), engine_blocks, self._heads)]
            return [StagingBlock(memory, self._layers, engine_blocks, self._heads)]
        count = max(1, min(most, _SLAB_BYTES // size))
        slab = torch.empty((count, size), dtype=torch.uint8, pin_memory=True)
        return [StagingBlock(memory, (), engine_blocks, self._heads) for memory in slab]

    def move_out(self, blocks: Sequence[Sequence[int]], staging: Sequence[StagingBlock]) -> Ticket:
        """Copies each block's engine blocks, of all layers, into its staging."""
        if self._copies is not None:
            if self._probe is not None and self._probe.left:
                self._probe.note(self._gathered(blocks[0]))
            return self._copies.move_out(blocks, [piece.bytes for piece in staging])
        for engine_blocks, piece in zip(blocks, staging, strict=True):
            index = torch.tensor(engine_blocks)
            plain = piece if self._codec is None else self._plain_piece(len(engine_blocks))
            for layer, view in zip(self._layers, plain.views, strict=True):
                torch.index_select(layer.tensor, layer.dim, index, out=view)
            if self._codec is not None:
                rows = plain.bytes.view(self._heads, -1)
                if self._probe is not None and self._probe.left:
                    self._probe.note(rows)
                encoded = self._codec.encode(rows)
                piece.bytes.view(self._heads, -1).copy_(encoded)
        return Done()

    def move_in(
        self, blocks: Sequence[Sequence[int]], skip: int, staging: Sequence[StagingBlock]
    ) -> Ticket:
        """Copies each staging into its engine blocks, without the first `skip` of the first."""
        if self._copies is not None:
            return self._copies.move_in(blocks, skip, [piece.bytes for piece in staging])
        for engine_blocks, piece in zip(blocks, staging, strict=True):
            index = torch.tensor(engine_blocks[skip:])
            plain = piece if self._codec is None else self._decoded(piece)
            for layer, view in zip(self._layers, plain.views, strict=True):
                part = view.narrow(layer.dim, skip, len(index))
                layer.tensor.index_copy_(layer.dim, index, part)
            skip = 0
        return Done()

    @property
    def loss_error(self) -> float | None:
        """Of the first chunks that were saved with a lossy codec; None: not measured."""
        return None if self._probe is None else self._probe.error

    def _gathered(self, engine_blocks: Sequence[int]) -> torch.Tensor:
        """A chunk's payloads on the device, by its computing stream."""
        size = self._plain_bytes * len(engine_blocks)
        rows = torch.empty((1, size), dtype=torch.uint8, device=self._device)
        index = torch.tensor([engine_blocks]).pin_memory().to(self._device, non_blocking=True)
        gather(split(self._layers), self._heads, index, rows)
        return rows.view(self._heads, -1)

    def _plain_piece(self, engine_blocks: int) -> StagingBlock:
        """Memory for one chunk before it is encoded, used again by the next call."""
        size = self._plain_bytes * engine_blocks
        if self._scratch is None or self._scratch.bytes.numel() != size:
            memory = torch.empty(size, dtype=torch.uint8)
            self._scratch = StagingBlock(memory, self._layers, engine_blocks, self._heads)
        return self._scratch

    def _decoded(self, piece: StagingBlock) -> StagingBlock:
        assert self._codec is not None
        plain = self._plain_piece(piece.bytes.numel() // self.block_bytes)
        encoded = piece.bytes.view(self._heads, -1)
        self._codec.decode(encoded, plain.bytes.view(self._heads, -1))
        return plain

    def compare(self, computed: StagingBlock, stored: StagingBlock) -> str | None:
        """The layer that differs by more than rounding, in words, and where to look, or None.

        Of exact KV only."""
        assert self._codec is None
        return first_difference(
            self._formats, self._layer_bytes(computed), self._layer_bytes(stored)
        )

    def compare_bits(self, computed: StagingBlock, stored: StagingBlock) -> Difference | None:
        """The first layer and engine block that differ in a bit, or None. Of exact KV only."""
        assert self._codec is None
        engine_blocks = computed.bytes.numel() // self.block_bytes
        return first_different_bit(
            self._formats,
            self._layer_bytes(computed),
            self._layer_bytes(stored),
            lambda layer, byte: byte // self._run_bytes(layer) % engine_blocks,
        )

    def _run_bytes(self, number: int) -> int:
        """Bytes of one engine block that lie together in a layer's part of a staging."""
        if len(self._layers) < len(self._formats):  # side by side
            return self.block_bytes // len(self._formats)
        layer = self._layers[number]
        sizes = [
            size
            for dim, size in enumerate(layer.tensor.shape)
            if dim > layer.dim and dim != layer.head
        ]
        return int(math.prod(sizes) * layer.tensor.element_size())

    def _layer_bytes(self, piece: StagingBlock) -> Iterator[torch.Tensor]:
        """Each layer's part of a staging, as one row of bytes."""
        if len(self._layers) < len(self._formats):  # side by side
            count = len(self._formats)
            of_blocks = piece.bytes.view(-1, count, self.block_bytes // count)
            yield from (part.flatten() for part in of_blocks.unbind(1))
            return
        by_head = piece.bytes.view(self._heads, -1)
        engine_blocks, start = piece.bytes.numel() // self.block_bytes, 0
        for layer in self._layers:
            size = layer.block_bytes * engine_blocks // self._heads
            yield by_head[:, start : start + size].flatten()
            start += size

    def mark(self) -> Mark:
        """This point of the engine's computation; a device may reach it later."""
        return StreamMark(self._device) if self.defers else _WallMark()

    def fence(self) -> None:
        """Waits for the copies out of engine blocks, so that the blocks may change hands."""
        if self._copies is not None:
            self._copies.fence()

    def release(self) -> None:
        """Frees the buffers on the device until the next copy; none may be under way."""
        if self._copies is not None:
            self._copies.release()


class _WallMark:
    """On the CPU, a step is computed when its call returns."""

    def __init__(self) -> None:
        self._at = time.monotonic()

    def done(self) -> bool:
        return True

    def since(self, earlier: "_WallMark") -> float:
        return self._at - earlier._at


def _as_layer(name: str, tensor: torch.Tensor, num_blocks: int) -> _Layer:
    """Finds the dimension that counts engine blocks.

    A kernel may cut an engine block into `r` smaller ones: then `num_blocks * r` rows are seen,
    and row `b * r` starts engine block `b`.
    """
    integers = tensor.view(_INTEGER[tensor.element_size()])
    rows = tensor.shape[0]
    if rows >= num_blocks and rows % num_blocks == 0:
        if rows > num_blocks:
            integers = integers.unflatten(0, (num_blocks, rows // num_blocks))
        return _Layer(name, integers, 0, tensor.dtype)
    # K and V apart: [2, num_blocks, ...].
    if tensor.dim() > 1 and tensor.shape[:2] == (2, num_blocks):
        return _Layer(name, integers, 1, tensor.dtype)
    raise Misuse(f"layer {name}: no dimension of {tuple(tensor.shape)} counts {num_blocks} blocks")


def _as_run(layer: _Layer) -> _Layer:
    """The layer with every engine block (or its K, and its V) as a row of the longest integers,
    which devices copy fastest; unchanged if a block's bytes are not contiguous."""
    tensor, first = layer.tensor, layer.dim + 1
    inner = sorted(
        zip(tensor.stride()[first:], tensor.shape[first:], strict=True), key=lambda each: each[0]
    )
    run = 1
    for stride, size in inner:
        if size > 1 and stride != run:
            return layer
        run *= size
    rows = tensor.as_strided((*tensor.shape[:first], run), (*tensor.stride()[:first], 1))
    for word in (torch.int64, torch.int32, torch.int16):
        more = word.itemsize // tensor.element_size()
        places = (run, rows.storage_offset(), *rows.stride()[:-1])
        if more > 1 and all(place % more == 0 for place in places):
            return replace(layer, tensor=rows.view(word))
    return replace(layer, tensor=rows)


def _int4_block(
    layer: _Layer, run: _Layer | None, tokens: int, vector: int, *, is_cut: bool
) -> Block:
    """`run`: the layer as it is copied; None: side by side with the others. `is_cut`: see
    `_as_layer`."""
    tensor = layer.tensor
    dims = [dim for dim in range(layer.dim + 1, tensor.dim()) if dim != layer.head]
    is_run = run is None or run.tensor.dim() < tensor.dim()
    return block_of(
        [tensor.shape[dim] for dim in dims],
        [tensor.stride(dim) for dim in dims] if is_run else None,
        apart=layer.dim == 1,
        is_cut=is_cut,
        tokens=tokens,
        vector=vector,
    )


def _joined(layers: Sequence[_Layer]) -> _Layer | None:
    """All layers as one, if those of a block lie side by side in the order of `layers`."""
    first = layers[0].tensor
    if len(layers) < 2 or any(
        layer.dim != 0
        or layer.tensor.dim() != 2
        or layer.tensor.dtype != first.dtype
        or layer.tensor.shape != first.shape
        or layer.tensor.stride() != (first.shape[1] * len(layers), 1)
        or layer.tensor.data_ptr() - first.data_ptr() != number * first[0].nbytes
        for number, layer in enumerate(layers)
    ):
        return None
    shape = (first.shape[0], first.shape[1] * len(layers))
    return replace(layers[0], tensor=first.as_strided(shape, first.stride()))


def _head_dim(name: str, shape: Sequence[int], num_blocks: int, heads: int, tokens: int) -> int:
    """The dimension of a registered tensor that counts KV heads; `tokens` are an engine block's.

    Engines register `[blocks, heads, tokens, content]` or, in older releases, five dimensions of
    which the last three are tokens and heads, in either order, and the head's size.
    """
    if shape[0] % num_blocks == 0:
        tokens = tokens * num_blocks // shape[0]
    found = [
        dim
        for dim, other in {4: ((1, 2),), 5: ((2, 3), (3, 2))}.get(len(shape), ())
        if (shape[dim], shape[other]) == (heads, tokens)
    ]
    if len(found) == 1:
        return found[0]
    raise Misuse(
        f"layer {name}: can't tell {heads} KV heads from {tokens} tokens in {tuple(shape)}; "
        f"use the layout 'rank'",
        field="layout",
    )
