"""Lossy codecs of KV: their error is bounded, torch and the core agree bit for bit, and `KvTensors`
stores encoded payloads. Run by an interpreter with torch; asserts.

On a machine with a GPU the codecs and copies run there as well.
"""

import numpy as np
import torch

from neve import _core
from neve.engine.device import lossy
from neve.engine.device.devices import decode_rows, encode_rows
from neve.engine.device.int4 import INT4, Int4Codec, block_of, form_of
from neve.engine.device.lossy import LossyCodec, relative_error
from neve.engine.device.tensors import KvTensors
from neve.errors import Misuse

VECTOR = 64
MOST_ERROR = {"int8": 0.02, "fp8": 0.035}
CORE = dict(lossy._CORE)


def rows_of(dtype, *, rows=3, vectors=40, seed=0):
    """KV with one channel of large numbers, as bytes."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randn((rows, vectors, VECTOR), generator=generator)
    numbers[..., 3] *= 4
    return numbers.to(dtype).flatten(1).view(torch.uint8)


def refused(what, act):
    said = ""
    try:
        act()
    except (Misuse, ValueError) as error:
        said = str(error)
    assert what in said, (what, said)


for name in lossy.LOSSY:
    for dtype in lossy.DTYPES:
        codec, plain = LossyCodec(name, dtype, VECTOR), rows_of(dtype, vectors=500)
        numbers = plain.view(dtype)
        encoded = codec.encode(plain)
        assert encoded.shape == (3, 500 * (VECTOR + 2)) == (3, codec.encoded_bytes(plain.shape[1]))
        back = torch.empty_like(plain)
        codec.decode(encoded, back)
        error = relative_error(numbers, back.view(dtype))
        assert 0 < error < MOST_ERROR[name], (name, dtype, error)
        # What is no number, zeros, and numbers too small for a scale.
        numbers[0, :VECTOR] = 0
        numbers[1, 5], numbers[1, 6], numbers[2, :VECTOR] = float("nan"), float("inf"), 1e-39
        encoded = codec.encode(plain)
        codec.decode(encoded, back)
        assert torch.isfinite(back.view(dtype).float()).all()
        assert not back[0, : VECTOR * dtype.itemsize].any()
        lossy._CORE.clear()  # by torch
        again = torch.empty_like(plain)
        codec.decode(encoded, again)
        assert torch.equal(again.view(dtype), back.view(dtype)), (name, dtype)
        assert torch.equal(codec.encode(plain), encoded), (name, dtype)
        if torch.cuda.is_available():
            on_device = plain.cuda()
            assert torch.equal(codec.encode(on_device).cpu(), encoded), (name, dtype)
            there = torch.empty_like(on_device)
            codec.decode(encoded.cuda(), there)
            assert torch.equal(there.cpu().view(dtype), back.view(dtype)), (name, dtype)
        lossy._CORE.update(CORE)

# Every code of fp8 but NaN is read as torch reads it.
codes = torch.arange(256, dtype=torch.uint8)
codes[[0x7F, 0xFF]] = 0
one = torch.tensor([1.0], dtype=torch.bfloat16).view(torch.uint8)
out = np.empty(256, np.float32)
made = np.concatenate([codes.numpy(), one.numpy()])
assert _core.dequantize("fp8", "float32", 256, made, out)
assert np.array_equal(out, codes.view(torch.float8_e4m3fn).float().numpy())

# Sizes that do not fit, and what cannot be encoded, are refused.
plain, encoded = bytes(256), bytearray(2 * 66)
assert _core.quantize("int8", "bfloat16", 64, plain, encoded)
assert not _core.quantize("int8", "bfloat16", 64, plain[:-2], encoded)
assert not _core.quantize("int8", "bfloat16", 64, plain, encoded[:-1])
assert not _core.quantize("int8", "bfloat16", 0, plain, encoded)
assert not _core.dequantize("int8", "bfloat16", 64, encoded[:-1], bytearray(256))
refused("int8 or fp8", lambda: _core.quantize("int2", "bfloat16", 64, plain, encoded))
refused("float8", lambda: LossyCodec("int8", torch.float8_e4m3fn, 64))
refused("need one of", lambda: LossyCodec("int3", torch.bfloat16, 64))
refused("no vectors", lambda: LossyCodec("int8", torch.bfloat16, 64).encoded_bytes(130))

# int4: torch and the core agree bit for bit, for keys and values wherever they are.
FORMS = {  # of one engine block as registered, with the dimension of keys and values
    "both in one": ((3, 8, 2 * VECTOR), False),
    "keys, then values": ((2, 8, 3, VECTOR), False),
    "heads first": ((2, 3, 8, VECTOR), False),
    "apart": ((8, 3, VECTOR), True),
}
for words, (sizes, apart) in FORMS.items():
    for dtype in lossy.DTYPES:
        block = block_of(sizes, None, apart=apart, is_cut=False, tokens=8, vector=VECTOR)
        codec = Int4Codec(INT4, dtype, VECTOR, form_of([block] * 5, joined=False))
        plain = rows_of(dtype, vectors=5 * 4 * 2 * 3 * 8)  # of 4 engine blocks
        numbers = plain.view(dtype)
        keys, values = codec._split(plain)
        keys[..., 7] *= 50
        size = codec.encoded_bytes(plain.shape[1])
        assert size == 5 * 4 * 3 * (8 * VECTOR + 4 * (VECTOR + 8)), words
        assert size == 4 * codec.encoded_bytes(plain.shape[1] // 4)
        encoded, back = codec.encode(plain), torch.empty_like(plain)
        assert encoded.shape == (3, size)
        codec.decode(encoded, back)
        for exact, decoded in zip((keys, values), codec._split(back), strict=True):
            assert 0 < relative_error(exact, decoded) < 0.15, (words, dtype)
        numbers[0, :VECTOR] = 0
        numbers[1, 5], numbers[1, 6], numbers[2, :VECTOR] = float("nan"), float("inf"), 1e-39
        encoded = codec.encode(plain)
        codec.decode(encoded, back)
        assert torch.isfinite(back.view(dtype).float()).all()
        lossy._CORE.clear()
        again = torch.empty_like(plain)
        codec.decode(encoded, again)
        assert torch.equal(again.view(dtype), back.view(dtype)), (words, dtype)
        assert torch.equal(codec.encode(plain), encoded), (words, dtype)
        lossy._CORE.update(CORE)
cut = block_of((2, 3, 4, 2 * VECTOR), None, apart=False, is_cut=True, tokens=8, vector=VECTOR)
assert (cut.tokens, cut.parts) == (2, None)
by_stride = block_of(
    (2, 8, 3, VECTOR), (4, 64, 512, 1), apart=False, is_cut=False, tokens=8, vector=VECTOR
)
assert (by_stride.sizes, by_stride.tokens, by_stride.parts) == ((3, 8, 2, VECTOR), 1, 2)
plain = {"apart": False, "is_cut": False, "tokens": 8, "vector": VECTOR}
refused("use int8", lambda: block_of((2, 8, 8, VECTOR), None, **plain))  # heads or tokens?
refused("use int8", lambda: block_of((8, 9 * VECTOR), None, **plain))  # a latent
refused("one shape", lambda: form_of([block, cut], joined=False))
assert not _core.quantize_int4("keys", "bfloat16", 8, 63, bytes(1008), bytearray(9))
refused("keys or values", lambda: _core.quantize_int4("k", "bfloat16", 8, 64, b"", bytearray(9)))

BLOCKS, TOKENS, HEADS, SIZE = 16, 8, 2, 32
SHAPES = {
    "cpu": (BLOCKS, HEADS, TOKENS, 2 * SIZE),
    "flash": (2, BLOCKS, TOKENS, HEADS, SIZE),
    "flashinfer": (BLOCKS, 2, TOKENS, HEADS, SIZE),
}


def layers(shape, dtype, device):
    torch.manual_seed(1)
    return {f"l{n}": torch.randn(shape).to(dtype).to(device) for n in range(3)}


def kv(caches, codec="int8", **more):
    return KvTensors(
        caches, num_blocks=BLOCKS, block_tokens=TOKENS, codec=codec, vector=SIZE, **more
    )


def block_rows(tensor, name):
    tensor = tensor.transpose(0, 1) if name == "flash" else tensor
    return tensor.contiguous().reshape(BLOCKS, -1).float()


for device in ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]:
    for name, shape in SHAPES.items():
        for codec in (*lossy.LOSSY, INT4):
            for heads in (None, HEADS):
                source = layers(shape, torch.bfloat16, device)
                target = {layer: torch.zeros_like(t) for layer, t in source.items()}
                reading, writing = kv(source, codec, heads=heads), kv(target, codec, heads=heads)
                exact = kv(source, "none", heads=heads)
                assert (reading.codec, exact.codec) == (codec, "none")
                assert reading.layout != exact.layout == kv(source, "none", heads=heads).layout
                encoded, plain = SIZE + 2, 2 * SIZE  # of one vector
                if codec == INT4:  # of a head's keys and values
                    encoded, plain = TOKENS * SIZE + 4 * (TOKENS + SIZE), 4 * TOKENS * SIZE
                assert reading.block_bytes * plain == exact.block_bytes * encoded
                assert reading.bytes_per_token == exact.bytes_per_token * encoded // plain
                (out,), (back,) = reading.allocate(3), writing.allocate(3)
                assert len(out.memory) == 3 * reading.block_bytes
                reading.move_out([[5, 1, 9]], [out]).wait()
                back.memory[:] = out.memory
                writing.move_in([[2, 3, 4]], 1, [back]).wait()
                if device == "cuda":
                    torch.cuda.synchronize()
                for layer in source:
                    was, now = block_rows(source[layer], name), block_rows(target[layer], name)
                    for at, number in ((3, 1), (4, 9)):
                        most = 0.15 if codec == INT4 else 0.05
                        assert 0 < relative_error(was[number], now[at]) < most, (name, codec)
                    assert not now[[0, 1, 2, 5]].any(), (name, codec)

# The device's way, on the CPU: the same bytes for each head's payload.
source = layers(SHAPES["flash"], torch.bfloat16, "cpu")
reading = kv(source, heads=HEADS)
(piece,), (plain,) = reading.allocate(1), kv(source, "none", heads=HEADS).allocate(1)
reading.move_out([[7]], [piece])
kv(source, "none", heads=HEADS).move_out([[7]], [plain])
rows = plain.bytes.view(1, -1)
stored = encode_rows(reading._codec, HEADS, rows)
assert torch.equal(stored[0], piece.bytes)
decoded = torch.empty_like(rows)
decode_rows(reading._codec, HEADS, stored, decoded)
assert relative_error(rows.view(torch.bfloat16), decoded.view(torch.bfloat16)) < 0.02

# KV that is fp8 already is left as it is; vectors lie within one layer.
fp8 = {"l": torch.zeros(SHAPES["cpu"]).to(torch.float8_e4m3fn)}
assert kv(fp8).codec == kv(fp8, INT4).codec == "none"
refused("several dtypes", lambda: kv({"a": source["l0"], "b": source["l0"].float()}))
odd = {"a": torch.zeros((BLOCKS, 3, TOKENS, 5), dtype=torch.bfloat16)}
refused("no vectors", lambda: kv(odd))
