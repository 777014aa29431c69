"""KvTensors over the shapes that attention backends use. Run by an interpreter with torch; asserts.

On a machine with a GPU the copies run there as well.
"""

import torch

from neve.engine.device.devices import gather, scatter, split
from neve.engine.device.tensors import KvTensors
from neve.errors import Misuse

BLOCKS, TOKENS = 16, 8
SHAPES = {
    "cpu": (BLOCKS, 2, TOKENS, 64),
    "flash": (2, BLOCKS, TOKENS, 2, 32),
    "flashinfer": (BLOCKS, 2, TOKENS, 2, 32),
    "mla": (BLOCKS, TOKENS, 128),
    "split": (BLOCKS * 2, 2, TOKENS // 2, 64),
    "odd": (BLOCKS, 3, TOKENS, 5),
}


def rows(tensor, name):
    """The tensor as one contiguous row of bytes per engine block."""
    if name == "flash":
        tensor = tensor.transpose(0, 1)
    return tensor.contiguous().view(torch.uint8).reshape(BLOCKS, -1)


def layers(shape, dtype, count=3, device="cpu"):
    torch.manual_seed(1)
    return {f"l{n}": torch.randn(shape).to(dtype).to(device) for n in range(count)}


def kv(caches, num_blocks=BLOCKS, **more):
    return KvTensors(caches, num_blocks=num_blocks, block_tokens=TOKENS, **more)


DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
for device in DEVICES:
    for name, shape in SHAPES.items():
        for dtype in (torch.float32, torch.bfloat16, torch.float8_e4m3fn):
            source, target = (
                layers(shape, dtype, device=device),
                layers(shape, dtype, device=device),
            )
            for tensor in target.values():
                tensor.view(torch.uint8).zero_()
            reading, writing = kv(source), kv(target)
            size = sum(t.numel() * t.element_size() for t in source.values()) // BLOCKS
            assert reading.block_bytes == size
            assert reading.bytes_per_token == size // TOKENS
            assert reading.defers == (device == "cuda")
            out = [reading.allocate(3)[0], reading.allocate(3)[0]]
            assert len(out[0].memory) == 3 * size
            reading.move_out([[5, 1, 9], [6, 7, 8]], out).wait()
            back = [writing.allocate(3)[0], writing.allocate(3)[0]]
            for piece, other in zip(out, back, strict=True):
                other.memory[:] = piece.memory
            writing.move_in([[2, 3, 4], [10, 11, 12]], 1, back).wait()
            for layer in source:
                was, now = rows(source[layer], name), rows(target[layer], name)
                for at, number in ((3, 1), (4, 9), (10, 6), (11, 7), (12, 8)):
                    assert torch.equal(now[at], was[number]), (device, name, dtype)
                assert not now[[0, 1, 2, 5, 6, 7, 8, 9, 13, 14, 15]].any(), (device, name, dtype)
            assert reading.layout == writing.layout

            # The GPU's kernels give the same bytes as the copy on the CPU.
            buffer = torch.empty((2, 3 * size), dtype=torch.uint8, device=device)
            index = torch.tensor([[5, 1, 9], [6, 7, 8]], device=device)
            gather(split(reading._layers), 1, index, buffer)
            for piece, row in zip(out, buffer, strict=True):
                assert bytes(piece.memory) == row.cpu().numpy().tobytes(), (device, name, dtype)
            for tensor in target.values():
                tensor.view(torch.uint8).zero_()
            index = torch.tensor([[2, 3, 4]], device=device)
            scatter(split(writing._layers), 1, index, 2, buffer[1:])
            for layer in source:
                was, now = rows(source[layer], name), rows(target[layer], name)
                assert torch.equal(now[4], was[8]), (device, name, dtype)
                assert now.any(dim=1).sum() <= 1, (device, name, dtype)

# By KV head: ranks with some heads read what a rank with all heads wrote, and the reverse.
# Shapes for 4 heads, and the dimension that counts them.
BY_HEAD = {
    "heads first": ((BLOCKS, 4, TOKENS, 64), 1),
    "split": ((BLOCKS * 2, 4, TOKENS // 2, 64), 1),
    "flash": ((2, BLOCKS, TOKENS, 4, 32), 3),
    "flashinfer": ((BLOCKS, 2, TOKENS, 4, 32), 3),
    "older cpu": ((2, BLOCKS, 4, TOKENS, 32), 2),
}


def some_heads(caches, dim, first, count):
    return {name: t.narrow(dim, first, count).contiguous() for name, t in caches.items()}


for device in DEVICES:
    for name, (shape, dim) in BY_HEAD.items():
        for dtype in (torch.float32, torch.float8_e4m3fn):
            source = layers(shape, dtype, device=device)
            whole = kv(source, heads=4)
            payload = whole.block_bytes * 3 // 4
            assert whole.bytes_per_token == payload // 3 // TOKENS
            out = whole.allocate(3)[0]
            whole.move_out([[5, 1, 9]], [out]).wait()
            device_rows = torch.empty((1, 4 * payload), dtype=torch.uint8, device=device)
            gather(split(whole._layers), 4, torch.tensor([[5, 1, 9]], device=device), device_rows)
            assert device_rows.cpu().numpy().tobytes() == bytes(out.memory), (device, name)
            for first, count in ((0, 1), (1, 2), (3, 1)):
                target = some_heads(source, dim, first, count)
                for tensor in target.values():
                    tensor.view(torch.uint8).zero_()
                part = kv(target, heads=count)
                assert (part.layout, part.bytes_per_token) == (whole.layout, whole.bytes_per_token)
                assert part.layout != kv(target).layout
                wanted = out.memory[first * payload : (first + count) * payload]
                back = part.allocate(3)[0]
                back.memory[:] = wanted
                part.move_in([[2, 3, 4]], 1, [back]).wait()
                again = part.allocate(2)[0]
                part.move_out([[3, 4]], [again]).wait()
                other = some_heads(source, dim, first, count)
                straight = kv(other, heads=count).allocate(2)[0]
                kv(other, heads=count).move_out([[1, 9]], [straight]).wait()
                assert bytes(again.memory) == bytes(straight.memory), (device, name, dtype)
                index = torch.tensor([[2, 3, 4]], device=device)
                row = torch.frombuffer(bytearray(wanted), dtype=torch.uint8)[None].to(device)
                for tensor in target.values():
                    tensor.view(torch.uint8).zero_()
                scatter(split(part._layers), count, index, 1, row)
                part.move_out([[3, 4]], [again]).wait()
                assert bytes(again.memory) == bytes(straight.memory), (device, name, dtype)

# A batch larger than the buffer of a device goes through it in parts.
if "cuda" in DEVICES:
    from neve.engine.device import devices

    devices._BUFFER_BYTES = 1
    source, target = (layers(SHAPES["flash"], torch.bfloat16, device="cuda") for _ in range(2))
    for tensor in target.values():
        tensor.zero_()
    reading, writing = kv(source), kv(target)
    out = [reading.allocate(2)[0] for _ in range(4)]
    pairs = [[0, 3], [2, 5], [4, 7], [6, 9]]
    reading.move_out(pairs, out).wait()
    writing.move_in(pairs, 1, out).wait()
    for layer in source:
        was, now = rows(source[layer], "flash"), rows(target[layer], "flash")
        assert torch.equal(now[[3, 2, 5, 4, 7, 6, 9]], was[[3, 2, 5, 4, 7, 6, 9]])
        assert not now[0].any()

# A layout does not depend on the size of memory, or on the place of tensors in it.
plain = kv(layers(SHAPES["flash"], torch.float32)).layout
more_blocks = (2, 2 * BLOCKS, TOKENS, 2, 32)
assert kv(layers(more_blocks, torch.float32), num_blocks=2 * BLOCKS).layout == plain
storage = torch.zeros(BLOCKS, 4, *SHAPES["cpu"][1:])
views = {f"l{n}": storage[:, n] for n in range(3)}
assert kv(views).layout == kv(layers(SHAPES["cpu"], torch.float32)).layout

# Where the layers of a block lie side by side, a payload is one run for each engine block.
for device in DEVICES:
    for order in ((0, 1, 2, 3, 4), (0, 1, 3, 2, 4)):  # in memory: heads first, tokens first
        memory = torch.randn(BLOCKS, 3, 2, TOKENS, 64).permute(order).contiguous().to(device)
        logical = memory.permute(order)
        beside = kv({f"l{n}": logical[:, n] for n in range(3)})
        assert [layer.tensor.shape for layer in beside._layers] == [(BLOCKS, 3 * 2 * TOKENS * 32)]
        (out,) = beside.allocate(2)
        beside.move_out([[5, 9]], [out]).wait()
        assert bytes(out.memory) == memory[[5, 9]].cpu().numpy().tobytes()
        row = torch.empty((1, len(out.memory)), dtype=torch.uint8, device=device)
        index = torch.tensor([[5, 9]], device=device)
        gather(split(beside._layers), 1, index, row)
        assert row.cpu().numpy().tobytes() == bytes(out.memory)
        wanted = memory[[5, 9]].clone()
        memory.zero_()
        beside.move_in([[3, 4]], 1, [out]).wait()
        assert torch.equal(memory[4], wanted[1])
        assert not memory[[3, 5, 9]].any()
        assert beside.layout != kv({f"l{n}": logical[:, n].clone() for n in range(3)}).layout
        turned = kv({f"l{n}": logical[:, n] for n in (1, 0, 2)})
        assert len(turned._layers) == 3
        assert turned.layout != beside.layout

# It depends on everything that decides the meaning of the bytes.
found = {kv(layers(shape, torch.float32)).layout for shape in SHAPES.values()}
found.add(kv(layers(SHAPES["cpu"], torch.bfloat16)).layout)
found.add(kv(layers(SHAPES["cpu"], torch.float32, 4)).layout)
transposed = {
    n: t.transpose(1, 2) for n, t in layers((BLOCKS, TOKENS, 2, 64), torch.float32).items()
}
found.add(kv(transposed).layout)
found.add(kv(layers(SHAPES["cpu"], torch.float32), kernels={"l0": "CPU_ATTN/amx"}).layout)
assert len(found) == len(SHAPES) + 4, found

# Layers that share one tensor are stored once.
shared = layers(SHAPES["cpu"], torch.float32)
assert kv(shared | {"again": shared["l0"]}).block_bytes == kv(shared).block_bytes

# Heads that can't be told from tokens, or aren't there, are refused.
for shape, heads in (
    ((2, BLOCKS, TOKENS, TOKENS, 32), TOKENS),
    ((BLOCKS, 2, TOKENS, 64), 4),
    ((BLOCKS, TOKENS, 128), 1),
):
    try:
        kv(layers(shape, torch.float32), heads=heads)
    except Misuse:
        continue
    raise AssertionError(shape)

for bad in ({}, {"l": [torch.zeros(4)]}, {"l": torch.zeros(BLOCKS + 1, 2, TOKENS, 64)}):
    try:
        kv(bad)
    except Misuse:
        continue
    raise AssertionError(bad)
