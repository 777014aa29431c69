"""Speed of recovery and reconcile: segments/s and blocks/s on real Valkey, weed and database.

    .venv/bin/python benchmarks/recovery.py [--segments 2000] [--blocks 64]

Segments are real with empty payloads: recovery reads only footers, whose size depends on the number
of blocks. Drops Valkey's data, then all rows, then runs one round of reconcile.
"""

import argparse
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import django

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "platform"), str(ROOT / "tests"), str(ROOT / "benchmarks")]

from support import testsettings  # noqa: E402

django.setup()

from django.conf import settings  # noqa: E402

from catalog.models import Segment  # noqa: E402
from neve.formats.block import BlockHeader  # noqa: E402
from neve.formats.keys import segment_key  # noqa: E402
from neve.formats.segment import SegmentHeader, SegmentWriter  # noqa: E402
from retention import provisioning  # noqa: E402
from storage import hot, s3  # noqa: E402
from support.cold_world import World  # noqa: E402
from support.platform_servers import platform_servers  # noqa: E402
from tenants.scope import tenant_scope  # noqa: E402
from tiering import recovery  # noqa: E402
from tiering.adoption import adopt_tenant  # noqa: E402
from tiering.reconcile import run  # noqa: E402

PUTS_AT_ONCE = 8


def put_segment(world: World, blocks: int) -> None:
    """Upload a segment with a chain of blocks without payloads."""
    uuid = uuid4()
    writer = SegmentWriter(SegmentHeader(world.tenant.pk, uuid, world.fingerprint))
    parent, bodies = bytes(16), [writer.header.encode()]
    for _ in range(blocks):
        header = BlockHeader(os.urandom(16), parent, 256, 0, 0, world.fingerprint[:4])
        writer.add(header, stored_s=int(time.time()))
        bodies.append(bytes(64))
        parent = header.id
    s3.client().put_object(
        Bucket=settings.ENV.s3_bucket,
        Key=segment_key(world.tenant.pk, world.fingerprint, uuid),
        Body=b"".join([*bodies, writer.footer()]),
    )


def timed(act: Callable[[], object]) -> float:
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


@contextmanager
def folder():  # type: ignore[no-untyped-def]
    try:
        yield
    finally:
        shutil.rmtree(testsettings.FOLDER, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--segments", type=int, default=2000)
    parser.add_argument("--blocks", type=int, default=64, help="of each segment")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    with folder(), platform_servers():
        world = World(cold_bytes=1 << 40)
        provisioning.provision()
        with ThreadPoolExecutor(PUTS_AT_ONCE) as pool:
            list(pool.map(lambda _: put_segment(world, options.blocks), range(options.segments)))
        blocks = options.segments * options.blocks
        adopt_s = timed(lambda: adopt_tenant(world.tenant.pk))
        with tenant_scope(world.tenant.pk):
            assert Segment.objects.count() == options.segments
        rebuild_s = timed(recovery.rebuild_all)
        assert world.tier.usage().cold_blocks == blocks
        report = None

        def reconcile() -> None:
            nonlocal report
            report = run.reconcile([world.tenant.pk])

        reconcile_s = timed(reconcile)
        assert report is not None
        assert not report.repaired, report
        print(f"adopt_segments: {options.segments / adopt_s:,.0f} segments/s")
        print(
            f"rebuild_index: {options.segments / rebuild_s:,.0f} segments/s, "
            f"{blocks / rebuild_s:,.0f} blocks/s"
        )
        print(f"reconcile: {dict(report.looked_at)} in {reconcile_s:.1f} s")
        stats = hot.admin().info("commandstats")
        print(f"fcall: {stats['cmdstat_fcall']}")


if __name__ == "__main__":
    main()
