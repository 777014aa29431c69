"""Read-ahead window, connections and threads: verified GETs by the core for each combination.

    python benchmarks/windows.py [--primaries 1] [--block-kib 2048] [--rounds 7] [--seconds 0.3]

Every combination of `--connections`, `--windows-mib`, `--io-threads`, `--batches-mib` and
`--in-flight` runs in a process of its own. All start first and are measured in turn, round by
round. Neve's choice: docs/decisions/004-sockets.md.
"""

import argparse
import json
import os
import resource
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any, Final

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "benchmarks")]

import numpy as np  # noqa: E402
from datapath import Child, numbers  # noqa: E402
from valkeys import Valkeys  # noqa: E402

from neve import _core  # noqa: E402
from neve.datapath.status import Status  # noqa: E402
from neve.datapath.transport import make_keyspace  # noqa: E402
from neve.formats.keys import BucketKeys  # noqa: E402
from neve.index.library import functions_source  # noqa: E402

TENANT_ID: Final = 7
BUCKETS: Final = 32  # spread evenly over up to eight primaries
DATA_BYTES: Final = 512 << 20
DEADLINE_S: Final = 60.0


@dataclass(frozen=True)
class Setting:
    """`io_threads`: 0 lets the core choose."""

    connections: int
    window_mib: int
    io_threads: int
    batch_mib: int
    in_flight: int

    def __str__(self) -> str:
        threads = self.io_threads or "auto"
        return (
            f"{self.connections} connections, {self.window_mib:2} MiB, {threads} threads, "
            f"{self.in_flight} x {self.batch_mib} MiB"
        )


def load(setting: Setting, ports: list[int], block_bytes: int) -> None:
    """Child process: answers `put` and `get SECONDS` on stdin with a line of JSON each."""
    core = _core.Core(
        [f"127.0.0.1:{port}" for port in ports],
        lanes=setting.connections,
        window_bytes=setting.window_mib << 20,
        io_threads=setting.io_threads,
    )
    keys = make_keyspace(TENANT_ID, BUCKETS, 1, bytes(16))
    ids = [bytes(np.random.default_rng(n).bytes(16)) for n in range(DATA_BYTES // block_bytes)]
    size = (setting.batch_mib << 20) // block_bytes
    batches = len(ids) // size
    buffers = np.full((setting.in_flight, size, block_bytes), 1, dtype=np.uint8)

    def start(number: int) -> _core.Batch:
        first = number % batches * size
        rows = list(buffers[number % setting.in_flight])
        return core.get(
            keys, ids[first : first + size], rows, deadline=time.monotonic() + DEADLINE_S
        )

    def finish(transfer: _core.Batch) -> None:
        transfer.wait(float("inf"))
        if set(transfer.statuses()) != {Status.OK}:
            raise RuntimeError(f"{transfer.trouble} {set(transfer.statuses())}")

    def put() -> dict[str, Any]:
        payload = np.random.default_rng(0).integers(0, 256, block_bytes, dtype=np.uint8)
        for id_ in ids:
            until = time.monotonic() + DEADLINE_S
            finish(core.put(keys, [id_], [bytes(16)], [256], [payload], deadline=until))
        return {}

    def get(seconds: float) -> dict[str, Any]:
        cpu, began = cpu_s(), time.perf_counter()
        under_way, count = [start(0)], 1
        while under_way:
            while len(under_way) < setting.in_flight and time.perf_counter() < began + seconds:
                under_way.append(start(count))
                count += 1
            finish(under_way.pop(0))
        wall_s = time.perf_counter() - began
        return {"bytes": count * size * block_bytes, "wall_s": wall_s, "cpu_s": cpu_s() - cpu}

    print("ready", flush=True)
    for line in sys.stdin:
        words = line.split()
        print(json.dumps(put() if words[0] == "put" else get(float(words[1]))), flush=True)


def cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def measure(options: argparse.Namespace, valkeys: Valkeys) -> dict[str, list[dict[str, float]]]:
    for client in valkeys.clients:
        client.execute_command("FUNCTION", "LOAD", "REPLACE", functions_source())
    quota = {"hot_bytes": 1 << 42, "cold_bytes": 0, "flush_after_s": -1, "ttl_s": 0}
    for bucket in (BucketKeys(TENANT_ID, number) for number in range(BUCKETS)):
        valkeys.clients[valkeys.home(bucket.tag)].hset(bucket.quota, mapping=quota)
    children = {}
    for values in product(
        options.connections,
        options.windows_mib,
        options.io_threads,
        options.batches_mib,
        options.in_flight,
    ):
        setting = Setting(*values)
        plan = [asdict(setting), valkeys.ports, options.block_kib << 10]
        command = [sys.executable, __file__, "--child", json.dumps(plan)]
        children[str(setting)] = Child(str(setting), command, dict(os.environ))
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in children}
    try:
        for child in children.values():
            child.wait_ready()
        next(iter(children.values())).ask("put")
        for number in range(options.rounds + 1):
            for name, child in children.items():
                server_before = valkeys.cpu_s()
                answer = child.ask("get", options.seconds)
                answer["server_cpu_s"] = valkeys.cpu_s() - server_before
                if number:  # round 0 warms up
                    rows[name].append(answer)
    finally:
        for child in children.values():
            child.end()
    return rows


def table(rows: dict[str, list[dict[str, float]]]) -> str:
    first = next(iter(rows.values()))
    lines = [f"{'':52} {'GB/s':>6} {'/first':>7} {'CPU s/GB':>9} {'server':>7}"]
    for name, answers in rows.items():
        speeds = [answer["bytes"] / answer["wall_s"] / 1e9 for answer in answers]
        ratios = [
            mine / (other["bytes"] / other["wall_s"] / 1e9)
            for mine, other in zip(speeds, first, strict=True)
        ]
        cpu, server = (
            statistics.median(answer[key] / answer["bytes"] * 1e9 for answer in answers)
            for key in ("cpu_s", "server_cpu_s")
        )
        lines.append(
            f"{name:52} {statistics.median(speeds):6.2f} {statistics.median(ratios):7.2f} "
            f"{cpu:9.3f} {server:7.3f}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--primaries", type=int, default=1)
    parser.add_argument("--connections", type=numbers, default="1,2,4")
    parser.add_argument("--windows-mib", type=numbers, default="4,8,16,32")
    parser.add_argument("--io-threads", type=numbers, default="0")
    parser.add_argument("--batches-mib", type=numbers, default="32")
    parser.add_argument("--in-flight", type=numbers, default="2")
    parser.add_argument(
        "--valkey-options", nargs="*", default=[], metavar="NAME=VALUE", help="such as io-threads=4"
    )
    parser.add_argument("--block-kib", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.3)
    parser.add_argument("--out", type=Path, default=ROOT / "var/bench")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        setting, *plan = options.child
        load(Setting(**setting), *plan)
        return
    options.out.mkdir(parents=True, exist_ok=True)
    server = dict(word.split("=", 1) for word in options.valkey_options)
    with Valkeys(options.primaries, maxmemory_bytes=4 * DATA_BYTES, options=server) as valkeys:
        rows = measure(options, valkeys)
    print(
        f"{options.primaries} primaries, blocks of {options.block_kib} KiB, {os.cpu_count()} cores,"
        f" load {os.getloadavg()[0]:.1f}"
    )
    print(table(rows))
    (options.out / "windows.json").write_text(json.dumps(rows))


if __name__ == "__main__":
    main()
