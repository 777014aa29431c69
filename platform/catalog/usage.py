"""Usage roll-ups: a heartbeat's deltas land in a 10 s, a 60 s and a 3,600 s bucket at once.

Times are the control plane's own clock. Rows are locked in the order of `RESOLUTIONS_S`, so that
concurrent heartbeats wait for each other and lose nothing.
"""

from collections.abc import Collection, Mapping
from datetime import datetime, timedelta
from typing import Any

from django.db import transaction
from django.db.models import Max, Sum
from django.utils import timezone

from catalog.models import GAUGES, RESOLUTIONS_S, UsageRollup
from neve.stats import COUNTERS
from tenants.scope import tenant_scope

# How long buckets of a resolution are kept; the coarsest stay.
KEPT = {10: timedelta(hours=6), 60: timedelta(days=14)}


def add(total: Mapping[str, int], delta: Mapping[str, int]) -> dict[str, int]:
    """Sums by name."""
    return {name: total.get(name, 0) + delta.get(name, 0) for name in {**total, **delta}}


@transaction.atomic
def record_deltas(
    *,
    tenant_id: int,
    at: datetime,
    counters: Mapping[str, int],
    misses: Mapping[str, int],
    load_ms: Mapping[str, int],
) -> None:
    """Counters are names of COUNTERS; `load_ms` is a histogram, upper bound → loads."""
    if not any((*counters.values(), *misses.values(), *load_ms.values())):
        return
    for row in _locked_buckets(tenant_id, at):
        for name, delta in counters.items():
            setattr(row, name, getattr(row, name) + delta)
        row.misses = add(row.misses, misses)
        row.load_ms = add(row.load_ms, load_ms)
        with tenant_scope(tenant_id):
            row.save(update_fields=[*counters, "misses", "load_ms"])


@transaction.atomic
def record_gauges(*, tenant_id: int, at: datetime, gauges: Mapping[str, int]) -> None:
    """What a tenant holds right now (names of GAUGES): the last sample of a bucket stays."""
    for row in _locked_buckets(tenant_id, at):
        for name in GAUGES:
            setattr(row, name, gauges.get(name))
        with tenant_scope(tenant_id):
            row.save(update_fields=list(GAUGES))


def _locked_buckets(tenant_id: int, at: datetime) -> list[UsageRollup]:
    second = int(at.timestamp())
    with tenant_scope(tenant_id):
        for resolution_s in RESOLUTIONS_S:
            UsageRollup.objects.get_or_create(
                resolution_s=resolution_s, bucket_ts=second - second % resolution_s
            )
        return [
            UsageRollup.objects.select_for_update().get(
                resolution_s=resolution_s, bucket_ts=second - second % resolution_s
            )
            for resolution_s in RESOLUTIONS_S
        ]


def series(
    *, tenant_ids: Collection[int] | None, resolution_s: int, since_ts: int
) -> list[dict[str, Any]]:
    """One point a bucket from `since_ts` on, oldest first, summed over the tenants (None: all).

    Buckets without traffic are absent. A gauge that no tenant has is None.
    """
    rows = UsageRollup.unscoped.filter(resolution_s=resolution_s, bucket_ts__gte=since_ts)
    if tenant_ids is not None:
        rows = rows.filter(tenant_id__in=tenant_ids)
    points = {
        point["bucket_ts"]: {**point, "misses": {}, "load_ms": {}}
        for point in rows.order_by("bucket_ts")
        .values("bucket_ts")
        .annotate(**{name: Sum(name) for name in (*COUNTERS, *GAUGES) if name != "dirty_oldest_s"})
        .annotate(dirty_oldest_s=Max("dirty_oldest_s"))
    }
    for bucket_ts, misses, load_ms in rows.values_list("bucket_ts", "misses", "load_ms"):
        point = points[bucket_ts]
        point["misses"] = add(point["misses"], misses)
        point["load_ms"] = add(point["load_ms"], load_ms)
    return list(points.values())


def prune() -> int:
    """Deletes fine buckets that are past their time. Returns how many. For the worker `sample`."""
    now = timezone.now()
    return sum(
        UsageRollup.unscoped.filter(
            resolution_s=resolution_s, bucket_ts__lt=int((now - kept).timestamp())
        ).delete()[0]
        for resolution_s, kept in KEPT.items()
    )
