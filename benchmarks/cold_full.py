"""The demo's workload on a full cold tier: hits with eviction and with refusal.

    .venv/bin/python benchmarks/cold_full.py [--seconds 60] [--rate 20] [--policies evict,refuse]

Real servers, `neve replay`, and the workers' tasks in this process. Blocks have 16 KiB instead of
the demo's 256, requests come ten times as often, and the wait before deleting a segment is a tenth,
so minutes of the demo take seconds. Each line covers a tenth of the run: hits per requested block,
and totals since the start.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "platform"), str(ROOT / "tests")]

from support.servers import ControlPlane, S3Server  # noqa: E402

BLOCK_BYTES = 64 + 256 * 64  # header, and 256 tokens of 64 bytes
HOT_BLOCKS, COLD_BLOCKS = 1_000, 3_000
STEPS = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--rate", type=float, default=20, help="requests a second")
    parser.add_argument("--policies", default="evict,refuse")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="neve-cold-full-") as name:
        folder = Path(name)
        with S3Server(folder / "s3") as s3, ControlPlane(folder / "web", s3) as platform:
            os.environ.update(platform.environment())
            import django

            django.setup()
            for policy in options.policies.split(","):
                run(platform, policy, options.seconds, options.rate)


def run(platform: ControlPlane, policy: str, seconds: float, rate: float) -> None:
    """Store into and read from one tenant for `seconds`."""
    from retention.services import set_policy
    from storage.hot import hot_tier
    from tenants.audit import SYSTEM
    from tenants.services import create_tenant, issue_key

    tenant = create_tenant(
        slug=policy,
        name=policy,
        hot_bytes=HOT_BLOCKS * BLOCK_BYTES,
        cold_bytes=COLD_BLOCKS * BLOCK_BYTES,
        overcommit=True,  # the demo tenant's quota stays, but it stores nothing
    )
    set_policy(tenant=tenant, actor=SYSTEM, cold_full=policy)
    _, key = issue_key(tenant=tenant, role="node", name="replay")
    print(f"\ncold_full={policy}, {COLD_BLOCKS} cold and {HOT_BLOCKS} hot blocks")
    print("   s   hits  asked      cold   evicted   refused      lost  dropped")
    stop = threading.Event()
    worker = threading.Thread(target=_work, args=(stop,))
    worker.start()
    replay = subprocess.Popen(
        [
            *(sys.executable, "-m", "neve", "replay", "--loop", "--quiet"),
            *("--endpoint", platform.url, "--api-key", key, "--kv-bytes-per-token", "64"),
            *("--rate", str(rate), "--concurrency", "8"),
        ],
        env=platform.environment(),
        stdout=subprocess.DEVNULL,
    )
    started, before = time.monotonic(), _counted(tenant.pk)
    late: list[float] = []
    try:
        for step in range(1, STEPS + 1):
            time.sleep(max(0.0, started + seconds * step / STEPS - time.monotonic()))
            now, used = _counted(tenant.pk), hot_tier(tenant.pk).usage()
            asked = now["requested_blocks"] - before["requested_blocks"]
            hits = now["hits"] - before["hits"]
            ratio = hits / asked if asked else 0.0
            print(
                f"{seconds * step / STEPS:4.0f} {ratio:6.3f} {asked:6}"
                f" {used.cold_blocks:9} {used.cold_evicted_blocks:9} {used.cold_refused_blocks:9}"
                f" {used.lost_blocks:9} {now['dropped']:8}",
                flush=True,
            )
            before = now
            late += [ratio] if step > STEPS // 2 else []
    finally:
        replay.terminate()
        replay.wait(30)
        stop.set()
        worker.join(60)
    print(
        f"cold_full policy={policy} late_hits={sum(late) / len(late):.3f}"
        f" refused={used.cold_refused_blocks} lost={used.lost_blocks} dropped={now['dropped']}"
        f" misses={now['misses']}"
    )


def _counted(tenant_id: int) -> dict[str, Any]:
    from catalog.usage import series

    points = series(tenant_ids=[tenant_id], resolution_s=3600, since_ts=0)
    names = ("requested_blocks", "hit_hot_blocks", "hit_cold_blocks", "dropped")
    sums = {name: sum(point[name] for point in points) for name in names}
    misses: dict[str, int] = {}
    for point in points:
        misses = {n: misses.get(n, 0) + point["misses"].get(n, 0) for n in point["misses"] | misses}
    return sums | {"hits": sums["hit_hot_blocks"] + sums["hit_cold_blocks"], "misses": misses}


def _work(stop: threading.Event) -> None:
    from tiering.compaction import sweep
    from workers import tasks

    sweep.PRESSED_GRACE /= 10  # ten times as fast as the demo, like all else here
    tasks.rebuild_index()
    while not stop.wait(0.5):
        for task in (tasks.flush, tasks.sweep, tasks.compact, tasks.expire, tasks.sample):
            task()


if __name__ == "__main__":
    main()
