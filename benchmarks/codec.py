"""Codecs of KV on one core: how much smaller, how fast, and what a lossy one changes in a model.

    python benchmarks/codec.py [--model FOLDER] [--tokens 1536] [--mib 32] [--rounds 7]

With `--model`, a Hugging Face folder, the KV is that of the model for texts of this repository,
bf16 as an engine holds it, and columns `KL` and `argmax` say how the logits of the next tokens
differ when they are computed behind the decoded KV, as `neve codec-check` does: the mean
Kullback-Leibler divergence in nats, and the share of positions whose likeliest token stays. Needs
torch and transformers, as the vLLM environment has. Without it the KV is normal random numbers, and
only sizes and speeds are shown; int4 is then of matrices that have no channels.

Speeds are GB/s of plain KV, the best of the rounds, on one thread; `memcpy` is the ceiling of one
thread here. The lossless codec is checked to give back the same bytes, so the same tokens.
"""

import argparse
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from neve import _core

ROOT = Path(__file__).resolve().parents[1]
TEXTS = ("docs/architecture.md", "docs/operators.md", "docs/nodes.md")
BLOCK_BYTES = 2 << 20  # encoded at a time, as blocks are
VECTOR = 64  # of random KV
BLOCK_TOKENS = 16  # of an engine's block: int4 has a scale for each channel of one
LOSSY = ("int8", "fp8", "int4")
ZSTD_LEVEL = 1


@dataclass(frozen=True)
class Result:
    """`encode`, `decode`: GB/s of plain bytes. `error`: relative, of the numbers."""

    name: str
    ratio: float
    encode: float
    decode: float
    error: float = 0.0
    kl: float | None = None
    argmax: float | None = None


def best_s(rounds: int, act: Callable[[], object]) -> float:
    times = []
    for _ in range(rounds):
        begun = time.perf_counter()
        act()
        times.append(time.perf_counter() - begun)
    return min(times)


def random_kv(size_bytes: int) -> np.ndarray:
    """bf16 numbers as uint16."""
    numbers = np.random.default_rng(0).standard_normal(size_bytes // 2, np.float32)
    return (numbers.view(np.uint32) >> 16).astype(np.uint16)


def memcpy_gbs(kv: np.ndarray, rounds: int) -> float:
    target = np.empty_like(kv)
    return kv.nbytes / 1e9 / best_s(rounds, lambda: np.copyto(target, kv))


def lossless(kv: np.ndarray, rounds: int) -> Result:
    """The codec of blocks at rest, block by block."""
    raw = kv.view(np.uint8)
    blocks = [raw[at : at + BLOCK_BYTES] for at in range(0, len(raw), BLOCK_BYTES)]
    rooms = [np.empty(len(block) + 1024, np.uint8) for block in blocks]
    back = np.empty_like(raw[:BLOCK_BYTES])
    sizes = [0] * len(blocks)

    def encode() -> None:
        for n, (block, room) in enumerate(zip(blocks, rooms, strict=True)):
            sizes[n] = _core.shuffle_zstd_encode(block, 2, ZSTD_LEVEL, room)

    def decode() -> None:
        for block, room, size in zip(blocks, rooms, sizes, strict=True):
            assert _core.shuffle_zstd_decode(room[:size], back[: len(block)])

    encode_s, decode_s = best_s(rounds, encode), best_s(rounds, decode)
    for block, room, size in zip(blocks, rooms, sizes, strict=True):
        assert _core.shuffle_zstd_decode(room[:size], back[: len(block)])
        assert np.array_equal(back[: len(block)], block)
    gigabytes = raw.nbytes / 1e9
    return Result("zstd", raw.nbytes / sum(sizes), gigabytes / encode_s, gigabytes / decode_s)


def lossy(name: str, kv: np.ndarray, vector: int, rounds: int) -> Result:
    if name == "int4":
        return int4(kv, vector, rounds)
    encoded = np.empty(kv.size // vector * (vector + 2), np.uint8)
    back = np.empty_like(kv)
    args = name, "bfloat16", vector
    encode_s = best_s(rounds, lambda: _core.quantize(*args, kv, encoded))
    decode_s = best_s(rounds, lambda: _core.dequantize(*args, encoded, back))
    return _result(name, kv, back, encoded.nbytes, encode_s, decode_s)


def int4(kv: np.ndarray, vector: int, rounds: int) -> Result:
    """Of blocks of BLOCK_TOKENS tokens; the first half of the numbers taken as keys."""
    matrix = BLOCK_TOKENS * vector
    halves = np.split(kv[: kv.size // (2 * matrix) * 2 * matrix], 2)
    kv, back = np.concatenate(halves), np.empty(2 * halves[0].size, np.uint16)
    parts = [
        (part, plain, np.empty(plain.size // 2 + plain.size // matrix * groups * 4, np.uint8), room)
        for part, plain, groups, room in zip(
            ("keys", "values"), halves, (vector, BLOCK_TOKENS), np.split(back, 2), strict=True
        )
    ]
    sizes = "bfloat16", BLOCK_TOKENS, vector

    def encode() -> None:
        for part, plain, encoded, _ in parts:
            assert _core.quantize_int4(part, *sizes, plain, encoded)

    def decode() -> None:
        for part, _, encoded, room in parts:
            assert _core.dequantize_int4(part, *sizes, encoded, room)

    encode_s, decode_s = best_s(rounds, encode), best_s(rounds, decode)
    encoded_bytes = sum(encoded.nbytes for _, _, encoded, _ in parts)
    return _result("int4", kv, back, encoded_bytes, encode_s, decode_s)


def _result(
    name: str, kv: np.ndarray, back: np.ndarray, encoded: int, encode_s: float, decode_s: float
) -> Result:
    exact, decoded = (_as_float(each) for each in (kv, back))
    error = float(np.sqrt(np.square(exact - decoded).mean() / np.square(exact).mean()))
    gigabytes = kv.nbytes / 1e9
    ratio = kv.nbytes / encoded
    return Result(name, ratio, gigabytes / encode_s, gigabytes / decode_s, error)


def _as_float(bf16: np.ndarray) -> np.ndarray:
    return (bf16.astype(np.uint32) << 16).view(np.float32)


def measure(
    *, folder: Path | None = None, tokens: int = 1536, mib: int = 32, rounds: int = 7
) -> tuple[list[Result], float, str]:
    """The results, GB/s of memcpy, and what the KV is, in words."""
    losses: dict[str, Any] = {}
    if folder is None:
        kv, vector = random_kv(mib << 20), VECTOR
        words = f"random normal numbers, bf16, {mib} MiB"
    else:
        from neve.engine.device.agreement import Model

        texts = [(ROOT / name).read_text() for name in TEXTS]
        model = Model(str(folder), texts, tokens=tokens, block_tokens=BLOCK_TOKENS)
        losses = {name: model.loss(name) for name in LOSSY}
        kv, vector = model.payload(), model.vector
        words = (
            f"KV of {folder.name}, {model.prompts} prompts of {tokens} tokens, bf16; "
            f"{kv.nbytes / (1 << 20):.0f} MiB of the first one"
        )
    results = [lossless(kv, rounds)]
    for name in LOSSY:
        one = lossy(name, kv, vector, rounds)
        if loss := losses.get(name):
            one = replace(one, error=loss.error, kl=loss.kl, argmax=loss.argmax)
        results.append(one)
    return results, memcpy_gbs(kv, rounds), words


def summary(results: list[Result], memcpy: float) -> Iterator[str]:
    by_name = {each.name: each for each in results}
    yield f"codec_zstd_ratio={by_name['zstd'].ratio:.2f}"
    yield f"codec_zstd_decode_gbs={by_name['zstd'].decode:.2f}"
    yield f"codec_int8_ratio={by_name['int8'].ratio:.2f}"
    yield f"codec_int8_gbs={by_name['int8'].decode:.2f}"
    yield f"codec_int4_ratio={by_name['int4'].ratio:.2f}"
    yield f"memcpy_gbs={memcpy:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", type=Path, help="a Hugging Face folder")
    parser.add_argument("--tokens", type=int, default=1536, help="of the model's prompt")
    parser.add_argument("--mib", type=int, default=32, help="of random KV")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    results, memcpy, words = measure(
        folder=args.model, tokens=args.tokens, mib=args.mib, rounds=args.rounds
    )
    load = os.getloadavg()[0]
    print(f"{words}; one thread, {_core.CHECKSUM_KERNEL}, {os.cpu_count()} cores, load {load:.1f}")
    print(f"{'codec':<8}{'ratio':>7}{'encode':>9}{'decode':>9}{'error':>9}{'KL':>11}{'argmax':>9}")
    for each in results:
        kl = "—" if each.kl is None else f"{each.kl:.1e}"
        argmax = "—" if each.argmax is None else f"{each.argmax:.1%}"
        speeds = f"{each.encode:>9.2f}{each.decode:>9.2f}"
        print(f"{each.name:<8}{each.ratio:>7.2f}{speeds}{each.error:>9.4f}{kl:>11}{argmax:>9}")
    print(f"memcpy {memcpy:.2f} GB/s")
    print("codec", *summary(results, memcpy))


if __name__ == "__main__":
    main()
