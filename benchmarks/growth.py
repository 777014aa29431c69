"""Growth of the index's memory and of each periodic task's cost with the number of blocks.

    .venv/bin/python benchmarks/growth.py [--blocks 10000,100000,1000000] [--runs 5]

Real Valkey, weed and database. The index gets entries of cold blocks without bytes in S3, by the
function `restore` as in a rebuild, and a segment's row for each SEGMENT_BLOCKS. Then every task of
workers/schedule.py runs as beat runs it, with nothing due. Measures time, commands and microseconds
in Valkey, queries and S3 requests. Needs about 400 bytes a block.
"""

import argparse
import json
import logging
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from importlib import import_module
from pathlib import Path
from typing import Any
from uuid import uuid4

import django

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "platform"), str(ROOT / "tests"), str(ROOT / "benchmarks")]

from support import testsettings  # noqa: E402

django.setup()

from django.db import connection  # noqa: E402
from django.utils import timezone  # noqa: E402

from catalog.models import Round, Segment  # noqa: E402
from neve.formats.block import HEADER_BYTES  # noqa: E402
from neve.formats.ids import ID_BYTES  # noqa: E402
from neve.index.tier import BlockTerms, RestoredBlock  # noqa: E402
from storage import hot, s3  # noqa: E402
from support.cold_world import World  # noqa: E402
from support.platform_servers import platform_servers  # noqa: E402
from tenants.scope import tenant_scope  # noqa: E402
from workers.schedule import SCHEDULE  # noqa: E402

SIZE_BYTES = HEADER_BYTES + (2 << 20)
SEGMENT_BLOCKS = 64  # 128 MiB
ROWS_AT_ONCE = 1000
SAMPLE_BLOCKS = 20_000  # for the memory per entry of each kind


@dataclass(frozen=True)
class Cost:
    """Cost of one run of one task."""

    ms: float
    valkey_ms: float
    commands: int
    kib: float  # to and from Valkey
    queries: int
    s3_requests: int


class Tenant:
    """A tenant with any number of cold blocks. `ends`: blocks have a lifetime, far ahead."""

    def __init__(self, *, ends: bool) -> None:
        self.world = World(hot_bytes=1 << 40, cold_bytes=1 << 60)
        self.ends = int(time.time()) + 86_400 * 30 if ends else 0
        self.blocks = 0

    def grow(self, blocks: int) -> float:
        """Add blocks up to `blocks`; returns restored blocks per second."""
        began, before = time.perf_counter(), self.blocks
        while self.blocks < blocks:
            count = min(ROWS_AT_ONCE, -(-(blocks - self.blocks) // SEGMENT_BLOCKS))
            for row in self._rows(count):
                self._restore(row)
        return (self.blocks - before) / (time.perf_counter() - began)

    def _rows(self, count: int) -> list[Segment]:
        now = timezone.now()
        with tenant_scope(self.world.tenant.pk):
            space = self.world.space
            rows = [
                Segment(
                    tenant_id=self.world.tenant.pk, space=space, uuid=(uuid := uuid4()),
                    object_key=str(uuid), state=Segment.State.LIVE, blocks=SEGMENT_BLOCKS,
                    size_bytes=SEGMENT_BLOCKS * SIZE_BYTES, counted_at=now,
                    live_bytes=SEGMENT_BLOCKS * SIZE_BYTES, runs=SEGMENT_BLOCKS // 4,
                )
                for _ in range(count)
            ]  # fmt: skip
            return Segment.objects.bulk_create(rows)

    def _restore(self, row: Segment) -> None:
        ids, now = os.urandom(ID_BYTES * SEGMENT_BLOCKS), int(time.time())
        blocks = [
            RestoredBlock(
                ids[n * ID_BYTES : (n + 1) * ID_BYTES], SIZE_BYTES, 256,
                HEADER_BYTES + n * SIZE_BYTES, now, self.ends,
            )
            for n in range(SEGMENT_BLOCKS)
        ]  # fmt: skip
        self.world.tier.open_segment(row.pk)
        self.blocks += self.world.tier.restore(row.pk, self.world.space.pk, blocks)


def index_bytes() -> int:
    return int(hot.admin().info("memory")["used_memory"])


def bytes_of_kinds() -> dict[str, float]:
    """Kind of block → bytes of memory per block, beside its payload."""
    found = {}
    for name, ends in (("cold", False), ("cold, with an end", True)):
        before, tenant = index_bytes(), Tenant(ends=ends)
        tenant.grow(SAMPLE_BLOCKS)
        found[name] = (index_bytes() - before) / tenant.blocks
    for name, flushed in (("hot, dirty", False), ("hot, clean", True)):
        payload_bytes = 64 - 1  # header and payload then fill one size class of the allocator
        before, world = index_bytes(), World(hot_bytes=1 << 40)
        for _ in range(SAMPLE_BLOCKS // 1000):
            ids = world.store(1000, payload_bytes=payload_bytes)
            if flushed:
                no_flush = BlockTerms(flush_after_s=None)
                world.tier.retain(ids, no_flush, held=False, join=False, flush=True)
        value_bytes = HEADER_BYTES + payload_bytes
        found[name] = (index_bytes() - before) / SAMPLE_BLOCKS - value_bytes
    return found


def run_task(name: str, runs: int) -> Cost:
    """Median of `runs` runs after a warm-up. Removes pauses, so that every run does work."""
    module, _, function = str(SCHEDULE[name]["task"]).rpartition(".")
    task = getattr(import_module(f"{module}.tasks"), function)
    costs = [_run_once(task) for _ in range(runs + 1)][1:]
    return Cost(*(statistics.median(getattr(c, f.name) for c in costs) for f in fields(Cost)))


def _run_once(task: Callable[[], object]) -> Cost:
    requests: list[object] = []
    Round.unscoped.filter(place__isnull=True).delete()  # else reconcile pauses after a round

    queries: list[str] = []

    def note(**call: object) -> None:
        requests.append(call)

    def count_query(execute: Callable[..., Any], sql: str, *rest: Any) -> Any:
        queries.append(sql)
        return execute(sql, *rest)

    s3.client().meta.events.register("before-send.s3", note)
    before, began = _valkey(), time.perf_counter()
    with connection.execute_wrapper(count_query):
        task()
    took_s, after = time.perf_counter() - began, _valkey()
    s3.client().meta.events.unregister("before-send.s3", note)
    valkey_ms, commands, bytes_ = (b - a for a, b in zip(before, after, strict=True))
    return Cost(
        took_s * 1e3, valkey_ms, int(commands) - 1, bytes_ / 1024, len(queries), len(requests)
    )


def _valkey() -> tuple[float, float, float]:
    """Valkey's totals: ms of its main thread, commands (also inside functions), bytes."""
    info = hot.admin().info("everything")
    cpu_s = info["used_cpu_user_main_thread"] + info["used_cpu_sys_main_thread"]
    bytes_ = info["total_net_input_bytes"] + info["total_net_output_bytes"]
    return cpu_s * 1e3, info["total_commands_processed"], bytes_


def table(result: dict) -> str:  # type: ignore[type-arg]
    sizes = [int(size) for size in result["blocks"]]
    lines = ["Bytes of the index for each block, beside its value:"]
    lines += [f"  {name:20} {value:7.0f}" for name, value in result["bytes_of_kinds"].items()]
    lines.append(f"  {'blocks':>12} {'MiB a million':>14} {'restored blocks/s':>18}")
    for size, (mib, speed) in zip(sizes, result["filled"], strict=True):
        lines.append(f"  {size:>12,} {mib:>14.0f} {speed:>18,.0f}")
    lines.append(
        "One run of each task: ms (of them in Valkey; commands, KiB, queries, S3 requests)"
    )
    lines.append(f"  {'':10} {'every':>6}" + "".join(f" {f'{size:,}':>30}" for size in sizes))
    for name, entry in SCHEDULE.items():
        cells = [
            f"{c['ms']:.1f} ({c['valkey_ms']:.1f}; {c['commands']:.0f}, {c['kib']:.0f}, "
            f"{c['queries']:.0f}, {c['s3_requests']:.0f})"
            for c in (costs[name] for costs in result["tasks"])
        ]
        lines.append(
            f"  {name:10} {entry['schedule']:>4.0f} s" + "".join(f" {cell:>30}" for cell in cells)
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--blocks", default="10000,100000,1000000")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--out", type=Path, default=ROOT / "var/bench")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    sizes = [int(size) for size in options.blocks.split(",")]
    logging.getLogger("neve").setLevel(logging.ERROR)
    result: dict = {"blocks": sizes, "filled": [], "tasks": []}  # type: ignore[type-arg]
    try:
        with platform_servers(maxmemory=f"{max(sizes) * 400 + (64 << 20)}"):
            tenant, empty = Tenant(ends=True), index_bytes()
            for size in sizes:
                speed = tenant.grow(size)
                mib = (index_bytes() - empty) / tenant.blocks * 1e6 / 2**20
                result["filled"].append((mib, speed))
                costs = {name: asdict(run_task(name, options.runs)) for name in SCHEDULE}
                result["tasks"].append(costs)
                (options.out / "growth.json").write_text(json.dumps(result))
            result["bytes_of_kinds"] = bytes_of_kinds()
    finally:
        shutil.rmtree(testsettings.FOLDER, ignore_errors=True)
    (options.out / "growth.json").write_text(json.dumps(result))
    print(table(result))


if __name__ == "__main__":
    main()
