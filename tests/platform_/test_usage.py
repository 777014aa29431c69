"""Roll-ups: what is summed, what is kept, what a series looks like."""

from collections import Counter, defaultdict
from datetime import UTC, datetime, timedelta

import pytest
from django.utils import timezone

from catalog import usage
from catalog.models import TIER_COUNTERS, UsageRollup
from neve.errors import MissReason
from support.rows import make_tenant

pytestmark = [pytest.mark.integration, pytest.mark.django_db]

AT = datetime(2025, 1, 1, 0, 0, 13, tzinfo=UTC)
TS = int(AT.timestamp())


def deltas(tenant, at=AT, misses=None, load_ms=None, **counters):
    usage.record_deltas(
        tenant_id=tenant.pk, at=at, counters=counters, misses=misses or {}, load_ms=load_ms or {}
    )


def test_a_bucket_begins_at_a_multiple_of_its_resolution():
    deltas(make_tenant(), put_blocks=1)
    starts = dict(UsageRollup.unscoped.values_list("resolution_s", "bucket_ts"))
    assert starts == {10: TS - 3, 60: TS - 13, 3600: TS - 13}


def test_a_series_sums_the_tenants_asked_for():
    a, b = make_tenant(), make_tenant()
    deltas(a, put_blocks=1, misses={"evicted": 1})
    deltas(b, put_blocks=2, misses={"evicted": 1, "quota": 5}, load_ms={"<=1": 1})
    deltas(b, at=AT + timedelta(seconds=10), put_blocks=4)
    usage.record_gauges(tenant_id=a.pk, at=AT, gauges={"hot_used_bytes": 100, "dirty_oldest_s": 3})
    usage.record_gauges(tenant_id=b.pk, at=AT, gauges={"hot_used_bytes": 50, "dirty_oldest_s": 9})
    everyone = usage.series(tenant_ids=None, resolution_s=10, since_ts=TS - 60)
    assert [(p["bucket_ts"], p["put_blocks"]) for p in everyone] == [(TS - 3, 3), (TS + 7, 4)]
    assert everyone[0]["misses"] == {"evicted": 2, "quota": 5}
    assert (everyone[0]["hot_used_bytes"], everyone[0]["dirty_oldest_s"]) == (150, 9)
    assert everyone[1]["hot_used_bytes"] is None
    (only_a,) = usage.series(tenant_ids={a.pk}, resolution_s=10, since_ts=TS - 60)
    assert only_a["put_blocks"] == 1
    assert usage.series(tenant_ids=None, resolution_s=10, since_ts=TS + 8) == []


ODD_MISSES = (
    {"evicted": 3, "quota": 0, "unknown reason": 7},
    {"evicted": True, "quota": 1.5, "expired": "9", "corrupt": None, "idle": [4]},
    {"evicted": -5, "idle": 2**70, "quota": 2},
    ["evicted"],
    "evicted",
    7,
)


def test_the_database_sums_what_python_would_read():
    tenants = make_tenant(), make_tenant()
    for n, misses in enumerate(ODD_MISSES):
        UsageRollup.unscoped.create(
            tenant=tenants[n % 2], resolution_s=10, bucket_ts=n, misses=misses, load_ms={"<=5": n}
        )
    rows = UsageRollup.unscoped.filter(resolution_s=10)
    read: dict[int, Counter[str]] = defaultdict(Counter)
    for tenant_id, stored in rows.values_list("tenant_id", "misses"):
        read[tenant_id].update(usage.known(stored, MissReason))
    sums = usage.sums_by_name(rows, ("misses", "load_ms"), "tenant_id")
    assert {id_: sums["misses"][id_,] for id_ in read} == read
    assert sums["load_ms"][tenants[0].pk,] == {"<=5": 6}
    assert usage.sums_by_name(rows.none(), ("misses",)) == {"misses": {}}


def test_the_last_sample_of_a_bucket_stays():
    tenant = make_tenant()
    for used in (1, 2):
        usage.record_gauges(tenant_id=tenant.pk, at=AT, gauges={"hot_used_bytes": used})
    assert set(UsageRollup.unscoped.values_list("hot_used_bytes", flat=True)) == {2}


def test_fine_buckets_are_pruned_and_hours_stay():
    tenant = make_tenant()
    deltas(tenant, at=timezone.now() - timedelta(days=15), put_blocks=1)
    deltas(tenant, at=timezone.now() - timedelta(days=1), put_blocks=1)
    deltas(tenant, at=timezone.now(), put_blocks=1)
    assert usage.prune() == 3
    kept = sorted(UsageRollup.unscoped.values_list("resolution_s", flat=True))
    assert kept == [10, 60, 60, 3600, 3600, 3600]


def test_what_the_tiers_count_is_told_since_the_last_sample():
    """Also when the hot server begins anew at 0, and when a tenant wrote nonsense there."""
    tenant, later = make_tenant(), AT + timedelta(seconds=10)

    def sample(at, *totals):
        named = dict(zip(TIER_COUNTERS, totals, strict=True))
        usage.record_tier_totals(tenant_id=tenant.pk, at=at, totals=named)

    for at, *totals in ((AT, 5, 100, 0), (AT, 7, 100, 1), (later, 9, 130, 1), (later, 2, 3, 2**70)):
        sample(at, *totals)
    points = usage.series(tenant_ids=None, resolution_s=10, since_ts=0)
    counted = [[point[name] for name in TIER_COUNTERS] for point in points]
    assert counted[0] == [7, 100, 1]
    assert counted[1][:2] == [2 + 2, 30 + 3]
    assert UsageRollup.unscoped.get(resolution_s=3600).cold_evicted_blocks == 133


def test_drops_are_added_up_by_reason():
    tenant = make_tenant()
    for drops in ({"breaker": 3}, {"breaker": 1, "evicted": 2}):
        usage.record_deltas(
            tenant_id=tenant.pk, at=AT, counters={}, misses={}, load_ms={}, drops=drops
        )
    (point,) = usage.series(tenant_ids=None, resolution_s=60, since_ts=0)
    assert point["drops"] == {"breaker": 4, "evicted": 2}
