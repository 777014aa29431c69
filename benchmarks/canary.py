"""The cost of comparing a found prefix: `.venv-vllm/bin/python benchmarks/canary.py`.

For one block (2 MiB of a Llama-3-8B shape in bfloat16): the time to copy it out of the engine's KV
(on a CPU a step waits for the copy), and the time to compare it on the canary's thread. The canary
compares two blocks of a prefix, whatever its length. Uses a GPU if there is one.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from neve.engine.canary import DEFAULT_EVERY
from neve.engine.device.tensors import KvTensors

LAYERS, HEADS, TOKENS, SIZE, BLOCKS = 32, 8, 16, 128, 64


def median_ms(call: Callable[[], object], repeat: int) -> float:
    taken = []
    for _ in range(repeat):
        begin = time.perf_counter()
        call()
        taken.append(1000 * (time.perf_counter() - begin))
    return statistics.median(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=20)
    parser.add_argument("--every", type=int, default=DEFAULT_EVERY, help="the option `canary`")
    parser.add_argument("--prefill-tokens-per-s", type=float, default=40_000)
    parser.add_argument("--tokens", type=int, default=8192, help="of a found prefix")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    shape = (BLOCKS, HEADS, TOKENS, 2 * SIZE)
    caches = {
        f"layer.{n}": torch.randn(shape, dtype=torch.bfloat16, device=device) for n in range(LAYERS)
    }
    kv = KvTensors(caches, num_blocks=BLOCKS, block_tokens=TOKENS)
    computed, stored = kv.allocate(1)[0], kv.allocate(1)[0]
    copy_ms = median_ms(lambda: kv.move_out([[3]], [computed]).wait(), options.repeat)
    # A rounding difference in every number makes the canary compare all layers.
    for cache in caches.values():
        cache.mul_(1 + torch.finfo(torch.bfloat16).eps)
    kv.move_out([[3]], [stored]).wait()
    compare_ms = median_ms(lambda: kv.compare(computed, stored), options.repeat)
    prefill_ms = 1000 * options.tokens / options.prefill_tokens_per_s
    print(f"device                                {device}")
    print(
        f"block                                 {kv.block_bytes / 2**20:.0f} MiB, {TOKENS} tokens"
    )
    print(f"copy out of the engine                {copy_ms:.2f} ms")
    print(f"compare, on a thread of its own       {compare_ms:.2f} ms")
    print(f"compute {options.tokens} tokens                   {prefill_ms:.0f} ms")
    print(
        f"one in {options.every} found prefixes          {prefill_ms / options.every:.3f} ms a "
        f"prefix, {1 / options.every:.2%} of what was spared; first one of an engine "
        f"{prefill_ms:.0f} ms"
    )


if __name__ == "__main__":
    main()
