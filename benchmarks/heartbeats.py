#!/usr/bin/env python
"""Processor time of the web process for one heartbeat, now and `--before` (another checkout).

    git worktree add /tmp/before v0.2.0
    .venv/bin/python benchmarks/heartbeats.py --before /tmp/before

Each has a platform of its own, with the packages of this environment. They take turns, so that a
busy machine slows both: read the ratio. "all" is a heartbeat of now with every counter and speed.
"""

import argparse
import json
import os
import re
import sys
import tempfile
from collections import defaultdict
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from statistics import median

import urllib3

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from neve.node.stats import COUNTERS, SPEEDS  # noqa: E402
from support import servers  # noqa: E402
from support.servers import ControlPlane, S3Server  # noqa: E402

MAKE_NODE = """
import sys
sys.path.append("tests")
from support.rows import make_everything, make_tenant
from tenants.services import issue_key
tenant = make_tenant("beating")
session = make_everything(tenant, 2)["node"]
print("TOLD", issue_key(tenant=tenant, role="node", name="n")[1], session.pk)
"""


class Platform(ControlPlane):
    """The platform of a checkout."""

    def __init__(self, checkout: Path, folder: Path, s3: S3Server) -> None:
        super().__init__(folder, s3)
        self.checkout = checkout

    def environment(self) -> dict[str, str]:
        paths = {"PYTHONPATH": f"{self.checkout}{os.pathsep}{self.checkout / 'platform'}"}
        return super().environment() | paths

    def begin(self) -> None:
        """Makes a node with a session."""
        told = re.search(r"TOLD (\S+) (\S+)", self.manage("shell", "-v0", "-c", MAKE_NODE))
        assert told
        key, session = told.groups()
        self.path = f"{self.url}/cache/v1/sessions/{session}/heartbeat"
        self.headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--before", type=Path, help="folder of another checkout")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--beats", type=int, default=150, help="of each, in each round")
    asked = parser.parse_args()
    checkouts = {"now": ROOT} | ({"before": asked.before.resolve()} if asked.before else {})
    http, number, cpu_ms = urllib3.PoolManager(), count(1), defaultdict(list)

    def beat(platform: Platform, *, counts_all: bool) -> None:
        counters = {"requested_blocks": 10, "hit_hot_blocks": 4, "hot_read_bytes": 4096}
        body = {
            "seq": next(number),
            "counters": dict.fromkeys(COUNTERS, 4096) if counts_all else counters,
            "misses": {"never_stored": 6},
            "load_ms": {"<=5": 1},
        }
        if counts_all:
            body["speeds"] = dict.fromkeys(SPEEDS, 0.001)
        answer = http.request(
            "POST", platform.path, body=json.dumps(body), headers=platform.headers
        )
        if answer.status != 200:
            raise SystemExit(f"heartbeat: {answer.status} {answer.data[:300]!r}")

    with tempfile.TemporaryDirectory(prefix="neve-beats-") as folder, ExitStack() as stack:
        s3 = stack.enter_context(S3Server(Path(folder, "s3")))
        platforms = {}
        for name, checkout in checkouts.items():
            servers.ROOT = checkout  # where its processes run
            Path(folder, name).mkdir()
            Path(folder, name, "team.key").touch()  # 0.2.0 makes none
            platforms[name] = stack.enter_context(Platform(checkout, Path(folder, name), s3))
            platforms[name].begin()
            for _ in range(60):
                beat(platforms[name], counts_all=False)
        platforms["all"] = platforms["now"]
        for _ in range(asked.rounds):
            for name, platform in platforms.items():
                before_s = platform.cpu_s()
                for _ in range(asked.beats):
                    beat(platform, counts_all=name == "all")
                cpu_ms[name].append(1e3 * (platform.cpu_s() - before_s) / asked.beats)
    for name, each in cpu_ms.items():
        print(
            f"{name:<8} {median(each):.1f} ms a heartbeat ({min(each):.1f} … {max(each):.1f}), "
            f"{1e3 / median(each):.0f} a core-second"
        )
    for name, other in (("all", "now"), ("now", "before"))[: len(checkouts)]:
        ratios = [one / two for one, two in zip(cpu_ms[name], cpu_ms[other], strict=True)]
        print(f"{name} ÷ {other}: {median(ratios):.2f} (median of the rounds)")


if __name__ == "__main__":
    main()
