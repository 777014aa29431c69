"""Concurrent workers: `python -m support.crowd flush|compact|killed` prints facts as JSON.

A separate program, since its processes share a database; tests/tiering/test_parallel.py runs it.
It forks the children before it opens any connection.
"""

import json
import os
import random
import sys
import time
from datetime import timedelta
from multiprocessing import Pipe, get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

import django

django.setup()

from django.db import connection  # noqa: E402

from catalog import jobs  # noqa: E402
from catalog.models import Job, Segment  # noqa: E402
from neve.formats.block import HEADER_BYTES  # noqa: E402
from neve.index.tier import Location  # noqa: E402
from retention import provisioning  # noqa: E402
from support.cold_world import PAYLOAD_BYTES, World  # noqa: E402
from tenants.models import Tenant  # noqa: E402
from tenants.scope import tenant_scope  # noqa: E402
from tiering import flush, recovery, segments  # noqa: E402
from tiering.compaction import claims, sweep  # noqa: E402
from tiering.compaction.plan import Policy  # noqa: E402
from tiering.compaction.run import Compactor  # noqa: E402
from workers import tasks  # noqa: E402

WORKERS = 3
SIZE = HEADER_BYTES + PAYLOAD_BYTES
POLICY = Policy(least_bytes=4 * SIZE, most_bytes=8 * SIZE, range_bytes=2 * SIZE, fan_in=4)


def hurry(lease_s: int) -> None:
    """Set small segments, so that hours of merges take seconds. On a busy machine a short lease
    expires and another worker flushes the same blocks: only killed workers get short leases."""
    flush.GATHER_S, flush.LEASE_S, flush.LEASE_BYTES, flush.PASS_S = 0, lease_s, 40 * SIZE, 2
    segments.LEAST_BYTES, segments.MOST_BYTES = 4 * SIZE, 8 * SIZE
    sweep.SETTLED = sweep.GRACE = timedelta(seconds=1)
    jobs.FIRST_RETRY_S = jobs.LAST_RETRY_S = 0.1
    Compactor.__init__.__defaults__ = (POLICY,)


class Crowd:
    """Forked workers that repeat the tasks `names`, from `go` until killed or ended."""

    def __init__(self, *names: str) -> None:
        self.names = names
        self.members = [self._fork() for _ in range(WORKERS)]

    def _fork(self) -> tuple[BaseProcess, Connection]:
        ours, theirs = Pipe()
        process = get_context("fork").Process(target=self._work, args=(theirs,), daemon=True)
        process.start()
        return process, ours

    def _work(self, wire: Connection) -> None:
        wire.recv()
        while not wire.poll():
            for name in self.names:
                getattr(tasks, name)()

    def go(self) -> None:
        for _, wire in self.members:
            wire.send("go")

    def end(self) -> None:
        for process, wire in self.members:
            if process.is_alive():
                wire.send("end")
        for process, _ in self.members:
            process.join(60)


def wait_until(what, timeout_s=60.0) -> None:
    end = time.monotonic() + timeout_s
    while not what():
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(0.05)


def store_conversations(world: World, turns: int, chains: int = 5) -> list[bytes]:
    """Store chains in `turns` pieces, flush each separately: a chain has blocks in all segments."""
    ends, ids = [bytes(16)] * chains, []
    for _ in range(turns):
        for n, parent in enumerate(ends):
            new = world.store(1, parent=parent)
            ends[n] = new[-1]
            ids += new
        flush.Flusher(world.tenant.pk).run()
    return ids


def facts(world: World, ids: list[bytes]) -> dict[str, object]:
    """Counts for tests. `lost`: blocks that cannot be read from S3 alone."""
    world.tier.evict(1 << 40)
    places = world.tier.match(ids)
    found = [id_ for id_, place in zip(ids, places, strict=True) if isinstance(place, Location)]
    world.assert_readable_from_s3(found)
    usage = world.tier.usage()
    rows = list(Segment.unscoped.filter(tenant=world.tenant))
    live = world.tier.live_bytes([row.pk for row in rows])
    done = Job.unscoped.filter(tenant=world.tenant)
    return {
        "stored": len(ids),
        "lost": len(ids) - len(found),
        "dirty_blocks": usage.dirty_blocks,
        "drift_bytes": usage.cold_bytes - len(found) * SIZE,
        "live_drift_bytes": sum(live) - usage.cold_bytes,
        "copies": sum(row.blocks for row in rows if row.state == "live"),
        "segments": {
            state: sum(row.state == state for row in rows) for state in Segment.State.values
        },
        "job_states": sorted(set(done.values_list("state", flat=True))),
        "job_blocks": {
            kind: sum(done.filter(kind=kind).values_list("blocks", flat=True))
            for kind in ("flush", "compact")
        },
        **{
            name: sum(job.detail.get(name, 0) for job in done.filter(kind="compact"))
            for name in ("old_segments", "new_segments")
        },
        "segments_in_use": sum(bytes_ > 0 for bytes_ in live),
    }


def flush_at_once() -> dict[str, object]:
    crowd = Crowd("flush")
    world = begin()
    ids = [id_ for _ in range(30) for id_ in world.store(10)]
    crowd.go()
    wait_until(lambda: world.tier.usage().dirty_blocks == 0)
    crowd.end()
    return facts(world, ids)


def compact_at_once() -> dict[str, object]:
    crowd = Crowd("compact")
    world = begin()
    ids = store_conversations(world, 16)

    def is_done() -> bool:
        with tenant_scope(world.tenant.pk):
            is_merging = Segment.objects.filter(leased_until__isnull=False, state="live").exists()
            return not is_merging and not any(Compactor(world.tenant.pk, POLICY).plans())

    flushed = Segment.unscoped.filter(tenant=world.tenant).count()
    crowd.go()
    wait_until(is_done)
    crowd.end()
    return facts(world, ids) | {"flushed_segments": flushed}


def killed() -> dict[str, object]:
    """Kill workers (SIGKILL) repeatedly; the last workers finish the work."""
    claims.LEASE = timedelta(seconds=2)  # killed workers never release their leases
    rng = random.Random(int(os.environ.get("SEED", "1")))
    crowds = [Crowd("flush", "compact") for _ in range(3)]
    last = Crowd("flush", "compact")
    world = begin()
    ids: list[bytes] = []
    for crowd in crowds:
        ids += [id_ for _ in range(10) for id_ in world.store(5)]
        crowd.go()
        for process, _ in crowd.members:
            time.sleep(rng.uniform(0.05, 0.3))
            process.kill()
    last.go()
    wait_until(lambda: world.tier.usage().dirty_blocks == 0)
    time.sleep(claims.LEASE.total_seconds())
    last.end()
    return facts(world, ids)


def begin() -> World:
    Tenant.objects.update(is_active=False)  # so that workers see only this scenario's tenant
    recovery.rebuild_all()
    world = World()
    provisioning.provision()
    return world


SCENARIOS = {"flush": flush_at_once, "compact": compact_at_once, "killed": killed}

if __name__ == "__main__":
    hurry(lease_s=2 if sys.argv[1] == "killed" else 60)
    active = list(Tenant.objects.filter(is_active=True).values_list("pk", flat=True))
    connection.close()  # before the fork
    try:
        print(json.dumps(SCENARIOS[sys.argv[1]]()))
    finally:
        Tenant.objects.update(is_active=False)
        Tenant.objects.filter(pk__in=active).update(is_active=True)
