"""Peak disk use of a day of an unattended `make up`, replayed faster.

    make day [BENCH_ARGS="--scale 8 --share 0.2 --minutes 10"]

The demo of deploy/supervisord.conf writes about 1.5 MiB of new KV a request, twice a second: 249
GiB a day, 83 times its cold quota. Here quotas and requests (thus bytes) are `scale` times smaller,
and intervals, graces and SeaweedFS's vacuum are shortened so that the run takes `minutes`. Servers,
client, tasks and compaction are the real ones; a block has its real size. `share`: part of the day.
Disk use reaches its peak after two turnovers of the quota, so a share of 0.1 (8 turnovers) shows
the peak of the whole day.

Space that SeaweedFS has not vacuumed yet does not shrink with the scale: its vacuum takes seconds
however small the quota. So the printed sum for a day is Neve's bytes times `scale`, plus
SeaweedFS's extra bytes as measured here.
Files that grow by time or jobs, not by bytes, are listed apart: database, logs, SeaweedFS's own.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from support.servers import ControlPlane, S3Server, wait_until  # noqa: E402

DAY_S, RATE = 86_400, 2.0  # requests a second: deploy/supervisord.conf
DAY_REQUESTS = int(DAY_S * RATE)
COLD_BYTES, HOT_BYTES = 3 << 30, 256 << 20  # the demo tenant's, as in bootstrap
MIB, GIB = 1 << 20, 1 << 30
GOAL_BYTES = 8 * GIB
NEVE = Path(sys.executable).with_name("neve")


class FastS3(S3Server):
    """weed with faster vacuum and smaller volumes."""

    def __init__(self, folder: Path, *, times: float, scale: int) -> None:
        super().__init__(folder)
        self.options = [
            f"-master.vacuumIntervalSeconds={max(1, round(60 / times))}",
            f"-master.volumeSizeLimitMB={max(16, 256 // scale)}",
        ]

    def command(self) -> list[str]:
        return [*super().command(), *self.options]


def disk_bytes(folder: Path) -> int:
    """Disk use as `du` counts it: allocated blocks, not lengths. Tolerates vanishing files."""
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(path, name)).st_blocks * 512
            except FileNotFoundError:
                continue
    return total


class Watch:
    """Follows the worker's output and the disk use."""

    def __init__(self, s3: Path, web: Path) -> None:
        self.s3, self.web = s3, web
        self.facts: dict[str, float] = {}
        self.most: dict[str, float] = {}
        self._ended = threading.Event()

    def listen(self, worker: "subprocess.Popen[str]") -> None:
        assert worker.stdout is not None
        for line in worker.stdout:
            self.facts = json.loads(line)
            taken = {name: self.facts[name] for name in ("live", "dead", "waiting")}
            self._note(**taken, stored=sum(taken.values()))

    def measure(self) -> None:
        began = said = time.monotonic()
        while not self._ended.wait(0.5):
            parts = {"s3": disk_bytes(self.s3), "rest": disk_bytes(self.web)}
            stored = sum(self.facts.get(name, 0) for name in ("live", "dead", "waiting"))
            disk = sum(parts.values())
            self._note(**parts, disk=disk, beyond=disk - stored)
            if time.monotonic() - said > 20 and self.facts:
                said = time.monotonic()
                f = self.facts
                print(
                    f"{said - began:5.0f} s  flushed {f['flushed'] / GIB:5.2f} GiB  "
                    f"live {f['live'] / MIB:5.0f}  dead {f['dead'] / MIB:4.0f}  "
                    f"waiting {f['waiting'] / MIB:4.0f}  disk {sum(parts.values()) / MIB:5.0f} MiB",
                    flush=True,
                )

    def end(self) -> None:
        self._ended.set()

    def _note(self, **values: float) -> None:
        for name, value in values.items():
            self.most[name] = max(self.most.get(name, 0), value)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", type=int, default=8, help="quotas and bytes are so much less")
    parser.add_argument("--share", type=float, default=0.2, help="of the day")
    parser.add_argument("--minutes", type=float, default=10, help="that this share shall take")
    options = parser.parse_args()
    times = DAY_S * options.share / (options.minutes * 60)
    requests = int(DAY_REQUESTS * options.share / options.scale)
    with tempfile.TemporaryDirectory(prefix="neve-day-") as name:
        folder = Path(name)
        with (
            FastS3(folder / "s3", times=times, scale=options.scale) as s3,
            ControlPlane(folder / "web", s3, maxmemory="512mb") as web,
        ):
            return replay(web, s3, options.scale, times, requests)


def replay(web: ControlPlane, s3: S3Server, scale: int, times: float, requests: int) -> int:
    env = web.environment()
    worker = [sys.executable, str(ROOT / "benchmarks/day_worker.py")]
    quotas = [str(COLD_BYTES // scale), str(max(HOT_BYTES // scale, 64 * MIB))]
    subprocess.run([*worker, "prepare", *quotas], env=env, cwd=ROOT, check=True)
    watch = Watch(s3.folder, web.folder)
    errors = (web.folder / "workers.log").open("ab")
    queues = ("flush", "compact sweep", "expire retain sample reconcile housekeeping")
    started: list[subprocess.Popen[str]] = []
    threads = [threading.Thread(target=watch.measure, daemon=True)]
    began = time.monotonic()
    try:
        for kinds in queues:
            command = ["setpriv", "--pdeathsig", "KILL", *worker, "run", str(times), *kinds.split()]
            pipe = subprocess.PIPE if "sample" in kinds else subprocess.DEVNULL
            started.append(
                subprocess.Popen(command, env=env, cwd=ROOT, stdout=pipe, stderr=errors, text=True)
            )
        threads.append(threading.Thread(target=watch.listen, args=(started[2],), daemon=True))
        for thread in threads:
            thread.start()
        rate = RATE * times / scale
        print(f"{requests} requests at {rate:.1f}/s, {times:.0f} times as fast, 1/{scale} as large")
        wait_until(lambda: bool(watch.facts), timeout_s=120, what="workers")
        command = [
            *("setpriv", "--pdeathsig", "KILL", str(NEVE), "replay"),
            *("--endpoint", web.url, "--api-key", web.node_key, "--node", "demo"),
            *("--kv-bytes-per-token", "1KiB", "--requests", str(requests)),
            *("--rate", str(rate), "--concurrency", "8", "--quiet"),
        ]
        for _ in range(5):  # on a busy machine the first handshakes may time out
            done = subprocess.run(command, env=env, cwd=ROOT, text=True, capture_output=True)
            if "cannot be reached" not in done.stderr + done.stdout:
                break
    finally:
        watch.end()
        for process in started:
            process.kill()
            process.wait()
        errors.close()
    print((done.stdout + done.stderr)[-1500:])
    if not watch.facts:
        print((web.folder / "workers.log").read_text()[-3000:])
        return 1
    return report(watch, web, s3, scale, time.monotonic() - began, done.returncode)


def report(
    watch: Watch, web: ControlPlane, s3: S3Server, scale: int, took_s: float, failed: int
) -> int:
    most, facts = watch.most, watch.facts
    print(f"took {took_s:.0f} s; flushed {facts['flushed'] / GIB:.1f} GiB = "
          f"{facts['flushed'] * scale / COLD_BYTES:.0f} times the cold quota; "
          f"{facts['job_rows']:.0f} job rows, {facts['failed_jobs']:.0f} failed")  # fmt: skip
    print(f"{'highest':12} {'here, MiB':>10} {'a day, GiB':>11} {'of the quota':>13}")
    quota = COLD_BYTES / scale
    for name in ("live", "dead", "waiting", "stored"):
        value = most[name]
        print(f"{name:12} {value / MIB:10.0f} {value * scale / GIB:11.2f} {value / quota:12.2f}")
    beyond = most["beyond"]
    a_day = most["stored"] * scale + beyond
    print(f"{'unvacuumed':12} {beyond / MIB:10.0f} {beyond / GIB:11.2f}")
    print(f"{'disk':12} {most['disk'] / MIB:10.0f} {a_day / GIB:11.2f}")
    data = s3.folder / "data"
    own = sum(disk_bytes(path) for path in data.iterdir() if path.is_dir())
    own += sum(f.stat().st_blocks * 512 for f in data.glob("[0-9]*.*"))
    print("What does not grow by bytes, at the end, MiB:")
    for name, bytes_ in (
        ("database", sum(f.stat().st_size for f in web.folder.glob("neve.sqlite3*"))),
        ("workers' and web's logs", sum(f.stat().st_size for f in web.folder.glob("*.log"))),
        ("valkey's folders", disk_bytes(web.folder / "hot") + disk_bytes(web.folder / "bus")),
        ("SeaweedFS's index, logs of changes", own),
        ("SeaweedFS's log", s3.log.stat().st_size),
    ):
        print(f"  {name:36} {bytes_ / MIB:8.1f}")
    print(f"below {GOAL_BYTES / GIB:.0f} GiB: {'yes' if a_day < GOAL_BYTES else 'NO'}")
    return failed or a_day >= GOAL_BYTES


if __name__ == "__main__":
    sys.exit(main())
