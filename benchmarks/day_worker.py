"""Worker process of benchmarks/day.py: the real tasks at shorter intervals.

    python benchmarks/day_worker.py prepare COLD_BYTES HOT_BYTES   (with a platform's environment)
    python benchmarks/day_worker.py run TIMES KIND...              until it is killed

`run` divides intervals by TIMES. With the kind `sample` it prints a line of JSON every second: the
size of the tenant's segments.
"""

import json
import sys
import time
from datetime import timedelta

import django

django.setup()

from django.db.models import Count, Sum  # noqa: E402

from catalog.kinds import KINDS  # noqa: E402
from catalog.models import Job, Segment  # noqa: E402
from catalog.occupancy import occupancy  # noqa: E402
from retention import provisioning  # noqa: E402
from storage import hot  # noqa: E402
from tenants.models import Quota, Tenant  # noqa: E402
from tenants.scope import tenant_scope  # noqa: E402
from tiering import flush, recovery  # noqa: E402
from tiering.compaction import sweep  # noqa: E402
from tiering.reconcile import rounds  # noqa: E402
from workers import tasks  # noqa: E402

LEAST_S = 0.25  # minimum between two runs of a kind, so that idle tasks leave the processor free


def prepare(cold_bytes: int, hot_bytes: int) -> None:
    tenant = Tenant.objects.get()
    with tenant_scope(tenant.pk):
        Quota.objects.update(cold_bytes=cold_bytes, hot_bytes=hot_bytes)
    provisioning.provision_tenant(Tenant.objects.get())
    recovery.rebuild_all()


def shorten(times: float) -> None:
    flush.GATHER_S /= times
    sweep.SETTLED /= times
    sweep.GRACE /= times
    sweep.PRESSED_GRACE /= times
    rounds.PAUSE /= times


def run(times: float, names: list[str]) -> None:
    shorten(times)
    due = dict.fromkeys(names, 0.0)
    tell_at = 0.0
    while True:
        now = time.monotonic()
        for name in names:
            if now >= due[name]:
                getattr(tasks, name)()
                due[name] = time.monotonic() + max((KINDS[name].every_s or 1.0) / times, LEAST_S)
        if "sample" in names and now >= tell_at:
            tell_at = now + 1.0
            print(json.dumps(facts()), flush=True)
        time.sleep(0.02)


def facts() -> dict[str, float]:
    tenant_id = Tenant.objects.get().pk
    taken, held = occupancy(tenant_id), hot.hot_tier(tenant_id).usage()
    jobs = Job.unscoped.aggregate(rows=Count("pk"))
    flushed = Job.unscoped.filter(kind="flush").aggregate(bytes=Sum("bytes"))
    return {
        "live": taken.live_bytes,
        "dead": taken.dead_bytes,
        "waiting": taken.waiting_bytes,
        "flushed": flushed["bytes"] or 0,
        "job_rows": jobs["rows"],
        "failed_jobs": Job.unscoped.filter(state="failed").count(),
        "segments": Segment.unscoped.count(),
        "evicted": held.cold_evicted_bytes,
        "refused": held.refused_bytes,
        "grace_s": sweep.GRACE / timedelta(seconds=1),
    }


if __name__ == "__main__":
    if sys.argv[1] == "prepare":
        prepare(int(sys.argv[2]), int(sys.argv[3]))
    else:
        run(float(sys.argv[2]), sys.argv[3:])
