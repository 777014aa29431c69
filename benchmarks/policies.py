"""Compares eviction and promotion policies on a trace: hit rates by size of a tier, CPU seconds.

    .venv/bin/python benchmarks/policies.py [--trace FILE] [--blocks 1000,10000] [--only one-tier]

First one tier that stores all that is asked for (`neve.planner.simulate.single`): hits of the
longest held prefix for each block asked for, the share of prefill that they spare, and the CPU
seconds of a run. Then a hot tier with promotion (`neve.planner.simulate.hot`): hits / promotions
for each block asked for, on three traces: the conversation trace alone; with as many extra blocks
that are stored and never used (`written scan`); with as many extra blocks in S3 that are read once
(`read scan`). Scans count in no ratio.

Last a node's own tier: hits / files written for each block asked for, by order of removal and
admission, with one node and with four that get the requests in turn. A tier above it is endless:
what was asked for before is read from there.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path

from neve.datapath.local import Ghosts
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


def orders() -> dict[str, Callable[[int], Policy]]:
    """`unread first` is the local tier's own order: a file's mtime, an hour ago when it is new."""
    return {
        "lru": partial(_made, "lru"),
        "2q, half": partial(_made, "2q"),
        "unread first": partial(Queues, probation=True, share=0.0),
        "s3-fifo": partial(S3Fifo, least_uses=1),
    }


def local_hits(
    requests: Sequence[BlockRequest],
    policy: Callable[[int], Policy],
    *,
    blocks: int,
    nodes: int,
    uses: int,
) -> tuple[float, float]:
    """(local hits, files written) for each block asked for. `blocks`: of each node; `uses`: of a
    block by one node until it is kept, computing it included."""
    tiers = [(policy(blocks), Ghosts()) for _ in range(nodes)]
    hits = writes = asked = 0
    for number, request in enumerate(requests):
        held, ghosts = tiers[number % nodes]
        for id_ in request.ids:
            if id_ in held:
                held.use(id_)
                hits += not request.is_scan
                continue
            key = id_.to_bytes(8, "little", signed=True)
            if uses == 1 or ghosts.has(key):
                held.store(id_)
                ghosts.discard(key)
                writes += 1
            else:
                ghosts.add([key])
        asked += 0 if request.is_scan else len(request.ids)
    return hits / asked, writes / asked


def local_tier(requests: Sequence[BlockRequest], sizes: Sequence[int]) -> None:
    """Prints a table for each trace and number of nodes, then the mean of each way."""
    means: dict[str, list[tuple[float, float]]] = {}
    for title, trace in (
        ("conversation trace", requests),
        ("with a written scan", list(with_scans(requests, was_cold=False))),
    ):
        for nodes in (1, 4):
            print(f"local tier, {title}, {nodes} nodes: hits / writes for each block asked for")
            show("", [f"{size:,}" for size in sizes])
            for order, policy in orders().items():
                for uses, name in ((1, f"{order}, first use"), (2, f"{order}, second use")):
                    row = [
                        local_hits(trace, policy, blocks=size, nodes=nodes, uses=uses)
                        for size in sizes
                    ]
                    means.setdefault(name, []).extend(row)
                    show(name, [f"{hit:.4f} / {put:.2f}" for hit, put in row])
            print()
    for name, cells in means.items():
        hit, put = (sum(each) / len(cells) for each in zip(*cells, strict=True))
        print(f"local_tier {name}: hits={hit:.4f} writes={put:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--trace", type=Path, default=TRACE)
    parser.add_argument("--blocks", default=",".join(map(str, BLOCKS)), help="sizes of the tier")
    parts = {"one-tier": one_tier, "hot-tier": hot_tier, "local-tier": local_tier}
    parser.add_argument("--only", choices=parts, help="one of the comparisons")
    options = parser.parse_args()
    sizes = [int(size) for size in options.blocks.split(",")]
    requests = conversations(options.trace)
    for part in [options.only] if options.only else parts:
        parts[part](requests, sizes)


if __name__ == "__main__":
    main()
