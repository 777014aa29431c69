"""SGLang's pages through Neve and through SGLang's own backends, beside what this machine can do.

    make bench-sglang [BENCH_ARGS="--pages 192 --rounds 5 --json pages.json"]

SGLang's own HiCacheController writes pages of its host pool, and prefetches them into it again,
through: Neve (pages in Valkey), `file` (SGLang's built-in backend, in a folder of --dir, where the
page cache holds its files), `seaweedfs` (SGLang's own, over the same SeaweedFS that Neve's cold
tier has), and Neve with pages that lie in S3 alone. All in one run, by turns: each round measures
each of them once, with other pages, in an order that rotates. Figures are medians over rounds, GB
of KV a second from the controller's call to its acknowledgement; all loaded bytes are compared with
those written, outside of the clock. Beside them: the same bytes copied in memory, and through one
TCP connection of this host. No GPU takes part: what is measured is host memory to storage.
"""

import argparse
import json
import os
import platform as host
import random
import statistics
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "platform"), str(ROOT / "tests")]

from support.servers import ControlPlane, S3Server, free_port  # noqa: E402
from support.sglang import SglangController, neve_config  # noqa: E402

PAGE, LAYERS = 64, 32  # 1 MiB: 2 KV heads of 64 bfloat16, K and V
PAGE_BYTES = 1 << 20
BACKENDS = ("neve", "file", "seaweedfs")
ROWS = (
    *(f"{backend} {what}" for backend in BACKENDS for what in ("write", "read")),
    *("neve read from S3", "copy in memory", "one TCP connection"),
)
SET_HOT_BYTES = """
from tenants.audit import SYSTEM
from tenants.models import Tenant
from tenants.services import set_quota
set_quota(tenant=Tenant.objects.get(slug="demo"), actor=SYSTEM, hot_bytes={hot_bytes})
"""


class Run:
    def __init__(self, options: argparse.Namespace, platform: ControlPlane, process: Any) -> None:
        self.options, self.platform, self.process = options, platform, process
        self.speeds: dict[str, list[float]] = defaultdict(list)

    def round(self, number: int, layout: str, folder: Path) -> None:
        for turn in range(len(BACKENDS)):
            self.measure(BACKENDS[(number + turn) % len(BACKENDS)], layout, number, folder)
        told = self.process.ask("raw", bytes=self.options.pages * PAGE_BYTES)
        self.note(f"{layout}: copy in memory", told["copy_s"])
        self.note(f"{layout}: one TCP connection", told["socket_s"])

    def measure(self, backend: str, layout: str, number: int, folder: Path) -> None:
        revision = f"{layout} {number} {random.getrandbits(32)}"
        self.process.ask(
            "start",
            config=self.config(backend, revision, folder),
            backend="dynamic" if backend == "neve" else backend,
            layout=layout, page=PAGE, pages=self.options.pages + 2, layers=LAYERS,
        )  # fmt: skip
        if backend == "neve":
            self.process.ask("wait_connected")
        told = self.process.ask("write", seed=number, pages=self.options.pages)
        assert told["stored"] == self.options.pages * PAGE, (backend, told)
        self.note(f"{layout}: {backend} write", told["took_s"])
        self.read(f"{layout}: {backend} read", number)
        if backend == "neve" and number < self.options.cold_rounds:
            self.platform.manage("flush_blocks")
            self.platform.hot.wipe()
            self.platform.manage("rebuild_index")
            self.read(f"{layout}: neve read from S3", number)
        self.process.ask("stop")

    def read(self, row: str, seed: int) -> None:
        told = self.process.ask("read", seed=seed, pages=self.options.pages)
        assert told["equal"], row
        assert told["loaded"] == self.options.pages * PAGE, (row, told)
        self.note(row, told["took_s"])

    def config(self, backend: str, revision: str, folder: Path) -> dict[str, Any]:
        if backend == "neve":
            return neve_config(self.platform, revision=revision)
        if backend == "file":
            return {"file_storage_path": str(folder / revision)}
        s3 = self.platform.s3
        return {
            "endpoint": s3.endpoint, "access_key": s3.access_key, "secret_key": s3.secret_key,
            "bucket": "hicache", "prefix": revision.replace(" ", "-"),
        }  # fmt: skip

    def note(self, row: str, took_s: float) -> None:
        self.speeds[row].append(self.options.pages * PAGE_BYTES / took_s / 1e9)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pages", type=int, default=192, help="of 1 MiB, a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cold-rounds", type=int, default=2, help="of these, also from S3")
    parser.add_argument("--layouts", nargs="+", default=["page_first", "layer_first"])
    parser.add_argument("--dir", type=Path, help="for servers and files; default: a temporary one")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--python", type=Path, default=ROOT / ".venv-sglang/bin/python")
    return parser.parse_args()


def main() -> None:
    options = read_options()
    total = options.pages * PAGE_BYTES * options.rounds * len(options.layouts)
    with tempfile.TemporaryDirectory(dir=options.dir) as name:
        folder = Path(name)
        keys = ("bench", "bench-secret-key")
        with (
            S3Server(folder / "s3", port=free_port(2), keys=keys) as s3,
            ControlPlane(folder / "platform", s3, maxmemory=f"{2 * total >> 20}mb") as platform,
            SglangController(options.python, folder / "controller.log") as process,
        ):
            hot_bytes = int(1.2 * total)
            platform.manage("shell", "-v0", "-c", SET_HOT_BYTES.format(hot_bytes=hot_bytes))
            s3.client().create_bucket(Bucket="hicache")
            run = Run(options, platform, process)
            for number in range(options.rounds):
                for layout in options.layouts:
                    run.round(number, layout, folder)
                print(f"round {number + 1} of {options.rounds}", file=sys.stderr, flush=True)
    report(options, run.speeds)


def report(options: argparse.Namespace, speeds: dict[str, list[float]]) -> None:
    load = os.getloadavg()[1]
    print(
        f"{options.pages} pages of 1 MiB ({PAGE} tokens, {LAYERS} layers), {options.rounds} rounds,"
        f" {os.cpu_count()} cores, load {load:.1f}, {host.machine()}; median GB/s (least … most)"
    )
    print("| | " + " | ".join(options.layouts) + " |")
    print("|---|" + "---|" * len(options.layouts))
    for row in ROWS:
        cells = []
        for layout in options.layouts:
            found = speeds.get(f"{layout}: {row}", [])
            middle = f"{statistics.median(found):.2f}" if found else "—"
            cells.append(f"{middle} ({min(found):.2f} … {max(found):.2f})" if found else middle)
        print(f"| {row} | " + " | ".join(cells) + " |")
    if options.json:
        options.json.write_text(json.dumps({"load": load, "speeds": speeds}, indent=1))


if __name__ == "__main__":
    main()
