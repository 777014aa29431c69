"""Compares eviction and promotion policies on a trace: hit rates by size of a tier, CPU seconds.

    .venv/bin/python benchmarks/policies.py [--trace FILE] [--blocks 1000,10000] [--only one-tier]

First one tier that stores all that is asked for (`neve.planner.simulate.single`): hits of the
longest held prefix for each block asked for, the share of prefill that they spare, and the CPU
seconds of a run. Then a hot tier with promotion (`neve.planner.simulate.hot`): hits / promotions
for each block asked for, on three traces: the conversation trace alone; with as many extra blocks
that are stored and never used (`written scan`); with as many extra blocks in S3 that are read once
(`read scan`). Scans count in no ratio.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path

from neve.planner.simulate import single
from neve.planner.simulate.curve import lru_curve
from neve.planner.simulate.hot import HotTier, Promote, simulate
from neve.planner.simulate.policies import EVICTION, POLICIES, Policy, Queues, S3Fifo, make
from neve.planner.simulate.requests import BlockRequest, with_scans
from neve.replay.generator import Generator, Workload
from neve.replay.trace import read_trace

TRACE = Path(__file__).resolve().parents[2] / "shared/traces/conversation_trace.jsonl"
BLOCKS = (1_000, 3_000, 10_000, 30_000, 50_000, 100_000)


def conversations(path: Path) -> list[BlockRequest]:
    """The trace at `path`; the built-in workload if there is none."""
    if path.exists():
        rows = read_trace(path)
    else:
        print(f"{path} is missing: using the built-in workload", file=sys.stderr)
        rows = list(islice(Generator(Workload.MIXED, seed=1), 12_000))
    return [BlockRequest(row.hash_ids, row.timestamp_ms / 1000) for row in rows]


@contextmanager
def cpu_seconds() -> Iterator[list[float]]:
    """Yields a list that gets the CPU seconds of the block."""
    spent: list[float] = []
    started = time.process_time()
    yield spent
    spent.append(time.process_time() - started)


def show(name: str, cells: Sequence[str]) -> None:
    print(f"  {name:24}" + "".join(f"{cell:>22}" for cell in cells))


def one_tier(requests: Sequence[BlockRequest], sizes: Sequence[int]) -> None:
    """Prints the curve of LRU and a row for each policy."""
    asked = [request.ids for request in requests]
    blocks = sum(map(len, asked))
    print(f"one tier: hits for each of {blocks:,} blocks asked for / spared prefill, CPU seconds")
    columns = [*sizes, None]
    show("", [f"{size:,}" if size else "no limit" for size in columns])
    with cpu_seconds() as spent:
        curve = lru_curve(asked)
    show("lru, the whole curve", [f"{curve.hit_rate(size):.4f}             " for size in columns])
    slowest = 0.0
    for name in POLICIES:
        cells = []
        for size in columns:
            with cpu_seconds() as each:
                hits = single.run(name, asked, capacity_bytes=size)
            slowest = max(slowest, *each)
            cells.append(f"{hits.rate:.4f} / {hits.cost_rate:.3f} {each[0]:4.1f} s")
        show(name, cells)
    print(f"\ncurve cpu_s={spent[0]:.2f} policies slowest_cpu_s={slowest:.2f}\n")


def contestants() -> dict[str, tuple[Callable[[int], Policy], Promote]]:
    chosen = {name: partial(_made, name) for name in EVICTION}
    # A block in S3 that is read again enters the main queue, so S3-FIFO needs no ghosts here.
    others = {
        "2q, a tenth": partial(Queues, probation=True, share=0.1),
        "s3-fifo": partial(S3Fifo, least_uses=1),
    }
    second = {name: (each, Promote.SECOND_READ) for name, each in {**chosen, **others}.items()}
    return {"lru, every read promotes": (chosen["lru"], Promote.EVERY_READ), **second}


def _made(name: str, blocks: int) -> Policy:
    return make(name, capacity_bytes=blocks)


def hot_tier(requests: Sequence[BlockRequest], sizes: Sequence[int]) -> None:
    """Prints a table for each trace, then the mean of each policy that the functions have."""
    started = time.process_time()
    means: dict[str, list[float]] = {}
    for title, trace in (
        ("conversation trace", requests),
        ("with a written scan", list(with_scans(requests, was_cold=False))),
        ("with a read scan", list(with_scans(requests, was_cold=True))),
    ):
        print(f"hot tier, {title}: hits / promotions for each block asked for")
        show("", [f"{size:,}" for size in sizes])
        for name, (policy, promote) in contestants().items():
            row = [simulate(HotTier(policy(size), promote), trace) for size in sizes]
            means.setdefault(name, []).extend(hit for hit, _ in row)
            show(name, [f"{hit:.4f} / {put:.2f}" for hit, put in row])
        print()
    mean = {name: sum(means[name]) / len(means[name]) for name in EVICTION}
    best = max(mean, key=lambda name: mean[name])
    facts = " ".join(f"{name}={value:.4f}" for name, value in mean.items())
    print(f"hot_tier {facts} best={best} cpu_s={time.process_time() - started:.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--trace", type=Path, default=TRACE)
    parser.add_argument("--blocks", default=",".join(map(str, BLOCKS)), help="sizes of the tier")
    parts = {"one-tier": one_tier, "hot-tier": hot_tier}
    parser.add_argument("--only", choices=parts, help="one of the two comparisons")
    options = parser.parse_args()
    sizes = [int(size) for size in options.blocks.split(",")]
    requests = conversations(options.trace)
    for part in [options.only] if options.only else parts:
        parts[part](requests, sizes)


if __name__ == "__main__":
    main()
