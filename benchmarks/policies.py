"""Compares eviction and promotion policies on a trace: hit ratio of the hot tier by its size.

    .venv/bin/python benchmarks/policies.py [--trace FILE] [--blocks 1000,10000]

Simulated by `neve.planner.simulate.hot`. Traces: the conversation trace alone; with as many extra
blocks that are stored and never used (`written scan`); with as many extra blocks in S3 that are
read once (`read scan`). Hit ratios exclude scans.
"""

import argparse
import sys
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

from neve.planner.simulate.hot import (
    POLICIES,
    REFERENCES,
    HotBlocks,
    HotTier,
    Promote,
    simulate,
)
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


def contestants() -> dict[str, tuple[Callable[[], HotBlocks], Promote]]:
    chosen = {name: (make, Promote.SECOND_READ) for name, make in POLICIES.items()}
    others = {name: (make, Promote.SECOND_READ) for name, make in REFERENCES.items()}
    every = {"lru, every read promotes": (POLICIES["lru"], Promote.EVERY_READ)}
    return every | chosen | others


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--trace", type=Path, default=TRACE)
    parser.add_argument(
        "--blocks", default=",".join(map(str, BLOCKS)), help="sizes of the hot tier"
    )
    options = parser.parse_args()
    sizes = [int(size) for size in options.blocks.split(",")]
    requests = conversations(options.trace)
    started = time.monotonic()
    means: dict[str, list[float]] = {}
    for title, trace in (
        ("conversation trace", requests),
        ("with a written scan", list(with_scans(requests, was_cold=False))),
        ("with a read scan", list(with_scans(requests, was_cold=True))),
    ):
        print(f"\n{title}: hits / promotions for each block asked for, by blocks of the hot tier")
        print(f"  {'':26}" + "".join(f"{size:>15,}" for size in sizes))
        for name, (make, promote) in contestants().items():
            row = [simulate(HotTier(make(), size, promote), trace) for size in sizes]
            means.setdefault(name, []).extend(hit for hit, _ in row)
            print(f"  {name:26}" + "".join(f"  {hit:.4f} / {put:.2f}" for hit, put in row))
    mean = {name: sum(means[name]) / len(means[name]) for name in POLICIES}
    best = max(mean, key=lambda name: mean[name])
    facts = " ".join(f"{name}={value:.4f}" for name, value in mean.items())
    print(f"\npolicies {facts} best={best} seconds={time.monotonic() - started:.0f}")


if __name__ == "__main__":
    main()
