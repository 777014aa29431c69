"""Effect of each socket setting on this machine: raw sockets (raw.c) with one setting changed.

    python benchmarks/sockets.py [--streams 2] [--rounds 7] [--seconds 0.3]

`server` and `client` name the side whose setting changes; the server sends the bytes of a GET. All
pairs of processes start first and are measured in turn, round by round.
Neve's choices: docs/decisions/004-sockets.md.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "benchmarks")]

from datapath import Child, compile_raw  # noqa: E402
from valkeys import die_with_parent, free_ports  # noqa: E402

BLOCK_BYTES = 2 << 20
BLOCKS = 16
# name -> (settings of the server, settings of the client)
SETTINGS: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "cubic, nodelay, kernel's buffers": ({}, {}),
    "reno on both": ({"RAW_CONGESTION": "reno"}, {"RAW_CONGESTION": "reno"}),
    "bbr, server": ({"RAW_CONGESTION": "bbr"}, {}),
    "bbr, client": ({}, {"RAW_CONGESTION": "bbr"}),
    "buffers 256 KiB": ({"RAW_BUFFER": "262144"}, {"RAW_BUFFER": "262144"}),
    "buffers 1 MiB": ({"RAW_BUFFER": "1048576"}, {"RAW_BUFFER": "1048576"}),
    "buffers 4 MiB": ({"RAW_BUFFER": "4194304"}, {"RAW_BUFFER": "4194304"}),
    "buffers 4 MiB, client": ({}, {"RAW_BUFFER": "4194304"}),
    "Nagle on": ({"RAW_NODELAY": "0"}, {"RAW_NODELAY": "0"}),
    "recv of 64 KiB": ({}, {"RAW_PIECE": "65536"}),
    "recv of 256 KiB": ({}, {"RAW_PIECE": "262144"}),
    "recv of 1 MiB": ({}, {"RAW_PIECE": "1048576"}),
    "recv of 256 KiB, MSG_WAITALL": ({}, {"RAW_PIECE": "262144", "RAW_WAITALL": "1"}),
    "recv of all, MSG_WAITALL": ({}, {"RAW_WAITALL": "1"}),
    "MSG_ZEROCOPY, client": ({}, {"RAW_ZEROCOPY": "1"}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--streams", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.3)
    parser.add_argument("--out", type=Path, default=ROOT / "var/bench")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    raw = compile_raw(options.out)
    ports = free_ports(len(SETTINGS))
    rows: dict[str, dict[str, list[dict[str, Any]]]] = {}
    with ExitStack() as stack:
        clients = {}
        for port, (name, (server, client)) in zip(ports, SETTINGS.items(), strict=True):
            process = subprocess.Popen(
                [raw, "serve", str(port), str(1 << 20)],
                env={**os.environ, **server},
                preexec_fn=die_with_parent,
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            time.sleep(0.1)
            sizes = map(str, (options.streams, BLOCK_BYTES, BLOCKS))
            command = [str(raw), "client", str(port), *sizes]
            clients[name] = Child(name, command, {**os.environ, **client})
            stack.callback(clients[name].end)
            clients[name].wait_ready()
            if clients[name].skipped:
                raise SystemExit(f"{name}: {clients[name].skipped}")
        for number in range(options.rounds + 1):
            for name, child in clients.items():
                for verb in ("get", "put"):
                    answer = child.ask(verb, options.seconds, 2)
                    if number:
                        rows.setdefault(name, {}).setdefault(verb, []).append(answer)
    print(f"{options.streams} streams, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print(f"{'':34} {'GET GB/s':>9} {'/first':>7} {'CPU s/GB':>9} {'PUT GB/s':>9} {'/first':>7}"
          f" {'CPU s/GB':>9}")  # fmt: skip
    first = rows[next(iter(SETTINGS))]
    for name, verbs in rows.items():
        cells = []
        for verb in ("get", "put"):
            speeds = [speed(answer) for answer in verbs[verb]]
            ratios = [
                mine / speed(theirs) for mine, theirs in zip(speeds, first[verb], strict=True)
            ]
            cpu = statistics.median(a["cpu_s"] / a["bytes"] * 1e9 for a in verbs[verb])
            cells.append(
                f"{statistics.median(speeds):9.2f} {statistics.median(ratios):7.2f} {cpu:9.3f}"
            )
        print(f"{name:34} {' '.join(cells)}")
    (options.out / "sockets.json").write_text(json.dumps(rows))


def speed(answer: dict[str, Any]) -> float:
    return float(answer["bytes"] / answer["wall_s"] / 1e9)


if __name__ == "__main__":
    main()
