"""Memory that a valkey-server needs per byte of blocks, by the allocator of its build.

    python benchmarks/allocator.py [SERVER ...]      (default: on PATH, and in the wheel)

For each server, started as `make up` starts it: used_memory and resident bytes per byte of blocks,
with blocks of one size, and after blocks of mixed sizes replaced each other many times ("churn").
docs/decisions/003-first-touch.md.
"""

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import valkey

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from support.servers import free_port, wait_until  # noqa: E402

HEADER = 64
HELD = 400 << 20
MOVED = 10 * HELD
SIZES = (256 << 10, 1 << 20, 1536 << 10, 2 << 20)
MIXED = (200 << 10, 2 << 20)


@contextmanager
def running(server: str) -> Iterator[tuple[int, valkey.Valkey]]:
    """Run the server in its own folder on a free port. Yields its pid and a client."""
    port = free_port()
    command = ["deploy/valkey-hot", "deploy/valkey-hot.conf", "--port", str(port)]
    with tempfile.TemporaryDirectory() as folder:
        os.symlink(server, f"{folder}/valkey-server")
        environment = os.environ | {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            client = valkey.Valkey(port=port)
            wait_until(lambda: answers(client), timeout_s=20, what=server)
            yield process.pid, client
        finally:
            process.terminate()
            process.wait()


def answers(client: valkey.Valkey) -> bool:
    try:
        return bool(client.ping())
    except valkey.exceptions.ConnectionError:
        return False


def fill(client: valkey.Valkey, least: int, most: int, moved: int) -> int:
    """Store `moved` bytes in blocks of `least` to `most` bytes, at most HELD at once.

    Returns the bytes of the blocks that are still stored.
    """
    rng, bytes_, held, total = random.Random(1), os.urandom(most + HEADER), {}, 0
    for n in range(10**9):
        if moved <= 0:
            return total
        size = rng.randint(least, most) + HEADER
        while total + size > HELD:
            key = rng.choice(list(held))
            total -= held.pop(key)
            client.unlink(key)
        client.set(f"b{n}", bytes_[:size])
        held[f"b{n}"] = size
        total, moved = total + size, moved - size
    raise AssertionError


def measure(server: str) -> None:
    for words, least, most, moved in (
        *((f"{size >> 10} KiB", size, size, HELD - 2 * size) for size in SIZES),
        ("churn", *MIXED, MOVED),
    ):
        with running(server) as (pid, client):
            empty = client.info("memory")["used_memory"]
            held = fill(client, least, most, moved)
            memory = client.info("memory")
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text().split()
            resident = int(rollup[rollup.index("Rss:") + 1]) << 10
            used = (memory["used_memory"] - empty) / held
            print(f"  {words:10} used {used:5.2f}   resident {resident / held:5.2f}", flush=True)
            allocator = memory["mem_allocator"]
    print(f"  allocator {allocator}; resident includes the program's own 10 MiB or so\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    wheel = Path(sys.executable).with_name("valkey-server")
    default = [found for found in (shutil.which("valkey-server"), str(wheel)) if found]
    parser.add_argument("servers", nargs="*", default=default)
    for server in parser.parse_args().servers:
        version = subprocess.check_output([server, "--version"], text=True).split()[2]
        print(f"{server} ({version}): bytes of memory for each byte of a block")
        measure(str(Path(server).resolve()))


if __name__ == "__main__":
    main()
