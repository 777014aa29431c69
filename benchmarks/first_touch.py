"""Speed of stores into memory that Valkey touches for the first time, by configuration.

    python benchmarks/first_touch.py [--mib 512] [--block-kib 2048] [--idle-s 13] [--only NAME]

Each configuration of the server gets the same blocks in five states of its memory:
    boot     the process has just started
    reused   all blocks were just freed (FLUSHALL ASYNC)
    purged   freed, and the allocator returned the memory to the system (FLUSHALL SYNC)
    idle     freed, then idle for --idle-s: longer than jemalloc's decay of 10 s
    touched  a new process, after neve.index.hot_memory.touch_memory
Prints GB/s, the server's page faults per block and its system seconds per GB. One connection and no
checksum, so that the server is the bottleneck. Results: docs/decisions/003-first-touch.md.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from python_transport import Call, Put, SocketTransport, ValkeyAddress  # noqa: E402
from valkeys import Valkeys, server_numbers  # noqa: E402

from neve.index.hot_memory import touch_memory  # noqa: E402

KEEP = "dirty_decay_ms:-1,muzzy_decay_ms:-1"
OVERSIZE = "oversize_threshold:0"
# name -> (MALLOC_CONF, or None for deploy/valkey-hot's; server options)
CONFIGURATIONS: dict[str, tuple[str | None, dict[str, str]]] = {
    "defaults": ("", {"disable-thp": "yes"}),
    "keep": (f"{KEEP},{OVERSIZE}", {"disable-thp": "yes"}),
    "huge": ("thp:always", {"disable-thp": "no"}),
    "huge+keep": (f"thp:always,{KEEP},{OVERSIZE}", {"disable-thp": "no"}),
    "huge+keep, oversize as it is": (f"thp:always,{KEEP}", {"disable-thp": "no"}),
    "defaults, 4 I/O threads": ("", {"disable-thp": "yes", "io-threads": "4"}),
    "deployed": (None, {}),
    "deployed, 4 I/O threads": (None, {"io-threads": "4"}),
}
STATES = ("boot", "reused", "purged", "idle", "touched")


def resident(pid: int) -> dict[str, int]:
    """Resident MiB of a process, in all and in huge pages."""
    sizes = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name in ("Rss", "AnonHugePages"):
            sizes[name] = int(rest.split()[0]) >> 10
    return sizes


def store(transport: SocketTransport, blocks: np.ndarray, count: int) -> float:
    """Store `count` blocks; returns GB/s. Raises RuntimeError if one was not stored."""
    header = bytes(64)
    rows = [memoryview(row) for row in blocks]
    puts = [Put(b"block:%d" % n, header, rows[n % len(rows)]) for n in range(count)]
    began = time.perf_counter()
    results = transport.run(puts, deadline=time.monotonic() + 300)
    took_s = time.perf_counter() - began
    if set(results) != {b"OK"}:
        raise RuntimeError(f"not stored: {set(map(str, results))}")
    return count * blocks.shape[1] / took_s / 1e9


def try_one(name: str, options: argparse.Namespace) -> dict[str, Any]:
    malloc, server_options = CONFIGURATIONS[name]
    size = options.block_kib << 10
    count = (options.mib << 20) // size
    blocks = np.random.default_rng(1).integers(0, 256, (max(4, (32 << 20) // size), size), np.uint8)
    result: dict[str, Any] = {"name": name, "malloc": malloc, "options": server_options}
    environment = {} if malloc is None else {"NEVE_HOT_MALLOC": malloc}
    for states in (STATES[:-1], STATES[-1:]):
        with Valkeys(
            1,
            maxmemory_bytes=2 * count * size,
            options=server_options,
            environment=environment,
        ) as valkeys:
            result |= try_states(states, valkeys, blocks, count, options.idle_s)
    return result


def try_states(
    states: tuple[str, ...], valkeys: Valkeys, blocks: np.ndarray, count: int, idle_s: float
) -> dict[str, Any]:
    pid = valkeys.processes[0].pid
    result: dict[str, Any] = {}
    transport = SocketTransport(ValkeyAddress((f"127.0.0.1:{valkeys.ports[0]}",)), stall_s=60)
    transport.run([Call(["PING"])], deadline=time.monotonic() + 5)
    for state in states:
        if state == "touched":
            began = time.perf_counter()
            touched = touch_memory(valkeys.clients[0])
            result["touching"] = {"bytes": touched, "s": time.perf_counter() - began}
        elif state != "boot":
            valkeys.empty(cold=state == "purged")
        if state == "idle":
            time.sleep(idle_s)
        before = server_numbers(pid)
        gb_per_s = store(transport, blocks, count)
        after = server_numbers(pid)
        moved_gb = count * blocks.shape[1] / 1e9
        result[state] = {
            "gb_per_s": gb_per_s,
            "faults_per_block": (after["faults"] - before["faults"]) / count,
            "system_s_per_gb": (after["system_s"] - before["system_s"]) / moved_gb,
        }
    if "boot" in states:
        result["resident_mib"] = resident(pid)
        result["used_mib"] = int(valkeys.clients[0].info("memory")["used_memory"]) >> 20
    transport.close()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--mib", type=int, default=512)
    parser.add_argument("--block-kib", type=int, default=2048)
    parser.add_argument("--idle-s", type=float, default=13.0)
    parser.add_argument("--only", nargs="*", default=list(CONFIGURATIONS))
    parser.add_argument("--out", type=Path, default=ROOT / "var/bench")
    options = parser.parse_args()
    thp = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text().strip()
    print(f"{options.mib} MiB in blocks of {options.block_kib} KiB; system's huge pages: {thp}")
    print("GB/s, faults a block, system s/GB")
    print(f"{'':34}" + "".join(f"{state:>20}" for state in STATES) + "   resident, huge, used MiB")
    results = []
    for name in options.only:
        result = try_one(name, options)
        results.append(result)
        cells = [
            f"{result[s]['gb_per_s']:5.2f} {result[s]['faults_per_block']:6.0f} "
            f"{result[s]['system_s_per_gb']:6.2f}"
            for s in STATES
        ]
        sizes = result["resident_mib"]
        print(
            f"{name:34}" + "".join(f"{cell:>20}" for cell in cells)
            + f"   {sizes['Rss']}, {sizes['AnonHugePages']}, {result['used_mib']}",
            flush=True,
        )  # fmt: skip
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"first_touch_{options.block_kib}.json"
    path.write_text(json.dumps(results))


if __name__ == "__main__":
    main()
