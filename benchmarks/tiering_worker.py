"""Worker process of benchmarks/tiering_speed.py: the real Flusher and Compactor of one tenant.

    python benchmarks/tiering_worker.py HOT_BYTES COLD_BYTES     (with a platform's environment)

Makes a tenant with these quotas. Answers each command line on stdin with a line of JSON.
"""

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import django

django.setup()

from django.conf import settings  # noqa: E402

from catalog.models import Segment  # noqa: E402
from storage import hot, s3  # noqa: E402
from tenants.models import ApiKey  # noqa: E402
from tenants.scope import tenant_scope  # noqa: E402
from tenants.services import create_tenant, issue_key  # noqa: E402
from tiering import flush, recovery, segments, upload  # noqa: E402
from tiering.compaction import merge, source  # noqa: E402
from tiering.compaction.plan import Policy  # noqa: E402
from tiering.compaction.run import Compactor  # noqa: E402
from tiering.flush import Flusher  # noqa: E402

SELF = Path("/proc/self")


def memory_mib(name: str) -> float:
    """`VmRSS`: resident now; `VmHWM`: peak since `forget_peak`. Source: proc(5)."""
    lines = (SELF / "status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))


def forget_peak() -> None:
    (SELF / "clear_refs").write_text("5")


def cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


class Bench:
    """The commands, for one tenant."""

    def __init__(self, hot_bytes: int, cold_bytes: int) -> None:
        self.tenant = create_tenant(
            slug="bench",
            name="Bench",
            hot_bytes=hot_bytes,
            cold_bytes=cold_bytes,
            overcommit=True,
        )
        self.tenant_id = self.tenant.pk
        recovery.rebuild_all()
        self.tier = hot.hot_tier(self.tenant_id)

    def begin(self) -> dict[str, Any]:
        """The node's key, memory of the idle process, and bounds of the extra memory."""
        _, key = issue_key(tenant=self.tenant, role=ApiKey.Role.NODE, name="bench")
        return {
            "key": key,
            "bucket": settings.ENV.s3_bucket,
            "segment_bytes": segments.MOST_BYTES,
            "part_bytes": upload.PART_BYTES,
            "put_streams": upload.PARTS_HELD - 1,
            "get_streams": source.STREAMS,
            "base_mib": memory_mib("VmRSS"),
            "flush_bound_mib": flush.memory_bytes() / 2**20,
            "compact_bound_mib": merge.memory_bytes(Policy()) / 2**20,
        }

    def flush(self) -> dict[str, Any]:
        """Flush all due blocks once."""
        return self._measure(Flusher(self.tenant_id).run)

    def compact(self) -> dict[str, Any]:
        """Run once all merges that the default policy plans."""
        return self._measure(Compactor(self.tenant_id).run)

    def cool(self) -> dict[str, Any]:
        """Evict all clean blocks from the hot tier."""
        return {"blocks": self.tier.evict(1 << 40)[0]}

    def segments(self) -> dict[str, Any]:
        with tenant_scope(self.tenant_id):
            rows = Segment.objects.filter(state=Segment.State.LIVE, live_bytes__gt=0)
            return {str(row.pk): row.object_key for row in rows}

    def clear(self) -> dict[str, Any]:
        """Delete all segments and their blocks."""
        with tenant_scope(self.tenant_id):
            for row in Segment.objects.all():
                s3.client().delete_object(Bucket=settings.ENV.s3_bucket, Key=row.object_key)
                row.delete()
        return {}

    def forget(self, *ids: str) -> dict[str, Any]:
        return {"blocks": self.tier.expire([bytes.fromhex(id_) for id_ in ids])[0]}

    def _measure(self, run: Callable[[], Any]) -> dict[str, Any]:
        forget_peak()
        before_s, began = cpu_s(), time.perf_counter()
        report = run()
        return {
            **vars(report),
            "wall_s": time.perf_counter() - began,
            "cpu_s": cpu_s() - before_s,
            "peak_mib": memory_mib("VmHWM"),
        }


def main() -> None:
    bench = Bench(*map(int, sys.argv[1:]))
    print("{}", flush=True)
    for line in sys.stdin:
        name, *words = line.split()
        print(json.dumps(getattr(bench, name)(*words)), flush=True)


if __name__ == "__main__":
    main()
