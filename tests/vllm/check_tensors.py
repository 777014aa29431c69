"""KvTensors over the shapes that attention backends use. Run by the vLLM interpreter; asserts."""

import torch

from neve.errors import Misuse
from neve.vllm.tensors import KvTensors

BLOCKS, TOKENS = 16, 8
SHAPES = {
    "cpu": (BLOCKS, 2, TOKENS, 64),
    "flash": (2, BLOCKS, TOKENS, 2, 32),
    "flashinfer": (BLOCKS, 2, TOKENS, 2, 32),
    "mla": (BLOCKS, TOKENS, 128),
    "split": (BLOCKS * 2, 2, TOKENS // 2, 64),
}


def rows(tensor, name):
    """The tensor as one contiguous row of bytes per engine block."""
    if name == "flash":
        tensor = tensor.transpose(0, 1)
    return tensor.contiguous().view(torch.uint8).reshape(BLOCKS, -1)


def layers(shape, dtype, count=3):
    torch.manual_seed(1)
    return {f"l{n}": torch.randn(shape).to(dtype) for n in range(count)}


def kv(caches, num_blocks=BLOCKS, **more):
    return KvTensors(caches, num_blocks=num_blocks, block_tokens=TOKENS, **more)


for name, shape in SHAPES.items():
    for dtype in (torch.float32, torch.bfloat16, torch.float8_e4m3fn):
        source, target = layers(shape, dtype), layers(shape, dtype)
        for tensor in target.values():
            tensor.view(torch.uint8).zero_()
        reading, writing = kv(source), kv(target)
        size = sum(t.numel() * t.element_size() for t in source.values()) // BLOCKS
        assert reading.block_bytes == size
        assert reading.bytes_per_token == size // TOKENS
        staging = reading.allocate(3)
        assert len(staging.memory) == 3 * size
        reading.gather([5, 1, 9], staging)
        other = writing.allocate(3)
        other.memory[:] = staging.memory
        writing.scatter([2, 3, 4], 1, other)
        for layer in source:
            was, now = rows(source[layer], name), rows(target[layer], name)
            assert torch.equal(now[3], was[1])
            assert torch.equal(now[4], was[9])
            assert not now[[0, 1, 2, *range(5, BLOCKS)]].any(), (name, dtype)
        assert reading.layout == writing.layout

# A layout says nothing of how much memory there is, or how tensors lie in it.
plain = kv(layers(SHAPES["flash"], torch.float32)).layout
more_blocks = (2, 2 * BLOCKS, TOKENS, 2, 32)
assert kv(layers(more_blocks, torch.float32), num_blocks=2 * BLOCKS).layout == plain
storage = torch.zeros(BLOCKS, 3, *SHAPES["cpu"][1:])
views = {f"l{n}": storage[:, n] for n in range(3)}
assert kv(views).layout == kv(layers(SHAPES["cpu"], torch.float32)).layout

# It does say what decides the meaning of the bytes.
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

for bad in ({}, {"l": [torch.zeros(4)]}, {"l": torch.zeros(BLOCKS + 1, 2, TOKENS, 64)}):
    try:
        kv(bad)
    except Misuse:
        continue
    raise AssertionError(bad)
