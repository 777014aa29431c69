"""Codecs of KV on one core: how much smaller, how fast, and what a lossy one changes in a model.

    python benchmarks/codec.py [--model FOLDER] [--tokens 1536] [--mib 32] [--rounds 7]

With `--model`, a Hugging Face folder, the KV is that of the model for a text of this repository,
bf16 as an engine holds it, and columns `KL` and `argmax` say how the logits of the next tokens
differ when they are computed behind the decoded KV: the mean Kullback-Leibler divergence in nats,
and the share of positions whose likeliest token stays. Needs torch and transformers, as the vLLM
environment has. Without it the KV is normal random numbers, and only sizes and speeds are shown.

Speeds are GB/s of plain KV, the best of the rounds, on one thread; `memcpy` is the ceiling of one
thread here. The lossless codec is checked to give back the same bytes, so the same tokens.
"""

import argparse
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from neve import _core

ROOT = Path(__file__).resolve().parents[1]
TEXTS = ("docs/architecture.md", "docs/operators.md", "docs/nodes.md")
AFTER_TOKENS = 128  # whose logits are compared
BLOCK_BYTES = 2 << 20  # encoded at a time, as blocks are
VECTOR = 64  # of random KV
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
    encoded = np.empty(kv.size // vector * (vector + 2), np.uint8)
    back = np.empty_like(kv)
    args = name, "bfloat16", vector
    encode_s = best_s(rounds, lambda: _core.quantize(*args, kv, encoded))
    decode_s = best_s(rounds, lambda: _core.dequantize(*args, encoded, back))
    exact, decoded = (_as_float(each) for each in (kv, back))
    error = float(np.sqrt(np.square(exact - decoded).mean() / np.square(exact).mean()))
    gigabytes = kv.nbytes / 1e9
    ratio = kv.nbytes / encoded.nbytes
    return Result(name, ratio, gigabytes / encode_s, gigabytes / decode_s, error)


def _as_float(bf16: np.ndarray) -> np.ndarray:
    return (bf16.astype(np.uint32) << 16).view(np.float32)


class Model:
    """A model, the KV of a text's first tokens, and the logits of the tokens behind them."""

    def __init__(self, folder: Path, tokens: int) -> None:
        import torch
        from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

        self._torch = torch
        torch.manual_seed(0)
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        text = "\n".join((ROOT / name).read_text() for name in TEXTS)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        ids = tokenizer(text, return_tensors="pt").input_ids[:, : tokens + AFTER_TOKENS]
        self._before, self._after = ids[:, :tokens], ids[:, tokens:]
        with torch.no_grad():
            cache = self._model(self._before, use_cache=True).past_key_values
        # [layers, K and V, heads, tokens, head size], rounded to the dtype of an engine's KV.
        self.kv = torch.stack(
            [torch.stack((layer.keys[0], layer.values[0])) for layer in cache.layers]
        ).to(torch.bfloat16)
        self.head_size = self.kv.shape[-1]

    def payload(self) -> np.ndarray:
        """A token's heads side by side, as engines lay them: [layers, 2, tokens, heads, size]."""
        rows = self.kv.transpose(2, 3).contiguous().view(self._torch.int16)
        return rows.numpy().view(np.uint16).reshape(-1)

    def decoded(self, name: str) -> Any:
        """The KV after encoding and decoding."""
        kv = self.payload()
        encoded = np.empty(kv.size // self.head_size * (self.head_size + 2), np.uint8)
        back = np.empty_like(kv)
        args = name, "bfloat16", self.head_size
        assert _core.quantize(*args, kv, encoded)
        assert _core.dequantize(*args, encoded, back)
        layers, two, heads, tokens, size = self.kv.shape
        shape = (layers, two, tokens, heads, size)
        rows = self._torch.from_numpy(back.view(np.int16)).view(self._torch.bfloat16)
        return rows.reshape(shape).transpose(2, 3)

    def logits(self, kv: Any) -> Any:
        """Log probabilities of each token behind the KV."""
        from transformers import DynamicCache

        cache = DynamicCache()
        for number, (keys, values) in enumerate(kv.float()):
            cache.update(keys[None], values[None], number)
        with self._torch.no_grad():
            logits = self._model(self._after, past_key_values=cache).logits[0]
        return logits.log_softmax(-1)

    def agreement(self, name: str) -> tuple[float, float]:
        """Mean KL in nats, and the share of equal likeliest tokens."""
        exact, other = self.logits(self.kv), self.logits(self.decoded(name))
        kl = (exact.exp() * (exact - other)).sum(-1).mean()
        return float(kl), float((exact.argmax(-1) == other.argmax(-1)).float().mean())


def measure(
    *, folder: Path | None = None, tokens: int = 1536, mib: int = 32, rounds: int = 7
) -> tuple[list[Result], float, str]:
    """The results, GB/s of memcpy, and what the KV is, in words."""
    if folder is None:
        model, kv, vector = None, random_kv(mib << 20), VECTOR
        words = f"random normal numbers, bf16, {mib} MiB"
    else:
        model = Model(folder, tokens)
        kv, vector = model.payload(), model.head_size
        words = f"KV of {folder.name}, {tokens} tokens, bf16, {kv.nbytes / (1 << 20):.0f} MiB"
    results = [lossless(kv, rounds)]
    for name in ("int8", "fp8"):
        one = lossy(name, kv, vector, rounds)
        kl, argmax = model.agreement(name) if model else (None, None)
        results.append(Result(name, one.ratio, one.encode, one.decode, one.error, kl, argmax))
    return results, memcpy_gbs(kv, rounds), words


def summary(results: list[Result], memcpy: float) -> Iterator[str]:
    by_name = {each.name: each for each in results}
    yield f"codec_zstd_ratio={by_name['zstd'].ratio:.2f}"
    yield f"codec_zstd_decode_gbs={by_name['zstd'].decode:.2f}"
    yield f"codec_int8_ratio={by_name['int8'].ratio:.2f}"
    yield f"codec_int8_gbs={by_name['int8'].decode:.2f}"
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
