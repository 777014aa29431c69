"""Speed of blocks between a GPU's KV tensors and pinned staging, for a Llama-3-8B in bf16.

`PYTHONPATH=connector/src python benchmarks/device_copies.py` on a machine with torch and one GPU.
For two layouts and two block sizes: GB/s out and in (medians of five), time that the engine's
thread spends launching copies, and slowdown of a concurrent matrix product.
"""

import statistics
import time
from functools import partial

import torch

from neve.engine.device.tensors import KvTensors

LAYERS, HEADS, WIDTH, ENGINE_BLOCK = 32, 8, 128, 16
ENGINE_BLOCKS = 4096  # 64 Ki tokens, 8 GiB
MOVED_BLOCKS = 1024  # 2 GiB
SHAPES = {
    "K and V apart": (2, ENGINE_BLOCKS, ENGINE_BLOCK, HEADS, WIDTH),
    "blocks first": (ENGINE_BLOCKS, 2, ENGINE_BLOCK, HEADS, WIDTH),
}


def main() -> None:
    print(torch.cuda.get_device_name(), torch.__version__)
    for name, shape in SHAPES.items():
        caches = {
            f"layer.{n}": torch.zeros(shape, dtype=torch.bfloat16, device="cuda")
            for n in range(LAYERS)
        }
        kv = KvTensors(caches, num_blocks=ENGINE_BLOCKS, block_tokens=ENGINE_BLOCK)
        for per_block in (1, 4):
            count = MOVED_BLOCKS // per_block
            staging = [kv.allocate(per_block)[0] for _ in range(count)]
            order = torch.randperm(ENGINE_BLOCKS)[:MOVED_BLOCKS].reshape(count, per_block).tolist()
            size = sum(len(piece.memory) for piece in staging)
            moves = {
                "out": partial(kv.move_out, order, staging),
                "in": partial(kv.move_in, order, 0, staging),
            }
            for direction, move in moves.items():
                launched, took = [], []
                for _ in range(6):
                    torch.cuda.synchronize()
                    begin = time.perf_counter()
                    ticket = move()
                    launched.append(time.perf_counter() - begin)
                    ticket.wait()
                    took.append(time.perf_counter() - begin)
                print(
                    f"{name}, {size / count / 2**20:.0f} MiB a block, {direction}: "
                    f"{size / statistics.median(took[1:]) / 1e9:.1f} GB/s, launched in "
                    f"{1e3 * statistics.median(launched[1:]):.1f} ms of "
                    f"{1e3 * statistics.median(took[1:]):.1f}; a product takes "
                    f"{_product_ms(None):.2f} ms alone, {_product_ms(move):.2f} beside it"
                )
            del staging, moves, move
        del caches, kv
        torch.cuda.empty_cache()


def _product_ms(beside) -> float:
    """Time of a bf16 matrix product on the engine's stream, concurrent with `beside`."""
    a = torch.randn(8192, 8192, dtype=torch.bfloat16, device="cuda")
    times = []
    for _ in range(10):
        torch.cuda.synchronize()
        ticket = beside() if beside else None
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(10):
            a @ a
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 10)
        if ticket is not None:
            ticket.wait()
    return statistics.median(times)


if __name__ == "__main__":
    main()
