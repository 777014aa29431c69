"""Bandwidth of segments' moves between two stores, beside a raw boto3 copy in the same run.

    .venv/bin/python benchmarks/class_move.py [--mib 256] [--segments 2] [--rounds 5]

Two weed servers on loopback, Valkey, the real Mover: it reads from one server, checks each block,
sends parts with CRC-32, compares their MD5s, reads the footer back, flips the row. The raw copy
reads the same objects by `get_object` and writes them by `upload_fileobj` with as many threads and
parts of the same size; it checks nothing. Rounds alternate; the figure is the median of the rounds'
ratios. `measure` is for benchmarks/tiers.py.
"""

import argparse
import logging
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import django

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "platform"), str(ROOT / "tests"), str(ROOT / "benchmarks")]

from support import testsettings  # noqa: E402, F401

django.setup()
logging.disable(logging.INFO)  # a line for each segment that moved

from boto3.s3.transfer import TransferConfig  # noqa: E402

from catalog.models import Segment, SegmentCopy  # noqa: E402
from catalog.stores import Stores, bucket_of  # noqa: E402
from neve.formats.block import HEADER_BYTES  # noqa: E402
from planning.moves import all_prices  # noqa: E402
from storage import s3  # noqa: E402
from support.cold_world import World  # noqa: E402
from support.platform_servers import platform_servers  # noqa: E402
from support.servers import S3Server  # noqa: E402
from support.stores import make_rule, make_store  # noqa: E402
from tenants.scope import tenant_scope  # noqa: E402
from tiering.flush import Flusher  # noqa: E402
from tiering.moving.run import Mover  # noqa: E402
from tiering.upload import PART_BYTES, PARTS_HELD  # noqa: E402

PAYLOAD_BYTES = 2 << 20
MOST_STORED_BYTES = 256 << 20  # in the hot tier at a time


@dataclass(frozen=True)
class Result:
    """Medians of the rounds. `ratio`: of the rounds' ratios."""

    move_gb_per_s: float
    raw_gb_per_s: float
    ratio: float


def measure(*, mib: int = 256, segments: int = 2, rounds: int = 5) -> Result:
    """Starts its own servers. `mib`: of each segment."""
    with (
        tempfile.TemporaryDirectory(prefix="class-move-", dir="/dev/shm") as folder,
        platform_servers(),
        S3Server(Path(folder)) as far,
    ):
        world = World(hot_bytes=1 << 30, cold_bytes=1 << 40)
        for _ in range(segments):
            _fill(world, mib << 20)
        target = make_store("far", far, move_bytes_per_s=1 << 40)
        make_rule(target)
        moved, raw = [], []
        for number in range(rounds + 1):
            steps: list[tuple[list[float], Callable[[], float]]] = [
                (moved, lambda: _move(world)),
                (raw, lambda: _copy(world, bucket_of(target))),
            ]
            for kept, step in steps if number % 2 else reversed(steps):
                speed = step()
                if number:  # round 0 warms up
                    kept.append(speed)
    ratios = [mine / theirs for mine, theirs in zip(moved, raw, strict=True)]
    return Result(statistics.median(moved), statistics.median(raw), statistics.median(ratios))


def _fill(world: World, size_bytes: int) -> None:
    """Blocks of random bytes, flushed into segments and evicted."""
    left = size_bytes // (PAYLOAD_BYTES + HEADER_BYTES)
    while left > 0:
        count = min(left, MOST_STORED_BYTES // PAYLOAD_BYTES)
        world.store(count, payload_bytes=PAYLOAD_BYTES)
        world.payloads.clear()
        Flusher(world.tenant.pk).run()
        world.tier.evict(1 << 40)
        left -= count


def _move(world: World) -> float:
    """Bytes a second, in 10^9. The segments are in the default store again afterwards."""
    mover = Mover(world.tenant.pk, all_prices(Stores()))
    start = time.monotonic()
    report = mover.run()
    took_s = time.monotonic() - start
    assert report.moved == len(world.segments()), report
    with tenant_scope(world.tenant.pk):
        SegmentCopy.objects.all().delete()
        stores = Stores()
        for row in Segment.objects.all():
            stores.object(row).delete()
        Segment.objects.update(store=None, moved_at=None)
    return report.bytes / took_s / 1e9


def _copy(world: World, target: s3.Bucket) -> float:
    """The same objects, by boto3 alone."""
    source = s3.default()
    parts = PARTS_HELD - 1
    config = TransferConfig(
        multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES, max_concurrency=parts
    )
    rows = world.segments()
    start = time.monotonic()
    for row in rows:
        body = source.client.get_object(Bucket=source.name, Key=row.object_key)["Body"]
        target.client.upload_fileobj(body, target.name, f"raw/{row.object_key}", Config=config)
    took_s = time.monotonic() - start
    for row in rows:
        target.object(f"raw/{row.object_key}").delete()
    return sum(row.size_bytes for row in rows) / took_s / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--mib", type=int, default=256, help="of each segment")
    parser.add_argument("--segments", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    found = measure(mib=asked.mib, segments=asked.segments, rounds=asked.rounds)
    load = os.getloadavg()[0]
    print(
        f"moves {found.move_gb_per_s:.2f} GB/s, raw boto3 copies {found.raw_gb_per_s:.2f} GB/s "
        f"({asked.rounds} rounds of {asked.segments} × {asked.mib} MiB, {os.cpu_count()} cores, "
        f"load {load:.1f})"
    )
    print(f"class_move class_move_vs_raw={found.ratio:.2f}")


if __name__ == "__main__":
    main()
