"""Speed of a worker's flushes and merges and of a node's cold loads, relative to S3's own speed.

    python benchmarks/tiering_speed.py [--mib 512] [--rounds 5] ...
    QUICK=1 make bench-tiering

Starts its own platform on loopback: Valkey, weed, control plane. Measures the workers' Flusher and
Compactor in a separate process, and the public client. The ceilings are plain sockets to the same
weed with as many streams (raw_s3.py), measured right before and after.
Writes JSON and a table, explained in docs/benchmarks.md.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "platform"), str(ROOT / "tests"), str(ROOT / "benchmarks")]

from datapath import Child  # noqa: E402
from raw_s3 import Range, RawS3  # noqa: E402
from valkeys import run_s  # noqa: E402

from neve.datapath.client import COLD_CONNECTIONS, BlockRef, Client, Tier  # noqa: E402
from neve.datapath.cold import RANGE_BYTES, ColdBlock, plan_ranges  # noqa: E402
from neve.formats.block import HEADER_BYTES  # noqa: E402
from neve.formats.space import SpaceIdentity  # noqa: E402
from support.servers import ControlPlane, S3Server  # noqa: E402

PAYLOAD_BYTES = 2 << 20
TURNS = 8  # in each turn, all contexts grow and are flushed
PUT_BYTES = 64 << 20  # of one batch
DEADLINE_S = 60.0
TMPFS = Path("/dev/shm")
RAW = {"flush": "raw put", "compact": "raw copy", "cold before": "raw get", "cold": "raw get"}


@dataclass
class Row:
    """One operation; lists have an entry per round or load. `raw_gb_per_s`: the ceiling then."""

    what: str
    bytes: list[int] = field(default_factory=list)
    wall_s: list[float] = field(default_factory=list)
    raw_gb_per_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    s3_cpu_s: list[float] = field(default_factory=list)
    raw_s3_cpu_s_per_gb: list[float] = field(default_factory=list)
    peak_mib: list[float] = field(default_factory=list)
    ranges: list[int] = field(default_factory=list)

    def ratio(self) -> float:
        """Median of the rounds' ratios to the ceiling."""
        pairs = zip(self.gb_per_s(), self.raw_gb_per_s, strict=True)
        return statistics.median(mine / raw for mine, raw in pairs)

    def gb_per_s(self) -> list[float]:
        return [b / s / 1e9 for b, s in zip(self.bytes, self.wall_s, strict=True)]


Chain = list[bytes]


class Bench:
    """A platform with one tenant, its worker and its node."""

    def __init__(self, platform: ControlPlane, worker: Child, mib: int, chains: int) -> None:
        self.s3 = platform.s3
        self.worker = worker
        self.facts = worker.ask("begin")
        self.chains = chains
        self._set_size((mib << 20) // PAYLOAD_BYTES // chains // TURNS * TURNS)
        self.rows = {name: Row(name) for name in RAW}
        self.data = memoryview(np.random.default_rng(1).integers(0, 256, self.bytes, np.uint8))
        self.target = memoryview(np.ones(self.bytes, np.uint8))
        self.raw = RawS3(self.s3.client(), self.s3.bucket("raw"))
        self.own = RawS3(self.s3.client(), self.facts["bucket"])
        identity = SpaceIdentity("m", "1", "bf16", "bf16", "l", 1, 16, PAYLOAD_BYTES // 256)
        self.node = Client.connect(
            platform.url, self.facts["key"], identity,
            node="bench", engine={"name": "bench", "version": "1"}, promote=False,
        )  # fmt: skip

    def run(self, rounds: int) -> None:
        """Measure `rounds` rounds, after round 0 as a warm-up."""
        chain_blocks = self.chain_blocks
        for number in range(rounds + 1):
            self._set_size(chain_blocks if number else TURNS)
            chains = self._flush_backlog()
            self._clear(chains)
            chains = self._flush_in_turns()
            self._load(chains, self.rows["cold before"])
            self._compact()
            self._load(chains, self.rows["cold"])
            self._clear(chains)
            if number == 0:
                self.rows = {name: Row(name) for name in RAW}

    def _set_size(self, chain_blocks: int) -> None:
        self.chain_blocks = chain_blocks
        self.bytes = self.chains * chain_blocks * (HEADER_BYTES + PAYLOAD_BYTES)

    def _flush_backlog(self) -> list[Chain]:
        chains = [[os.urandom(16) for _ in range(self.chain_blocks)] for _ in range(self.chains)]
        for chain in chains:
            self._store(chain, 0, len(chain))

        def put() -> None:
            for key, data in self._objects("put"):
                self.raw.put(
                    key, data,
                    part_bytes=self.facts["part_bytes"], streams=self.facts["put_streams"],
                )  # fmt: skip

        self._measure_worker("flush", put)
        return chains

    def _flush_in_turns(self) -> list[Chain]:
        """Store chains in TURNS pieces with a flush after each: one segment per piece."""
        chains = [[os.urandom(16) for _ in range(self.chain_blocks)] for _ in range(self.chains)]
        step = self.chain_blocks // TURNS
        for first in range(0, self.chain_blocks, step):
            for chain in chains:
                self._store(chain, first, first + step)
            self.worker.ask("flush")
        self.worker.ask("cool")
        return chains

    def _compact(self) -> None:
        def copy() -> None:
            """Copy the objects of `put` one after the other, as a merge does."""
            for (source, _), (key, data) in zip(
                self._objects("put"), self._objects("copy"), strict=True
            ):
                spans = range(0, len(data), RANGE_BYTES)
                room = self.target[: len(data)]
                self.raw.copy(
                    [(source, at, room[at : at + RANGE_BYTES]) for at in spans], key, data,
                    part_bytes=self.facts["part_bytes"],
                    put_streams=self.facts["put_streams"], get_streams=self.facts["get_streams"],
                )  # fmt: skip

        self._measure_worker("compact", copy)

    def _objects(self, name: str) -> list[tuple[str, memoryview]]:
        """(key, data) of segment-sized objects that hold as much as a round moves."""
        count = -(-self.bytes // self.facts["segment_bytes"])
        share = -(-self.bytes // count)
        whole = self.data[: self.bytes]
        return [(f"{name}-{n}", whole[n * share : (n + 1) * share]) for n in range(count)]

    def _load(self, chains: list[Chain], row: Row) -> None:
        """Load each context by the client, and the same ranges by plain sockets."""
        keys = self.worker.ask("segments")
        for chain in chains:
            locations = self.node.match(chain, deadline_s=DEADLINE_S).locations
            if len(locations) != len(chain) or any(x.tier is not Tier.COLD for x in locations):
                raise RuntimeError(f"{len(locations)} of {len(chain)} blocks are found, or are hot")
            views, row_bytes = self._views(len(chain)), len(chain) * PAYLOAD_BYTES
            blocks = [
                ColdBlock(n, id_, where.segment, where.offset, view)
                for n, (id_, where, view) in enumerate(zip(chain, locations, views, strict=True))
            ]
            ranges: list[Range] = []
            for group in plan_ranges(blocks, streams=COLD_CONNECTIONS):
                size = group[-1].end - group[0].offset
                at = sum(len(view) for _, _, view in ranges)
                view = self.target[at : at + size]
                ranges.append((keys[str(group[0].segment)], group[0].offset, view))

            raw = self.own.reader(ranges, streams=COLD_CONNECTIONS)
            with self._beside(row, raw, row_bytes):
                cpu_s, s3_cpu_s, began = time.process_time(), self._s3_cpu_s(), time.perf_counter()
                transfer = self.node.get_many(
                    chain, views, locations=locations, deadline_s=DEADLINE_S
                )
                missed = transfer.wait()
                row.wall_s.append(time.perf_counter() - began)
                row.cpu_s.append(time.process_time() - cpu_s)
                row.s3_cpu_s.append(self._s3_cpu_s() - s3_cpu_s)
                row.bytes.append(row_bytes)
                row.ranges.append(len(ranges))
                if any(missed) or not self._is_same(chain, views):
                    raise RuntimeError("a block was missed, or came back with other bytes")

    def _measure_worker(self, verb: str, raw: Callable[[], None]) -> None:
        row = self.rows[verb]
        with self._beside(row, raw, self.bytes):
            s3_cpu_s = self._s3_cpu_s()
            answer = self.worker.ask(verb)
            row.bytes.append(answer["bytes"])
            row.wall_s.append(answer["wall_s"])
            row.cpu_s.append(answer["cpu_s"])
            row.s3_cpu_s.append(self._s3_cpu_s() - s3_cpu_s)
            row.peak_mib.append(answer["peak_mib"])

    @contextmanager
    def _beside(self, row: Row, raw: Callable[[], None], bytes_: int) -> Iterator[None]:
        """Measure the ceiling before and after the body, so that other load affects both."""
        took_s = s3_cpu_s = 0.0
        for is_after in (False, True):
            cpu_before, began = self._s3_cpu_s(), time.perf_counter()
            raw()
            took_s += time.perf_counter() - began
            s3_cpu_s += self._s3_cpu_s() - cpu_before
            if not is_after:
                yield
        row.raw_gb_per_s.append(2 * bytes_ / took_s / 1e9)
        row.raw_s3_cpu_s_per_gb.append(s3_cpu_s / (2 * bytes_) * 1e9)

    def _s3_cpu_s(self) -> float:
        assert self.s3.process is not None
        return run_s(self.s3.process.pid)

    def _views(self, count: int) -> list[memoryview]:
        spans = range(0, count * PAYLOAD_BYTES, PAYLOAD_BYTES)
        return [self.target[at : at + PAYLOAD_BYTES] for at in spans]

    def _payload(self, chain: Chain, n: int) -> memoryview:
        at = (chain[n][0] * 8192 + n * 4096) % (len(self.data) - PAYLOAD_BYTES)
        return self.data[at : at + PAYLOAD_BYTES]

    def _store(self, chain: Chain, first: int, end: int) -> None:
        for begin in range(first, end, PUT_BYTES // PAYLOAD_BYTES):
            batch = range(begin, min(end, begin + PUT_BYTES // PAYLOAD_BYTES))
            blocks = [BlockRef(chain[n], chain[n - 1] if n else bytes(16), 256) for n in batch]
            payloads = [self._payload(chain, n) for n in batch]
            missed = self.node.put_many(blocks, payloads, deadline_s=DEADLINE_S).wait()
            if any(missed):
                raise RuntimeError(f"not stored: {missed}")

    def _is_same(self, chain: Chain, views: list[memoryview]) -> bool:
        return all(np.array_equal(view, self._payload(chain, n)) for n, view in enumerate(views))

    def _clear(self, chains: list[Chain]) -> None:
        """Delete everything, and let weed shrink its files."""
        for chain in chains:
            self.worker.ask("forget", *(id_.hex() for id_ in chain))
        self.worker.ask("clear")
        self.s3.shell("lock", "volume.vacuum -garbageThreshold=0.001", timeout_s=300)


def table(result: dict[str, Any]) -> str:
    options, facts = result["options"], result["facts"]
    lines = [
        f"{options['mib']} MiB a round in blocks of 2 MiB, {options['rounds']} rounds; "
        f"{result['cores']} cores, load {result['load'][0]:.1f}",
        f"{'':12} {'MB/s':>6} {'min … max':>13} {'raw MB/s':>9} {'/raw':>5} {'CPU s/GB':>9} "
        f"{'of weed':>8} {'raw, weed':>9} {'peak MiB':>9} {'ranges':>7}",
    ]
    for row in (Row(**each) for each in result["rows"]):

        def each_gb(seconds: list[float], row: Row = row) -> float:
            pairs = zip(seconds, row.bytes, strict=True)
            return statistics.median(s / b * 1e9 for s, b in pairs)

        speeds = [1000 * speed for speed in row.gb_per_s()]
        peak = f"{max(row.peak_mib):.0f}" if row.peak_mib else "—"
        ranges = f"{statistics.mean(row.ranges):.1f}" if row.ranges else "—"
        lines.append(
            f"{row.what:12} {statistics.median(speeds):6.0f} "
            f"{f'{min(speeds):.0f} … {max(speeds):.0f}':>13} "
            f"{1000 * statistics.median(row.raw_gb_per_s):9.0f} {row.ratio():5.2f} "
            f"{each_gb(row.cpu_s):9.2f} {each_gb(row.s3_cpu_s):8.2f} "
            f"{statistics.median(row.raw_s3_cpu_s_per_gb):9.2f} {peak:>9} {ranges:>7}"
        )
    for verb in ("flush", "compact"):
        row = Row(**next(each for each in result["rows"] if each["what"] == verb))
        lines.append(
            f"{verb}: {max(row.peak_mib) - facts['base_mib']:.0f} MiB at most beside the "
            f"{facts['base_mib']:.0f} MiB of an idle worker; "
            f"bound {facts[f'{verb}_bound_mib']:.0f} MiB"
        )
    return "\n".join(lines)


def headline(result: dict[str, Any]) -> str:
    rows = {each["what"]: Row(**each) for each in result["rows"]}
    peak_mib = max(rows["flush"].peak_mib + rows["compact"].peak_mib)
    return (
        f"tiering flush_vs_raw={rows['flush'].ratio():.2f} "
        f"compact_vs_raw={rows['compact'].ratio():.2f} "
        f"cold_vs_raw={rows['cold'].ratio():.2f} worker_peak_mib={peak_mib:.0f}"
    )


@contextmanager
def scratch(size: int) -> Iterator[Path]:
    """A temporary folder, in memory if there is room: a disk would be the bottleneck."""
    there = TMPFS.is_dir() and os.statvfs(TMPFS).f_bavail * os.statvfs(TMPFS).f_frsize > size
    with tempfile.TemporaryDirectory(dir=TMPFS if there else None, prefix="neve-bench-") as name:
        yield Path(name)


def main() -> None:
    quick = bool(os.environ.get("QUICK"))
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--mib", type=int, default=128 if quick else 512, help="of one round")
    parser.add_argument("--chains", type=int, default=4 if quick else 8, help="contexts")
    parser.add_argument("--rounds", type=int, default=1 if quick else 5)
    parser.add_argument("--out", type=Path, default=ROOT / "var/bench")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    hot_bytes = (options.mib << 20) + (64 << 20)
    with scratch(options.mib << 24) as folder, S3Server(folder / "s3") as s3:
        platform = ControlPlane(folder / "platform", s3, maxmemory=str(int(hot_bytes * 1.4)))
        with platform:
            worker = Child(
                "worker",
                [sys.executable, str(ROOT / "benchmarks/tiering_worker.py"), str(hot_bytes),
                 str(1 << 40)],
                platform.environment(),
            )  # fmt: skip
            worker.wait_ready()
            if worker.skipped:
                raise SystemExit(worker.skipped)
            bench = Bench(platform, worker, options.mib, options.chains)
            bench.run(options.rounds)
            bench.node.close()
            worker.end()
    result = {
        "options": {k: str(v) for k, v in vars(options).items()},
        "cores": os.cpu_count(),
        "load": os.getloadavg(),
        "facts": {k: v for k, v in bench.facts.items() if k != "key"},
        "rows": [vars(row) for row in bench.rows.values()],
    }
    (options.out / "tiering.json").write_text(json.dumps(result))
    print(table(result))
    print(headline(result))


if __name__ == "__main__":
    main()
