"""KvTensors.compare, compare_bits over layouts and dtypes. Needs torch; asserts."""

import torch

from neve.engine.contract import Difference
from neve.engine.device.tensors import KvTensors

BLOCKS, TOKENS, HEADS, SIZE = 8, 16, 2, 32
# In which part of a block each kernel keeps keys.
KEYS = {
    "flash": ((2, BLOCKS, TOKENS, HEADS, SIZE), lambda t: t[0]),
    "flashinfer": ((BLOCKS, 2, TOKENS, HEADS, SIZE), lambda t: t[:, 0]),
    "content": ((BLOCKS, HEADS, TOKENS, 2 * SIZE), lambda t: t[..., :SIZE]),
    "cpu": (
        (BLOCKS, HEADS, TOKENS, 2 * SIZE),
        lambda t: t.view(BLOCKS, HEADS, 2, TOKENS, SIZE)[:, :, 0],
    ),
}


def computed(shape, dtype, change=lambda _number, _tensor: None, rounds=None):
    torch.manual_seed(3)
    eps = torch.finfo(rounds or dtype).eps
    made = {}
    for number in range(3):
        exact = torch.randn(shape)
        # Another order of additions: off by a rounding step or two.
        other = exact * (1 + torch.randn(shape) * eps)
        made[number] = exact.to(dtype), other
        change(number, other)
    return (
        {f"layer.{n}": exact for n, (exact, _) in made.items()},
        {f"layer.{n}": other.to(dtype) for n, (_, other) in made.items()},
    )


def compare(pair, *, heads=None, cache_dtype="auto", joined=False, bits=False):
    pieces = []
    for caches in pair:
        if joined:  # the layers of a block side by side
            every = torch.stack([t.flatten(1) for t in caches.values()], dim=1)
            caches = {name: every[:, n] for n, name in enumerate(caches)}
        kv = KvTensors(
            caches, num_blocks=BLOCKS, block_tokens=TOKENS, heads=heads, cache_dtype=cache_dtype
        )
        assert kv.layout.startswith("side by side") == joined
        pieces += kv.allocate(2)
        kv.move_out([[3, 5]], pieces[-1:]).wait()
    return kv.compare_bits(*pieces) if bits else kv.compare(*pieces)


def other_positions(part):
    """Other RoPE angles: keys differ from the second layer on, and later layers follow."""

    def change(number, tensor):
        if number == 1:
            keys = part(tensor)
            keys.copy_(keys * 0.6 + keys.roll(1, -1) * 0.8)
        elif number == 2:
            tensor.mul_(1.5)

    return change


def other_weights(_number, tensor):
    tensor.mul_(1.4)


def another_expert(number, tensor):
    """One token of sixteen was routed to another expert."""
    if number:
        tensor[:, :, 7] *= -2


for kind, (shape, part) in KEYS.items():
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn):
        assert compare(computed(shape, dtype)) is None, (kind, dtype)
        said = compare(computed(shape, dtype, other_weights))
        assert said.startswith("layer=layer.0 "), said
        assert "revision, quantization" in said
        said = compare(computed(shape, dtype, other_positions(part)))
        assert said.startswith("layer=layer.1 "), said
        assert "part=keys look_at='positions: RoPE" in said, (kind, dtype, said)

shape, part = KEYS["content"]
assert compare(computed(shape, torch.bfloat16, another_expert)) is None
assert compare(computed(shape, torch.bfloat16), heads=HEADS) is None
assert "layer.0" in compare(computed(shape, torch.bfloat16, other_weights), heads=HEADS)
for change, wanted in ((other_weights, "layer.0"), (other_positions(part), "layer.1")):
    assert wanted in compare(computed(shape, torch.bfloat16, change), joined=True)
assert compare(computed(shape, torch.bfloat16), joined=True) is None

# vLLM keeps float8 in tensors of bytes, and packed numbers as well.
for cache_dtype in ("fp8", "packed"):
    for change in (None, other_weights):
        changes = {"change": change} if change else {}
        # What was computed in bfloat16 is rounded to the same float8, mostly.
        pair = computed(shape, torch.float8_e4m3fn, **changes, rounds=torch.bfloat16)
        as_bytes = [{n: t.view(torch.uint8) for n, t in caches.items()} for caches in pair]
        assert (compare(as_bytes, cache_dtype=cache_dtype) is None) == (change is None), cache_dtype

# NaN equals no number.
exact, other = computed(shape, torch.float32)
other["layer.2"][:] = float("nan")
assert "layer.2" in compare((exact, other))


# To the bit: which layer and which of the chunk's engine blocks (3 and 5) differ first.
def one_number(kind, tensor, block, factor):
    """Changes one number of an engine block, which stands in the first dimension that counts."""
    part = tensor[:, block] if kind == "flash" else tensor[block]
    part.view(-1)[-1:].mul_(factor) if part.is_contiguous() else part[-1].view(-1)[-1:].mul_(factor)


def twins(kind, block, factor, layer="layer.1"):
    exact, _ = computed(KEYS[kind][0], torch.float32)
    other = {name: tensor.clone() for name, tensor in exact.items()}
    one_number(kind, other[layer], block, factor)
    return exact, other


for kind in KEYS:
    assert compare(twins(kind, 4, 2.0), bits=True) is None  # another chunk's block
    for joined, heads in ((False, None), (False, HEADS), (kind == "content", None)):
        for place, block in enumerate((3, 5)):
            found = compare(twins(kind, block, 2.0), bits=True, joined=joined, heads=heads)
            assert found == Difference("layer.1", place, is_rounding=False), (kind, found)
            near = compare(twins(kind, block, 1 + 1e-6), bits=True, joined=joined, heads=heads)
            assert near == Difference("layer.1", place, is_rounding=True), (kind, near)

# What differs by more goes before what is rounded in an earlier layer.
exact, other = twins("content", 3, 1 + 1e-6, layer="layer.0")
one_number("content", other["layer.2"], 5, 2.0)
assert compare((exact, other), bits=True) == Difference("layer.2", 1, is_rounding=False)
# Packed bytes have no rounding.
exact, other = ({n: t.view(torch.uint8) for n, t in pair.items()} for pair in (exact, other))
found = compare((exact, other), cache_dtype="packed", bits=True)
assert found == Difference("layer.0", 0, is_rounding=False)
