"""Effect of compaction on a trace: number of segments, dead bytes, and GETs of a load.

    .venv/bin/python benchmarks/compaction.py TRACE [--check 1500]

Simulates the trace in its own time (`neve.planner.simulate.segments`) with the workers' rules and
the client's `plan_ranges`. No bytes move: the conversation trace's blocks, 2 MiB each, are 383 GB.
At the end, chains expire. A load reads a request's chain.

`--check N` also plays N requests on real servers, with the real Flusher and Compactor and all sizes
divided by SCALE. Results: docs/decisions/010-compaction.md.
"""

import argparse
import json
import random
import shutil
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from unittest.mock import patch

import django

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "platform"), str(ROOT / "tests")]

from support import testsettings  # noqa: E402

django.setup()

from neve.datapath import cold  # noqa: E402
from neve.datapath.client import COLD_CONNECTIONS  # noqa: E402
from neve.datapath.cold import ColdBlock, plan_ranges  # noqa: E402
from neve.planner.simulate.requests import BlockRequest  # noqa: E402
from neve.planner.simulate.segments import (  # noqa: E402
    Rules,
    Schedule,
    SimulatedSegments,
    World,
    chain_of,
    play,
    stored_blocks,
)
from neve.replay.trace import TRACE_BLOCK_TOKENS, read_trace  # noqa: E402
from tiering import flush, segments  # noqa: E402
from tiering.batches import cut_batches, cut_evenly  # noqa: E402
from tiering.chains import order_along_chains  # noqa: E402
from tiering.compaction.plan import Policy, plan  # noqa: E402
from workers.schedule import SCHEDULE  # noqa: E402

SCALE = 128  # on real servers: blocks of 16 KiB instead of 2 MiB, all limits divided alike


def rules(policy: Policy) -> Rules:
    """Rules of the real workers."""
    return Rules(
        leases=lambda blocks: cut_batches(blocks, flush.LEASE_BYTES),
        pieces=lambda blocks: cut_evenly(order_along_chains(blocks), policy.most_bytes),
        merges=lambda facts: plan(facts, policy),
        links_kept=segments.LINKS_KEPT,
    )


def schedule() -> Schedule:
    """Intervals of the real workers."""
    return Schedule(
        least_bytes=segments.LEAST_BYTES,
        gather_s=flush.GATHER_S,
        flush_every_s=SCHEDULE["flush"]["schedule"],
        compact_every_s=SCHEDULE["compact"]["schedule"],
    )


def simulated(policy: Policy) -> SimulatedSegments:
    return SimulatedSegments(rules(policy))


def split_contexts(
    requests: Sequence[BlockRequest], share: float
) -> tuple[list[BlockRequest], set[bytes]]:
    """(requests that remain after `share` of all chains expired, ids of the expired blocks)."""
    draw = random.Random(1)
    kept = [request for request in requests if draw.random() >= share]
    alive = {id_ for request in kept for id_ in chain_of(request)}
    every = {id_ for request in requests for id_ in chain_of(request)}
    return kept, every - alive


@dataclass(frozen=True)
class Case:
    """`every`: take one of so many conversations; `tokens_per_s`: prefill speed of one request;
    `expired`: share of the chains that expire at the end."""

    block_bytes: int
    expired: float
    tokens_per_s: float = 1.0
    every: int = 1

    def title(self, requests: int) -> str:
        return (
            f"{requests} requests, one conversation of {self.every}, "
            f"blocks of {self.block_bytes >> 10} KiB, prefill of {self.tokens_per_s:.0f} tokens/s"
        )

    def of(self, requests: Sequence[BlockRequest]) -> list[BlockRequest]:
        """Select whole conversations, by the second block: all chains share the first."""
        return [each for each in requests if each.ids[:2][-1] % self.every == 0]


@dataclass(frozen=True)
class Figures:
    """`gets`, `overread`: per load of a chain. One value for the layout alone (one stream), one for
    the client, which splits ranges to keep all its connections busy."""

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


def measure(
    stage: str, world: World, requests: Sequence[BlockRequest], block_bytes: int
) -> Figures:
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
    make: Callable[[Policy], World], requests: Sequence[BlockRequest], case: "Case"
) -> Iterator[Figures]:
    """Figures without and with compaction, before and after contexts expire."""
    block_bytes = case.block_bytes
    kept, gone = split_contexts(requests, case.expired)
    block_s = TRACE_BLOCK_TOKENS / case.tokens_per_s
    stored = stored_blocks(requests, payload_bytes=block_bytes, block_s=block_s)
    for compacts in (False, True):
        name = "compacted" if compacts else "as flushed"
        world = make(Policy(
            least_bytes=segments.LEAST_BYTES, most_bytes=segments.MOST_BYTES,
            range_bytes=cold.RANGE_BYTES,
        ))  # fmt: skip
        play(world, stored, schedule(), compacts=compacts)
        yield measure(name, world, requests, block_bytes)
        world.expire(sorted(gone))
        if compacts:
            world.compact(requests[-1].at_s + 60)
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
    rows = read_trace(options.trace)
    requests = [BlockRequest(row.hash_ids, row.timestamp_ms / 1000) for row in rows]
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
            show(case.title(len(mine)), stages(simulated, mine, case))
        if options.check:
            mine = requests[: options.check]
            small = replace(cases[1], block_bytes=first.block_bytes // SCALE)
            with all_smaller():
                show(f"simulated: {small.title(len(mine))}", stages(simulated, mine, small))
                from compaction_real import Real

                from support.platform_servers import platform_servers

                with platform_servers():
                    show(f"real: {small.title(len(mine))}", stages(Real, mine, small))
    finally:
        shutil.rmtree(testsettings.FOLDER, ignore_errors=True)
    result = {title: [asdict(each) for each in rows] for title, rows in found.items()}
    (options.out / "compaction.json").write_text(json.dumps(result))


@contextmanager
def all_smaller() -> Iterator[None]:
    """Divide all limits of flush, compaction and readers by SCALE."""
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
