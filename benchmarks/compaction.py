"""What compaction does to the cold tier on a trace: segments, dead bytes, and what a load reads.

    .venv/bin/python benchmarks/compaction.py TRACE [--check 1500]

The trace is played in its own time: a request's new blocks are stored as its prefill computes them,
the flusher's rule is asked each second, the compactor's each 30 s. Planning is the real thing
(`order_along_chains`, `cut_evenly`, `plan`, `plan_ranges`), but no byte moves: the conversation
trace's blocks, 2 MiB each, are 383 GB. In the end chains expire. A load reads a request's chain.

`--check` plays so many requests on real servers as well, with the real Flusher and Compactor and
all sizes divided by SCALE. docs/decisions/010-compaction.md has the figures.
"""

import argparse
import json
import random
import shutil
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Protocol
from unittest.mock import patch

import django

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "platform"), str(ROOT / "tests")]

from support import testsettings  # noqa: E402

django.setup()

from neve.datapath import cold  # noqa: E402
from neve.datapath.client import COLD_CONNECTIONS  # noqa: E402
from neve.datapath.cold import ColdBlock, plan_ranges  # noqa: E402
from neve.formats.block import HEADER_BYTES  # noqa: E402
from neve.replay.trace import TRACE_BLOCK_TOKENS, Request, read_trace  # noqa: E402
from workers import flush, segments  # noqa: E402
from workers.batches import cut_batches, cut_evenly  # noqa: E402
from workers.chains import order_along_chains  # noqa: E402
from workers.compaction.plan import Facts, Merge, Policy, plan  # noqa: E402
from workers.schedule import SCHEDULE  # noqa: E402

SCALE = 128  # blocks of 16 KiB instead of 2 MiB on real servers, and all limits smaller as well
ROOT_ID = bytes(16)
Place = tuple[int, int]  # segment, offset


@dataclass(frozen=True)
class Block:
    id: bytes
    parent: bytes
    size_bytes: int


class World(Protocol):
    """Where blocks go. `moved_bytes`: what compaction wrote."""

    moved_bytes: int
    merges: Counter[str]

    def flush(self, blocks: Sequence[Block]) -> None: ...
    def compact(self, now_s: float) -> None: ...
    def expire(self, ids: Sequence[bytes]) -> None: ...
    def places(self, ids: Sequence[bytes]) -> list[Place]: ...
    def held(self) -> tuple[int, int, int]:
        """Segments that hold anything alive, their live and their dead bytes."""


@dataclass
class _Segment:
    size_bytes: int
    live: dict[bytes, Block]
    made_s: float
    generation: int
    blocks: int
    links: dict[int, int]


@dataclass
class Simulated:
    """Segments as workers.flush and workers.compaction would make them."""

    policy: Policy
    moved_bytes: int = 0
    merges: Counter[str] = field(default_factory=Counter)
    now_s: float = 0.0
    _segments: dict[int, _Segment] = field(default_factory=dict)
    _places: dict[bytes, Place] = field(default_factory=dict)
    _next: int = 1

    def flush(self, blocks: Sequence[Block]) -> None:
        for lease in cut_batches(blocks, flush.LEASE_BYTES):
            for piece in cut_evenly(order_along_chains(lease), self.policy.most_bytes):
                self._write(piece, 0)

    def compact(self, now_s: float) -> None:
        self.now_s = now_s
        while merges := plan([self._facts(n) for n in self._segments], self.policy):
            self._carry_out(merges[0])

    def expire(self, ids: Sequence[bytes]) -> None:
        for id_ in ids:
            number = self._places.pop(id_)[0]
            del self._segments[number].live[id_]

    def places(self, ids: Sequence[bytes]) -> list[Place]:
        return [self._places[id_] for id_ in ids]

    def held(self) -> tuple[int, int, int]:
        held = [each for each in self._segments.values() if each.live]
        live = sum(block.size_bytes for each in held for block in each.live.values())
        return len(held), live, sum(each.size_bytes for each in held) - live

    def _write(self, blocks: Sequence[Block], generation: int) -> None:
        number, at = self._next, HEADER_BYTES
        self._next += 1
        for block in blocks:
            self._places[block.id] = (number, at)
            at += block.size_bytes
        inside = {block.id for block in blocks}
        parents = sorted({block.parent for block in blocks} - inside)
        links = Counter(self._places[id_][0] for id_ in parents if id_ in self._places)
        kept = dict(links.most_common(segments.LINKS_KEPT))
        live = {block.id: block for block in blocks}
        self._segments[number] = _Segment(at, live, self.now_s, generation, len(blocks), kept)

    def _carry_out(self, merge: Merge) -> None:
        copies = [b for n in merge.segments for b in self._segments[n].live.values()]
        for piece in cut_evenly(order_along_chains(copies), self.policy.most_bytes):
            self._write(piece, merge.generation)
        for number in merge.segments:
            del self._segments[number]
        self.moved_bytes += merge.live_bytes
        self.merges[merge.reason] += 1

    def _facts(self, number: int) -> Facts:
        each = self._segments[number]
        live_bytes = sum(block.size_bytes for block in each.live.values())
        return Facts(
            number, each.size_bytes, live_bytes, each.blocks,
            self.now_s - each.made_s, each.generation, each.links,
        )  # fmt: skip


def blocks_of(
    requests: Sequence[Request], block_bytes: int, tokens_per_s: float
) -> list[tuple[float, Block]]:
    """Every block of the trace, in the order in which they are stored, and when.

    A request's new blocks are stored one after the other, as its prefill computes them.
    """
    blocks: dict[bytes, tuple[float, Block]] = {}
    for request in requests:
        parent, ready_s = ROOT_ID, request.timestamp_ms / 1000
        for id_ in chain_of(request):
            if id_ not in blocks:
                ready_s += TRACE_BLOCK_TOKENS / tokens_per_s
                blocks[id_] = ready_s, Block(id_, parent, HEADER_BYTES + block_bytes)
            parent = id_
    return sorted(blocks.values(), key=lambda each: each[0])


def chain_of(request: Request) -> list[bytes]:
    return [(number + 1).to_bytes(16, "big") for number in request.hash_ids]


def play(world: World, stored: Sequence[tuple[float, Block]], *, compacts: bool) -> None:
    """`stored`: blocks and when, in order. Flushes and compacts by the workers' own schedule."""
    dirty: list[Block] = []
    oldest_s, dirty_bytes, done, now_s = 0.0, 0, 0, 0.0
    compact_at = SCHEDULE["compact"]["schedule"]
    while done < len(stored) or dirty:
        while done < len(stored) and stored[done][0] <= now_s:
            oldest_s = oldest_s if dirty else stored[done][0]
            dirty.append(stored[done][1])
            dirty_bytes += dirty[-1].size_bytes
            done += 1
        is_late = bool(dirty) and oldest_s <= now_s - flush.GATHER_S
        if dirty_bytes >= segments.LEAST_BYTES or is_late:
            world.flush(dirty)
            dirty, dirty_bytes = [], 0
        if compacts and now_s >= compact_at:
            world.compact(now_s)
            compact_at += SCHEDULE["compact"]["schedule"]
        now_s += SCHEDULE["flush"]["schedule"]
    if compacts:
        world.compact(now_s)


def split_contexts(requests: Sequence[Request], share: float) -> tuple[list[Request], set[bytes]]:
    """Requests that are left when `share` of all chains expired, and the blocks that went."""
    draw = random.Random(1)
    kept = [request for request in requests if draw.random() >= share]
    alive = {id_ for request in kept for id_ in chain_of(request)}
    every = {id_ for request in requests for id_ in chain_of(request)}
    return kept, every - alive


@dataclass(frozen=True)
class Case:
    """`every`: only one conversation of so many; `tokens_per_s` of one request's prefill;
    `expired`: share of all chains, at the end."""

    block_bytes: int
    expired: float
    tokens_per_s: float = 1.0
    every: int = 1

    def title(self, requests: int) -> str:
        return (
            f"{requests} requests, one conversation of {self.every}, "
            f"blocks of {self.block_bytes >> 10} KiB, prefill of {self.tokens_per_s:.0f} tokens/s"
        )

    def of(self, requests: Sequence[Request]) -> list[Request]:
        """Whole conversations: all chains share the first block and part with the second."""
        return [each for each in requests if each.hash_ids[:2][-1] % self.every == 0]


@dataclass(frozen=True)
class Figures:
    """`gets`, `overread`: of one load of a chain, by the layout alone (one stream) and by the
    client, which splits ranges to keep all its connections busy."""

    stage: str
    segments: int
    live_bytes: int
    dead_bytes: int
    gets: float
    gets_p90: float
    client_gets: float
    overread_bytes: float
    moved_bytes: int
    merges: dict[str, int]


def measure(stage: str, world: World, requests: Sequence[Request], block_bytes: int) -> Figures:
    payload = memoryview(bytes(block_bytes))
    gets, client_gets, over = [], [], []
    for request in requests:
        chain = chain_of(request)
        blocks = [
            ColdBlock(n, id_, *place, payload, bytearray())
            for n, (id_, place) in enumerate(zip(chain, world.places(chain), strict=True))
        ]
        groups = plan_ranges(blocks)
        wanted = sum(block.end - block.offset for block in blocks)
        gets.append(len(groups))
        over.append(sum(group[-1].end - group[0].offset for group in groups) - wanted)
        client_gets.append(len(plan_ranges(blocks, streams=COLD_CONNECTIONS)))
    return Figures(
        stage, *world.held(), statistics.mean(gets), sorted(gets)[len(gets) * 9 // 10],
        statistics.mean(client_gets), statistics.mean(over), world.moved_bytes, dict(world.merges),
    )  # fmt: skip


def stages(
    make: Callable[[Policy], World], requests: Sequence[Request], case: "Case"
) -> Iterator[Figures]:
    """Without compaction, and with it; before and after contexts expired."""
    block_bytes = case.block_bytes
    kept, gone = split_contexts(requests, case.expired)
    stored = blocks_of(requests, block_bytes, case.tokens_per_s)
    for compacts in (False, True):
        name = "compacted" if compacts else "as flushed"
        world = make(Policy(
            least_bytes=segments.LEAST_BYTES, most_bytes=segments.MOST_BYTES,
            range_bytes=cold.RANGE_BYTES,
        ))  # fmt: skip
        play(world, stored, compacts=compacts)
        yield measure(name, world, requests, block_bytes)
        world.expire(sorted(gone))
        if compacts:
            world.compact(requests[-1].timestamp_ms / 1000 + 60)
        yield measure(f"{name}, {case.expired:.0%} expired", world, kept, block_bytes)


def table(title: str, figures: Sequence[Figures]) -> str:
    lines = [
        title,
        f"  {'':24} {'segments':>8} {'live GB':>8} {'dead GB':>8} {'GETs':>6} {'p90':>4} "
        f"{'client':>6} {'over-read MB':>12} {'rewritten GB':>12}  merges",
    ]
    for each in figures:
        merges = " ".join(f"{name} {count}" for name, count in sorted(each.merges.items()))
        lines.append(
            f"  {each.stage:24} {each.segments:>8} {each.live_bytes / 1e9:>8.2f} "
            f"{each.dead_bytes / 1e9:>8.2f} {each.gets:>6.1f} {each.gets_p90:>4.0f} "
            f"{each.client_gets:>6.1f} {each.overread_bytes / 1e6:>12.2f} "
            f"{each.moved_bytes / 1e9:>12.2f}  {merges}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("trace", type=Path)
    parser.add_argument("--prefill", default="8000,1000", help="tokens/s of one request")
    parser.add_argument("--every", default="1,50", help="of so many conversations one")
    parser.add_argument("--block-kib", type=int, default=2048)
    parser.add_argument("--expired", type=float, default=0.5, help="share of chains, at the end")
    parser.add_argument("--check", type=int, default=0, help="requests on real servers as well")
    parser.add_argument("--out", type=Path, default=ROOT / "var/bench")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    requests = read_trace(options.trace)
    first = Case(options.block_kib << 10, options.expired)
    cases = [
        replace(first, tokens_per_s=float(prefill), every=int(every))
        for every in options.every.split(",")
        for prefill in options.prefill.split(",")
    ]
    found: dict[str, list[Figures]] = {}

    def show(title: str, rows: Iterable[Figures]) -> None:
        found[title] = list(rows)
        print(table(title, found[title]), flush=True)

    try:
        for case in cases:
            mine = case.of(requests)
            show(case.title(len(mine)), stages(Simulated, mine, case))
        if options.check:
            mine = requests[: options.check]
            small = replace(cases[1], block_bytes=first.block_bytes // SCALE)
            with all_smaller():
                show(f"simulated: {small.title(len(mine))}", stages(Simulated, mine, small))
                from compaction_real import Real, servers

                with servers():
                    show(f"real: {small.title(len(mine))}", stages(Real, mine, small))
    finally:
        shutil.rmtree(testsettings.FOLDER, ignore_errors=True)
    result = {title: [asdict(each) for each in rows] for title, rows in found.items()}
    (options.out / "compaction.json").write_text(json.dumps(result))


@contextmanager
def all_smaller() -> Iterator[None]:
    """All limits of flush, compaction and readers, divided by SCALE."""
    limits = {
        segments: ("LEAST_BYTES", "MOST_BYTES"),
        flush: ("LEASE_BYTES",),
        cold: ("RANGE_BYTES", "LEAST_RANGE_BYTES", "GAP_BYTES"),
    }
    with ExitStack() as stack:
        for module, names in limits.items():
            for name in names:
                stack.enter_context(patch.object(module, name, getattr(module, name) // SCALE))
        yield


if __name__ == "__main__":
    main()
