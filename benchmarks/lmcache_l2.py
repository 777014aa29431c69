"""LMCache's benchmark of L2 adapters, `lmcache bench l2`: Neve beside `resp`, `valkey` and `fs`.

    python benchmarks/lmcache_l2.py [--primaries 1,4] [--data-kib 256,2048] [--runs 5] ...
    QUICK=1 make bench-lmcache
    python benchmarks/lmcache_l2.py --cost [--primaries 1] [--data-kib 256,2048]

Each run is the real command in a process of its own, with verification. In each turn all adapters
run once, beginning with another one, over emptied servers. `raw` is what sockets alone move over as
many streams as Neve has connections: the ceiling. From several primaries, `resp` and `fs` have one
Valkey or the file system still: LMCache's `resp` knows no cluster. Writes JSON and a table.

`--cost`: the CPU seconds of the same operations instead of their speed (`lmcache_cost.py`), for
Neve and `resp`, over memory that the servers have touched before.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "benchmarks")]

from datapath import Child, compile_raw, numbers  # noqa: E402
from valkeys import Valkeys, die_with_parent, free_ports  # noqa: E402

from neve.datapath.client import CONNECTIONS  # noqa: E402
from neve.formats.keys import BucketKeys  # noqa: E402
from neve.index.library import functions_source  # noqa: E402
from support.cache_endpoint import API_KEY, TENANT_ID, CacheEndpoint  # noqa: E402

OPERATIONS: Final = ("Store", "Lookup", "Load")
ADAPTERS: Final = ("neve", "resp", "valkey", "fs")
BUCKETS_PER_PRIMARY: Final = 4
RAW_S: Final = 0.5
QUIET: Final = {"LMCACHE_TRACK_USAGE": "false", "LMCACHE_DISABLE_BANNER": "1"}
GOAL: Final = {1: 1.0, 4: 3.0}  # × resp, by primaries


@dataclass
class Row:
    """Of one adapter, size and operation: megabytes a second (look-ups: keys a second) of each
    run, and how many of its keys were well."""

    primaries: int
    data_kib: int
    adapter: str
    operation: str
    rates: list[float] = field(default_factory=list)
    good: int = 0
    keys: int = 0

    @property
    def rate(self) -> float:
        return statistics.median(self.rates)


@dataclass
class Cell:
    """The servers of one number of primaries, and the configuration of each adapter."""

    valkeys: Valkeys
    plain: Valkeys
    endpoint: CacheEndpoint
    folder: Path

    def configuration(self, adapter: str) -> dict[str, Any]:
        port = self.plain.ports[0]
        if adapter == "neve":
            return {
                "type": "plugin",
                "module_path": "neve.lmcache",
                "class_name": "NeveL2Adapter",
                "adapter_params": {
                    "endpoint": self.endpoint.url,
                    "api_key": API_KEY,
                    "revision": "none",
                },
            }
        if adapter == "resp":
            return {"type": "resp", "host": "127.0.0.1", "port": port}
        if adapter == "valkey":
            nodes = ",".join(f"127.0.0.1:{each}" for each in self.valkeys.ports)
            is_cluster = self.valkeys.is_cluster
            return {"type": "valkey", "startup_nodes": nodes, "cluster_mode": is_cluster}
        return {"type": "fs", "base_path": str(self.folder)}

    def empty(self) -> None:
        """Deletes all keys and files; the servers keep their memory."""
        for valkeys in {id(each): each for each in (self.valkeys, self.plain)}.values():
            valkeys.empty(cold=False)
        for bucket in range(self.endpoint.buckets):
            keys = BucketKeys(TENANT_ID, bucket)
            limits = {"hot_bytes": 1 << 42, "cold_bytes": 0, "flush_after_s": -1, "ttl_s": 0}
            self.valkeys.clients[self.valkeys.home(keys.tag)].hset(keys.quota, mapping=limits)
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()


def run(given: argparse.Namespace, cell: Cell, adapter: str, data_kib: int) -> dict[str, Any]:
    """The figures of one `lmcache bench l2`, by operation. Raises if it fails, or if bytes came
    back otherwise than they were stored."""
    cell.empty()
    output = cell.folder.parent / "metrics.json"
    command = [
        *(str(given.lmcache), "bench", "l2", "--no-skip-verify", "--lookup-max-hit-rate", "1.0"),
        *("--l2-adapter", json.dumps(cell.configuration(adapter))),
        *("--data-size-kb", str(data_kib), "--num-keys", str(given.keys)),
        *("--in-flight", str(given.in_flight), "--rounds", str(given.rounds)),
        *("--format", "json", "--output", str(output)),
    ]
    ended = subprocess.run(
        command, env={**os.environ, **QUIET}, capture_output=True, text=True, check=False
    )
    if ended.returncode:
        raise RuntimeError(f"{adapter}: {ended.stdout[-2000:]}\n{ended.stderr[-2000:]}")
    sections = json.loads(output.read_text())["metrics"]
    return {
        section["operation"]: section
        for section in sections.values()
        if isinstance(section, dict) and section.get("operation") in OPERATIONS
    }


def measure_raw(given: argparse.Namespace, raw: Path, primaries: int, data_kib: int) -> list[Row]:
    """What sockets alone move: one stream for each of Neve's connections."""
    streams, block = CONNECTIONS * primaries, data_kib << 10
    batch = given.keys * given.in_flight
    (port,) = free_ports(1)
    serve = subprocess.Popen(
        [raw, "serve", str(port), str(batch * block // streams)], preexec_fn=die_with_parent
    )
    child = Child("raw", [str(raw), "client", *map(str, (port, streams, block, batch))], {})
    rows = []
    try:
        child.wait_ready()
        for operation, word in (("Store", "put"), ("Load", "get")):
            row = Row(primaries, data_kib, "raw", operation)
            for _ in range(given.runs + 1):
                answer = child.ask(word, RAW_S, 1)
                row.rates.append(answer["bytes"] / answer["wall_s"] / (1 << 20))
            del row.rates[0]  # a warm-up
            rows.append(row)
    finally:
        child.end()
        serve.kill()
        serve.wait()
    return rows


def measure(given: argparse.Namespace) -> list[Row]:
    given.out.mkdir(parents=True, exist_ok=True)
    raw = compile_raw(given.out)
    rows: list[Row] = []
    for primaries in given.primaries:
        with ExitStack() as stack:
            valkeys = stack.enter_context(Valkeys(primaries))
            plain = stack.enter_context(Valkeys(1)) if primaries > 1 else valkeys
            for client in valkeys.clients:
                client.execute_command("FUNCTION", "LOAD", "REPLACE", functions_source())
            endpoint = CacheEndpoint(f"127.0.0.1:{valkeys.ports[0]}", heartbeat_s=60)
            stack.enter_context(endpoint)
            endpoint.buckets = BUCKETS_PER_PRIMARY * primaries if primaries > 1 else 1
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="neve-bench-")))
            cell = Cell(valkeys, plain, endpoint, folder / "fs")
            for data_kib in given.data_kib:
                if given.cost:
                    print(measure_cost(given, cell, primaries, data_kib), flush=True)
                    continue
                rows += measure_raw(given, raw, primaries, data_kib)
                found = {
                    (adapter, operation): Row(primaries, data_kib, adapter, operation)
                    for adapter in given.adapters
                    for operation in OPERATIONS
                }
                for turn in range(given.runs):
                    first = turn % len(given.adapters)
                    for adapter in given.adapters[first:] + given.adapters[:first]:
                        note(found, adapter, run(given, cell, adapter, data_kib))
                rows += found.values()
                print(f"{primaries} primaries, {data_kib} KiB: measured", flush=True)
    return rows


def measure_cost(given: argparse.Namespace, cell: Cell, primaries: int, data_kib: int) -> str:
    """Lines of a table. Of each adapter the runs after the first, which touches new memory."""
    lines = []
    answers: dict[str, list[dict[str, Any]]] = {adapter: [] for adapter in ("resp", "neve")}
    for _ in range(given.runs + 1):
        for adapter, found in answers.items():
            cell.empty()
            servers = cell.plain if adapter == "resp" else cell.valkeys
            numbers_of = (data_kib, given.keys, given.in_flight, given.rounds)
            command = [
                *(str(given.lmcache.parent / "python"), str(ROOT / "benchmarks/lmcache_cost.py")),
                *(json.dumps(cell.configuration(adapter)), ",".join(map(str, servers.ports))),
                *map(str, numbers_of),
            ]
            ended = subprocess.run(
                command, env={**os.environ, **QUIET}, capture_output=True, text=True, check=False
            )
            if ended.returncode:
                raise RuntimeError(f"{adapter}: {ended.stdout[-2000:]}\n{ended.stderr[-2000:]}")
            found.append(json.loads(ended.stdout.splitlines()[-1]))
            if not found[-1]["equal"]:
                raise RuntimeError(f"{adapter}: other bytes came back than were stored")
    for operation in OPERATIONS:
        for adapter, found in answers.items():
            of = [each[operation] for each in found[1:]]
            client, server = (
                statistics.median(each[name] for each in of) for name in ("client_s", "server_s")
            )
            io = statistics.median(each["threads_s"].get("neve-io", 0.0) for each in of)
            lines.append(
                f"{primaries:9} {data_kib:6}  {operation:7} {adapter:8} {client:9.3f} {io:9.3f} "
                f"{server:9.3f}"
            )
    return "\n".join(lines)


def note(rows: dict[tuple[str, str], Row], adapter: str, sections: dict[str, Any]) -> None:
    for operation, section in sections.items():
        row = rows[adapter, operation]
        is_lookup = operation == "Lookup"
        row.rates.append(section["ops_per_sec_avg" if is_lookup else "throughput_avg_mbps"])
        row.good += section["total_success"]
        row.keys += section["total_keys"]


def table(rows: list[Row]) -> str:
    """Medians; Store and Load in MiB/s, Lookup in keys/s; beside each the multiple of `resp`."""
    lines = ["primaries    KiB  what    adapter     median        min … max      × resp  well"]
    for row in rows:
        same = (row.primaries, row.data_kib, row.operation)
        peer = next(
            (
                other.rate
                for other in rows
                if (other.primaries, other.data_kib, other.operation) == same
                and other.adapter == "resp"
            ),
            None,
        )
        times = "—" if peer is None else f"{row.rate / peer:.2f}"
        well = "" if not row.keys else f"{row.good}/{row.keys}"
        lines.append(
            f"{row.primaries:9} {row.data_kib:6}  {row.operation:7} {row.adapter:8} "
            f"{row.rate:9.0f} {min(row.rates):9.0f} … {max(row.rates):<9.0f} {times:>6}  {well}"
        )
    return "\n".join(lines)


def headline(rows: list[Row]) -> str:
    """Neve's multiples of `resp`, and the goal where there is one."""
    said = []
    rates = {(r.primaries, r.data_kib, r.operation, r.adapter): r.rate for r in rows}
    for primaries, data_kib in dict.fromkeys((r.primaries, r.data_kib) for r in rows):
        for operation in ("Store", "Load"):
            mine = rates.get((primaries, data_kib, operation, "neve"))
            theirs = rates.get((primaries, data_kib, operation, "resp"))
            if mine and theirs:
                goal = f" (goal {GOAL[primaries]:g})" if primaries in GOAL else ""
                said.append(
                    f"{operation} {data_kib} KiB, {primaries} primaries: {mine / theirs:.2f} "
                    f"× resp{goal}"
                )
    return "; ".join(said)


def read_options() -> argparse.Namespace:
    quick = os.environ.get("QUICK", "") not in ("", "0")
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--primaries", type=numbers, default="1" if quick else "1,4")
    parser.add_argument("--data-kib", type=numbers, default="2048" if quick else "256,2048,8192")
    parser.add_argument("--keys", type=int, default=32, help="of one task")
    parser.add_argument("--in-flight", type=int, default=2, help="tasks at a time")
    parser.add_argument("--rounds", type=int, default=3, help="of one run, besides a warm-up")
    parser.add_argument("--runs", type=int, default=3 if quick else 5)
    parser.add_argument("--adapters", type=lambda text: text.split(","), default=",".join(ADAPTERS))
    parser.add_argument("--cost", action="store_true", help="CPU seconds instead of speed")
    parser.add_argument("--lmcache", type=Path, default=ROOT / ".venv-lmcache/bin/lmcache")
    parser.add_argument("--out", type=Path, default=ROOT / "var/bench")
    return parser.parse_args()


def main() -> None:
    given = read_options()
    load = os.getloadavg()[0]
    if given.cost:
        print(f"CPU s for each GB (Lookup: 1000 keys); load before {load:.1f}")
        print("primaries    KiB  what    adapter     client of it I/O    server")
    rows = measure(given)
    if given.cost:
        return
    host = {
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "neve": version("neve"),
        "load_before": load,
    }
    words = (
        f"{host['cores']} cores, kernel {host['kernel']}, load before {load:.1f}; "
        f"{given.keys} keys a task, {given.in_flight} tasks at a time, "
        f"{given.rounds} rounds a run, {given.runs} runs"
    )
    result = {"host": host, "options": {k: str(v) for k, v in vars(given).items()}}
    result["rows"] = [vars(row) for row in rows]
    (given.out / "lmcache_l2.json").write_text(json.dumps(result))
    text = f"{words}\n\n{table(rows)}\n"
    (given.out / "lmcache_l2.txt").write_text(text)
    print(text)
    print(headline(rows))


if __name__ == "__main__":
    main()
