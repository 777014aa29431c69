"""Cost of TLS: the native core's loads and stores with TLS and without, on loopback.

    python benchmarks/tls.py [--connections 1,2] [--block-kib 2048] [--rounds 5] [--mib 128]

One Valkey serves both. All settings run in processes of their own, started first and measured in
turn, round by round; every block is verified. `bound`: the speed of Valkey's one thread if TLS cost
only the cipher's seconds, measured by `openssl speed` in the same run.
Results: docs/decisions/006-tls.md.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "benchmarks")]

import numpy as np  # noqa: E402
from datapath import Child, numbers  # noqa: E402
from valkeys import Valkeys, free_ports  # noqa: E402
from windows import cpu_s  # noqa: E402

from neve import _core  # noqa: E402
from neve.datapath.status import Status  # noqa: E402
from neve.datapath.transport import make_keyspace  # noqa: E402
from neve.formats.keys import BucketKeys  # noqa: E402
from neve.index.library import functions_source  # noqa: E402
from support.certificates import issue, make_ca  # noqa: E402

TENANT_ID: Final = 7
BATCHES: Final = 4
IN_FLIGHT: Final = 2
DEADLINE_S: Final = 60.0
CIPHER: Final = "aes-256-gcm"  # two OpenSSL 3 peers negotiate this cipher
RECORD_BYTES: Final = 16 << 10


def load(port: int, ca: str | None, connections: int, block_bytes: int, data_bytes: int) -> None:
    """Child process: answers `put` (all blocks) and `get SECONDS` with a line of JSON each."""
    tls = None if ca is None else {"ca_file": ca}
    core = _core.Core([f"127.0.0.1:{port}"], None, None, tls, lanes=connections)
    keys = make_keyspace(TENANT_ID, 1, 1, bytes(16))
    size = data_bytes // BATCHES // block_bytes
    ids = [bytes(np.random.default_rng(n).bytes(16)) for n in range(size * BATCHES)]
    sent = np.random.default_rng(0).integers(0, 256, (size, block_bytes), dtype=np.uint8)
    back = np.full((IN_FLIGHT, size, block_bytes), 1, dtype=np.uint8)

    def batch(number: int) -> list[bytes]:
        first = number % BATCHES * size
        return ids[first : first + size]

    def put(number: int) -> _core.Batch:
        rows, until = list(sent), time.monotonic() + DEADLINE_S
        return core.put(keys, batch(number), [bytes(16)] * size, [256] * size, rows, deadline=until)

    def get(number: int) -> _core.Batch:
        rows = list(back[number % IN_FLIGHT])
        return core.get(keys, batch(number), rows, deadline=time.monotonic() + DEADLINE_S)

    def finish(transfer: _core.Batch) -> None:
        transfer.wait(float("inf"))
        if set(transfer.statuses()) != {Status.OK}:
            raise RuntimeError(f"{transfer.trouble} {set(transfer.statuses())}")

    print("ready", flush=True)
    for line in sys.stdin:
        verb, *seconds = line.split()
        start = get if verb == "get" else put
        end = time.perf_counter() + (float(seconds[0]) if seconds else 0.0)
        cpu, began, count = cpu_s(), time.perf_counter(), 0
        under_way: list[_core.Batch] = []
        while under_way or count == 0:
            while len(under_way) < IN_FLIGHT and (
                time.perf_counter() < end if seconds else count < BATCHES
            ):
                under_way.append(start(count))
                count += 1
            finish(under_way.pop(0))
        answer = {"bytes": count * size * block_bytes, "wall_s": time.perf_counter() - began}
        print(json.dumps(answer | {"cpu_s": cpu_s() - cpu}), flush=True)


def cipher_gb_per_s() -> float:
    """The cipher's speed on one core, with records of TLS's largest size."""
    command = ["openssl", "speed", "-evp", CIPHER, "-bytes", str(RECORD_BYTES), "-seconds", "1"]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(re.findall(r"([\d.]+)k\s*$", said)[0]) * 1e3 / 1e9


def measure(
    options: argparse.Namespace, valkeys: Valkeys, tls_port: int, ca: Path
) -> dict[str, dict[str, list[dict[str, Any]]]]:
    client = valkeys.clients[0]
    client.execute_command("FUNCTION", "LOAD", "REPLACE", functions_source())
    quota = {"hot_bytes": 1 << 42, "cold_bytes": 0, "flush_after_s": -1, "ttl_s": 0}
    children: dict[str, Child] = {}
    for connections in options.connections:
        for name, port, file in (("plain", valkeys.ports[0], None), ("TLS", tls_port, str(ca))):
            plan = [port, file, connections, options.block_kib << 10, options.mib << 20]
            command = [sys.executable, __file__, "--child", json.dumps(plan)]
            label = f"{name}, {connections} connections"
            children[label] = Child(label, command, dict(os.environ))
    rows: dict[str, dict[str, list[dict[str, Any]]]] = {
        name: {"get": [], "put": []} for name in children
    }
    try:
        for child in children.values():
            child.wait_ready()
        for number in range(options.rounds + 1):
            for name, child in children.items():
                valkeys.empty(cold=False)
                client.hset(BucketKeys(TENANT_ID, 0).quota, mapping=quota)
                for words in (("put",), ("get", options.seconds)):
                    server_before = valkeys.cpu_s()
                    answer = child.ask(*words)
                    answer["server_cpu_s"] = valkeys.cpu_s() - server_before
                    answer["cipher"] = cipher_gb_per_s() if number and words == ("put",) else 0.0
                    if number:  # round 0 warms up
                        rows[name][words[0]].append(answer)
    finally:
        for child in children.values():
            child.end()
    return rows


def table(rows: dict[str, dict[str, list[dict[str, Any]]]]) -> str:
    cipher = statistics.median(
        answer["cipher"] for verbs in rows.values() for answer in verbs["put"]
    )
    lines = [
        f"{CIPHER}: {cipher:.2f} GB/s of one core",
        f"{'':22} {'':4} {'GB/s':>6} {'min … max':>13} {'/plain':>7} {'CPU s/GB':>9} "
        f"{'server':>7} {'bound':>6}",
    ]
    for verb in ("get", "put"):
        for name, verbs in rows.items():
            answers = verbs[verb]
            plain = rows[name.replace("TLS", "plain")][verb]
            speeds = [speed(answer) for answer in answers]
            ratios = [mine / speed(other) for mine, other in zip(speeds, plain, strict=True)]
            cpu = per_gb(answers, "cpu_s")
            server = per_gb(answers, "server_cpu_s")
            bound = 1 / (per_gb(plain, "server_cpu_s") + (1 / cipher if "TLS" in name else 0))
            lines.append(
                f"{name:22} {verb:4} {statistics.median(speeds):6.2f} "
                f"{f'{min(speeds):.2f} … {max(speeds):.2f}':>13} "
                f"{statistics.median(ratios):7.2f} {cpu:9.3f} {server:7.3f} {bound:6.2f}"
            )
    return "\n".join(lines)


def speed(answer: dict[str, Any]) -> float:
    return float(answer["bytes"] / answer["wall_s"] / 1e9)


def per_gb(answers: list[dict[str, Any]], key: str) -> float:
    return statistics.median(answer[key] / answer["bytes"] * 1e9 for answer in answers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--connections", type=numbers, default="1,2")
    parser.add_argument("--block-kib", type=int, default=2048)
    parser.add_argument("--mib", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.2)
    parser.add_argument(
        "--valkey-options", nargs="*", default=[], metavar="NAME=VALUE", help="such as io-threads=4"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "var/bench")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        load(*options.child)
        return
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_ca(folder, "ca")
        issue(folder, "ca", "server", "IP:127.0.0.1")
        tls_port = free_ports(100)[-1]
        server = dict(word.split("=", 1) for word in options.valkey_options) | {
            "tls-port": str(tls_port),
            "tls-cert-file": str(folder / "server.crt"),
            "tls-key-file": str(folder / "server.key"),
            "tls-ca-cert-file": str(folder / "ca.crt"),
            "tls-auth-clients": "no",
        }
        with Valkeys(1, maxmemory_bytes=4 * (options.mib << 20), options=server) as valkeys:
            rows = measure(options, valkeys, tls_port, folder / "ca.crt")
    print(
        f"blocks of {options.block_kib} KiB, {os.cpu_count()} cores, "
        f"load {os.getloadavg()[0]:.1f}, {options.rounds} rounds"
    )
    print(table(rows))
    (options.out / "tls.json").write_text(json.dumps(rows))


if __name__ == "__main__":
    main()
