"""Compares eviction and promotion policies on a trace: hit ratio of the hot tier by its size.

    .venv/bin/python benchmarks/policies.py [--trace FILE] [--blocks 1000,10000]

A pure simulation, one block a block. The policies of POLICIES are those that `EVICTION` of
connector/src/neve/index/functions.lua names, and tests/benchmarks/test_policies.py drives both with
the same blocks; REFERENCES are only here. Why which was chosen: docs/decisions/007-eviction.md.

What is simulated: a request asks for its blocks in order. Those that are hot are used, those that
are cold are read from S3 and promoted as the rule says, the others are computed, stored as hot, and
have gone to S3 by the time they are evicted. Traces: the conversation trace as it is; with as many
blocks again that are stored once and never used (`written scan`), or that stand in S3 and are read
once (`read scan`). Scans count in no hit ratio.
"""

import argparse
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import Protocol

from neve.index.tier import PROMOTE_WINDOW_S
from neve.replay.generator import Generator, Workload
from neve.replay.trace import read_trace

TRACE = Path(__file__).resolve().parents[2] / "shared/traces/conversation_trace.jsonl"
BLOCKS = (1_000, 3_000, 10_000, 30_000, 50_000, 100_000)
SCAN_BLOCKS = 240  # of one scan
FIRST_SCANNED = 1 << 62  # ids of scanned blocks; no trace has such


class HotTier(Protocol):
    """Blocks by id. `enter` may be called for what is not in, `use` for what is."""

    def __contains__(self, id_: int) -> bool: ...
    def __len__(self) -> int: ...
    def enter(self, id_: int, *, again: bool) -> None: ...
    def use(self, id_: int) -> None: ...
    def evict(self) -> int: ...


class Queues:
    """`lru` and `2q`: on probation until used, then among the others; both least recent first."""

    def __init__(self, *, probation: bool, share: float) -> None:
        self.probation = probation
        self.share = share
        self._young: OrderedDict[int, None] = OrderedDict()
        self._others: OrderedDict[int, None] = OrderedDict()

    def __contains__(self, id_: int) -> bool:
        return id_ in self._young or id_ in self._others

    def __len__(self) -> int:
        return len(self._young) + len(self._others)

    def enter(self, id_: int, *, again: bool) -> None:
        (self._young if self.probation and not again else self._others)[id_] = None

    def use(self, id_: int) -> None:
        self._young.pop(id_, None)
        self._others[id_] = None
        self._others.move_to_end(id_)

    def evict(self) -> int:
        young_first = len(self._young) > self.share * len(self)
        return (self._young if young_first else self._others).popitem(last=False)[0]


class S3Fifo:
    """S3-FIFO (Yang et al., SOSP'23), a tenth of the blocks in its small queue.

    The index knows every cold block, so no ghost queue is needed: what is promoted enters the main
    queue.
    """

    SMALL = 0.1
    MOST_USES = 3

    def __init__(self) -> None:
        self._small: OrderedDict[int, int] = OrderedDict()
        self._main: OrderedDict[int, int] = OrderedDict()

    def __contains__(self, id_: int) -> bool:
        return id_ in self._small or id_ in self._main

    def __len__(self) -> int:
        return len(self._small) + len(self._main)

    def enter(self, id_: int, *, again: bool) -> None:
        (self._main if again else self._small)[id_] = 0

    def use(self, id_: int) -> None:
        queue = self._small if id_ in self._small else self._main
        queue[id_] = min(self.MOST_USES, queue[id_] + 1)

    def evict(self) -> int:
        while True:
            if len(self._small) > self.SMALL * len(self) or not self._main:
                id_, uses = self._small.popitem(last=False)
                if not uses:
                    return id_
                self._main[id_] = 0
            else:
                id_, uses = self._main.popitem(last=False)
                if not uses:
                    return id_
                self._main[id_] = uses - 1


class Promote(StrEnum):
    SECOND_READ = "second"
    EVERY_READ = "every"
    NEVER = "never"


@dataclass
class Cache:
    """A hot tier of `most_blocks` above a cold tier that keeps everything."""

    hot: HotTier
    most_blocks: int
    promote: Promote = Promote.SECOND_READ
    window_s: float = PROMOTE_WINDOW_S
    promoted: int = 0
    _cold: dict[int, float] = field(default_factory=dict)  # id → when it was read cold last

    def request(self, ids: Iterable[int], now_s: float) -> int:
        """Asks for blocks, first to last, stores the unknown ones. Returns how many were hot."""
        return sum(self.ask(id_, now_s) for id_ in ids)

    def ask(self, id_: int, now_s: float) -> bool:
        if id_ in self.hot:
            self.hot.use(id_)
            return True
        if id_ not in self._cold:
            self.store(id_, again=False)
        elif self._is_promoted(id_, now_s):
            self.promoted += 1
            self.store(id_, again=True)
        else:
            self._cold[id_] = now_s
        return False

    def store(self, id_: int, *, again: bool) -> None:
        """Frees room before it enters, as commit does."""
        while len(self.hot) >= self.most_blocks:
            self._cold[self.hot.evict()] = -1e18
        self._cold[id_] = -1e18
        self.hot.enter(id_, again=again)

    def add_cold(self, ids: Iterable[int]) -> None:
        self._cold.update(dict.fromkeys(ids, -1e18))

    def _is_promoted(self, id_: int, now_s: float) -> bool:
        if self.promote is Promote.SECOND_READ:
            return now_s - self._cold[id_] <= self.window_s
        return self.promote is Promote.EVERY_READ


POLICIES: dict[str, Callable[[], Queues]] = {
    "lru": lambda: Queues(probation=False, share=0),
    "2q": lambda: Queues(probation=True, share=0.5),
}
REFERENCES: dict[str, Callable[[], HotTier]] = {
    "2q, a tenth": lambda: Queues(probation=True, share=0.1),
    "s3-fifo": S3Fifo,
}


@dataclass(frozen=True)
class Asked:
    """A request. Of a scan: `is_scan`; its blocks stood in S3 before, or nobody knew them."""

    ids: tuple[int, ...]
    at_s: float
    is_scan: bool = False
    was_cold: bool = False


def conversations(path: Path) -> list[Asked]:
    """The trace; the built-in workload where it is missing."""
    if path.exists():
        rows = read_trace(path)
    else:
        print(f"{path} is missing: using the built-in workload", file=sys.stderr)
        rows = list(islice(Generator(Workload.MIXED, seed=1), 12_000))
    return [Asked(row.hash_ids, row.timestamp_ms / 1000) for row in rows]


def with_scans(requests: list[Asked], *, was_cold: bool) -> Iterator[Asked]:
    """Between the requests, as many blocks again that are asked for once."""
    owed, next_id = 0, FIRST_SCANNED
    for request in requests:
        yield request
        owed += len(request.ids)
        while owed >= SCAN_BLOCKS:
            ids = tuple(range(next_id, next_id + SCAN_BLOCKS))
            yield Asked(ids, request.at_s, is_scan=True, was_cold=was_cold)
            owed, next_id = owed - SCAN_BLOCKS, next_id + SCAN_BLOCKS


def simulate(cache: Cache, requests: Iterable[Asked]) -> tuple[float, float]:
    """Hits and promotions for each block that the requests (not the scans) asked for."""
    hits = asked = 0
    for request in requests:
        if request.was_cold:
            cache.add_cold(request.ids)
        hot = cache.request(request.ids, request.at_s)
        if not request.is_scan:
            hits, asked = hits + hot, asked + len(request.ids)
    return hits / asked, cache.promoted / asked


def contestants() -> dict[str, tuple[Callable[[], HotTier], Promote]]:
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
            row = [simulate(Cache(make(), size, promote), trace) for size in sizes]
            means.setdefault(name, []).extend(hit for hit, _ in row)
            print(f"  {name:26}" + "".join(f"  {hit:.4f} / {put:.2f}" for hit, put in row))
    mean = {name: sum(means[name]) / len(means[name]) for name in POLICIES}
    best = max(mean, key=lambda name: mean[name])
    facts = " ".join(f"{name}={value:.4f}" for name, value in mean.items())
    print(f"\npolicies {facts} best={best} seconds={time.monotonic() - started:.0f}")


if __name__ == "__main__":
    main()
