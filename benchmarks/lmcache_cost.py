"""CPU seconds that an L2 adapter of LMCache and its Valkey spend on each GB, for lmcache_l2.py.

    .venv-lmcache/bin/python benchmarks/lmcache_cost.py ADAPTER PORT,… DATA_KIB KEYS TASKS ROUNDS

The rounds of `lmcache bench l2`, with LMCache's own keys, objects, buffers and waits, in a process
that counts what it spends: CPU time says something on a busy machine too. Prints one JSON object.
"""

import argparse
import json
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, Final

import redis
import torch
from lmcache.cli.commands.bench.l2_adapter_bench import data, runner
from lmcache.v1.distributed.l2_adapters import create_l2_adapter
from lmcache.v1.distributed.l2_adapters.config import parse_args_to_l2_adapters_config

ALIGNED_BYTES: Final = 4096
TICK_S: Final = 1 / os.sysconf("SC_CLK_TCK")


def thread_seconds() -> Counter[str]:
    """CPU seconds of this process until now, by the names of its threads."""
    spent: Counter[str] = Counter()
    for task in Path("/proc/self/task").iterdir():
        try:
            name = (task / "comm").read_text().strip()
            run_ns = int((task / "schedstat").read_text().split()[0])
        except OSError:  # the thread has ended
            continue
        spent["main" if task.name == str(os.getpid()) else name] += run_ns / 1e9
    return spent


def server_seconds(servers: list["redis.Redis"]) -> tuple[float, float]:
    """User and system CPU seconds of all servers until now."""
    infos = [server.info("cpu") for server in servers]
    return sum(i["used_cpu_user"] for i in infos), sum(i["used_cpu_sys"] for i in infos)


def main() -> None:
    configuration, ports, *numbers = sys.argv[1:]
    data_kib, keys, tasks, rounds = map(int, numbers)
    servers = [redis.Redis(port=int(port), protocol=2) for port in ports.split(",")]
    size, each = data_kib << 10, keys * tasks
    buffer = data.make_aligned_tensor(2 * each * size, ALIGNED_BYTES)
    memory = data.create_l1_memory_desc(buffer, align_bytes=ALIGNED_BYTES)
    given = argparse.Namespace(l2_adapter=[configuration])
    adapter = create_l2_adapter(
        parse_args_to_l2_adapters_config(given).adapters[0], l1_memory_desc=memory
    )

    def names(number: int) -> list[list[Any]]:
        first = number * each
        return [data.make_object_keys(keys, key_offset=first + n * keys) for n in range(tasks)]

    def objects(half: int) -> list[list[Any]]:
        begin = half * each * size
        return [
            data.make_memory_objects(buffer, keys, size, begin + n * keys * size, fill_offset=half)
            for n in range(tasks)
        ]

    stored, loaded = objects(0), objects(1)

    def once(what: str, number: int) -> float:
        """Seconds of one round."""
        batches = names(number)
        began = time.perf_counter()
        if what == "Store":
            ids = [adapter.submit_store_task(k, o) for k, o in zip(batches, stored, strict=True)]
            runner._wait_store_finished(adapter, ids, 60)
        elif what == "Lookup":
            ids = [adapter.submit_lookup_and_lock_task(k, {}) for k in batches]
            runner._wait_lookup_finished(adapter, ids, 60)
        else:
            ids = [adapter.submit_load_task(k, o) for k, o in zip(batches, loaded, strict=True)]
            runner._wait_load_finished(adapter, ids, 60)
        return time.perf_counter() - began

    answer = {}
    for what in ("Store", "Lookup", "Load"):
        once(what, 0)  # a warm-up
        threads, times = thread_seconds(), os.times()
        server = server_seconds(servers)
        seconds = [once(what, 1 + number) for number in range(rounds)]
        user, system = (b - a for a, b in zip(server, server_seconds(servers), strict=True))
        after = os.times()
        spent = thread_seconds()
        spent.subtract(threads)
        gigabytes = rounds * each * size / 1e9
        unit = gigabytes if what != "Lookup" else rounds * each / 1000  # a thousand keys
        answer[what] = {
            "client_s": sum(spent.values()) / unit,
            "client_system_s": (after.system - times.system) / unit,
            "server_s": (user + system) / unit,
            "server_system_s": system / unit,
            "threads_s": {name: used / unit for name, used in spent.items() if used > 0.0005},
            "best_s": min(seconds),
        }
    half = each * size
    answer["equal"] = bool(torch.equal(buffer[:half], buffer[half : 2 * half]))
    adapter.close()
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
