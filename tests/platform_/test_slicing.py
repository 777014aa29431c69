"""Slices: each count once, whatever runs twice or late; a bounded number of rows; no cost to
heartbeats."""

from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest
from django.db import connection
from django.db.models import Sum
from django.test.utils import CaptureQueriesContext

from catalog import slicing
from catalog.models import NodeSession, Slice, SlicedSession
from catalog.sessions import Heartbeat, record_heartbeat
from catalog.usage import record_gauges, record_tier_totals
from contexts import services as contexts
from support.rows import make_session, make_space, make_tenant
from tenants.audit import SYSTEM
from tenants.scope import tenant_scope

pytestmark = [pytest.mark.integration, pytest.mark.django_db]

NOON = datetime(2026, 11, 30, 12, 0, 5, tzinfo=UTC)
KEPT_S = {60: 3 * 3600, 600: 31 * 3600, 1800: 50 * 3600, 21600: 62 * 86400}


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        at = NOON

        def pass_s(self, seconds):
            self.at += timedelta(seconds=seconds)

    clock = Clock()
    monkeypatch.setattr("catalog.sessions.timezone.now", lambda: clock.at)
    return clock


def beat(session, seq, *, misses=None, load_ms=None, drops=None, **counters):
    heartbeat = Heartbeat(seq, counters, misses or {}, load_ms or {}, "closed", drops or {})
    with tenant_scope(session.tenant_id):
        record_heartbeat(session_id=session.pk, heartbeat=heartbeat)


def rows(tenant, kind=Slice.Kind.PLACE, resolution_s=60):
    found = Slice.unscoped.filter(tenant=tenant, kind=kind, resolution_s=resolution_s)
    return found.order_by("bucket_ts", "space_number", "name")


def test_counts_are_told_by_space_and_node_once(clock):
    tenant = make_tenant()
    one, two = make_space(tenant, "one"), make_space(tenant, "two")
    first = make_session(one, "gpu-1/scheduler")
    second = make_session(one, "gpu-1/worker-0")
    third = make_session(two, "gpu-2")
    beat(first, 1, requested_tokens=512, tail_tokens=7, hit_hot_tokens=256, hit_cold_tokens=64)
    beat(second, 1, requested_tokens=256, misses={"evicted": 1}, load_ms={"<=5": 3})
    beat(third, 1, requested_tokens=1024, misses={"never_stored": 4}, drops={"quota": 2})
    slicing.take(tenant.pk, clock.at)
    slicing.take(tenant.pk, clock.at)  # a tick may run twice
    found = [
        (row.space_number, row.name, row.prompt_tokens, row.hit_tokens, row.hit_cold_tokens)
        for row in rows(tenant)
    ]
    assert found == [(one.pk, "gpu-1", 775, 320, 64), (two.pk, "gpu-2", 1024, 0, 0)]
    assert [row.misses for row in rows(tenant)] == [{"evicted": 1}, {"never_stored": 4}]
    assert [row.load_ms for row in rows(tenant)] == [{"<=5": 3}, {}]
    assert [row.drops for row in rows(tenant)] == [{}, {"quota": 2}]
    (whole,) = rows(tenant, Slice.Kind.TENANT)
    assert (whole.prompt_tokens, whole.hit_tokens) == (1799, 320)
    assert whole.misses == {"evicted": 1, "never_stored": 4}


def test_every_length_of_bucket_has_all_counts(clock):
    tenant = make_tenant()
    session = make_session(make_space(tenant), "gpu-1")
    for seq in range(1, 6):
        beat(session, seq, requested_tokens=100, misses={"evicted": 2})
        slicing.take(tenant.pk, clock.at)
        clock.pass_s(40)
    for length_s in slicing.KEPT:
        found = rows(tenant, resolution_s=length_s)
        assert sum(row.prompt_tokens for row in found) == 500
        assert sum(row.misses["evicted"] for row in found) == 10
        assert all(row.bucket_ts % length_s == 0 for row in found)
    minutes = [row.bucket_ts - int(NOON.timestamp() - 5) for row in rows(tenant)]
    assert minutes == [0, 60, 120]


def test_what_a_run_that_fails_took_is_taken_by_the_next(clock, monkeypatch):
    tenant = make_tenant()
    session = make_session(make_space(tenant), "gpu-1")
    beat(session, 1, requested_tokens=100)

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(slicing, "_write", killed)
    with pytest.raises(KeyboardInterrupt):
        slicing.take(tenant.pk, clock.at)
    monkeypatch.undo()
    slicing.take(tenant.pk, NOON)
    assert [row.prompt_tokens for row in rows(tenant)] == [100]


def test_the_end_of_a_session_is_counted_later(clock):
    tenant = make_tenant()
    session = make_session(make_space(tenant), "gpu-1")
    slicing.take(tenant.pk, clock.at)
    beat(session, 1, requested_tokens=100)
    NodeSession.unscoped.filter(pk=session.pk).update(ended_at=clock.at)
    clock.pass_s(30)
    slicing.take(tenant.pk, clock.at)
    assert [row.prompt_tokens for row in rows(tenant)] == [100]


def test_beyond_the_bound_the_smallest_nodes_are_summed(clock, monkeypatch):
    monkeypatch.setitem(slicing.MOST, Slice.Kind.PLACE, 2)
    tenant = make_tenant()
    space = make_space(tenant)
    sessions = [make_session(space, f"gpu-{number}") for number in range(5)]
    for number, session in enumerate(sessions):
        beat(session, 1, requested_tokens=10 ** (number + 1), misses={"evicted": 1})
    slicing.take(tenant.pk, clock.at)
    assert {row.name: row.prompt_tokens for row in rows(tenant)} == {
        "gpu-4": 100_000,
        "gpu-3": 10_000,
        "": 1_110,
    }
    assert rows(tenant).get(space_number=0).misses == {"evicted": 3}
    # A node keeps its row in the bucket; a large newcomer finds it full.
    beat(sessions[0], 2, requested_tokens=10**9)
    beat(sessions[3], 2, requested_tokens=1)
    slicing.take(tenant.pk, clock.at)
    assert {row.name: row.prompt_tokens for row in rows(tenant)} == {
        "gpu-4": 100_000,
        "gpu-3": 10_001,
        "": 1_000_001_110,
    }


def test_contexts_and_labels_have_what_requests_told(clock, monkeypatch):
    monkeypatch.setitem(slicing.MOST, Slice.Kind.CONTEXT, 2)
    tenant = make_tenant()
    space = make_space(tenant)
    session = make_session(space, "gpu-1")

    def report(name, prompt_tokens, hit_tokens, label=None, **labels):
        with tenant_scope(tenant.pk):
            contexts.record(
                session=session,
                name=name,
                ids=[name.encode().ljust(16)],
                tokens=256,
                label=label,
                labels=labels,
                pin_s=None,
                actor=SYSTEM,
                prompt_tokens=prompt_tokens,
                hit_tokens=hit_tokens,
            )

    report("a", 1000, 900, "chat", team="red")
    report("a", 1000, 800, "chat", team="red")
    report("b", 500, 100, "chat")
    report("c", 30, 20)
    slicing.take(tenant.pk, clock.at)
    slicing.take(tenant.pk, clock.at)
    by_name = {
        row.name: (row.space_number, row.prompt_tokens, row.hit_tokens)
        for row in rows(tenant, Slice.Kind.CONTEXT)
    }
    assert by_name == {
        "a": (space.pk, 2000, 1700),
        "b": (space.pk, 500, 100),
        "": (0, 30, 20),
    }
    labels = {row.name: row.prompt_tokens for row in rows(tenant, Slice.Kind.LABEL)}
    assert labels == {"chat": 2500, "team:red": 2000, "": 30}


def test_gauges_and_tiers_are_of_the_tenant(clock):
    tenant = make_tenant()

    def sample(refused, oldest_s):
        record_gauges(
            tenant_id=tenant.pk,
            at=clock.at,
            gauges={"hot_used_bytes": 7, "cold_used_bytes": 9, "dirty_oldest_s": oldest_s},
        )
        totals = {"cold_refused_blocks": refused, "lost_blocks": 1}
        record_tier_totals(tenant_id=tenant.pk, at=clock.at, totals=totals)
        slicing.take(tenant.pk, clock.at)

    sample(100, 50)  # refused before anything was noted: of no known time
    sample(130, 4)
    sample(5, 3)  # the server began anew
    (row,) = rows(tenant, Slice.Kind.TENANT)
    assert (row.hot_used_bytes, row.cold_used_bytes, row.dirty_oldest_s) == (7, 9, 50)
    assert (row.cold_refused_blocks, row.lost_blocks) == (35, 0)


def test_rows_are_bounded_and_old_ones_are_deleted(clock):
    tenant = make_tenant()
    assert {length_s: kept.total_seconds() for length_s, kept in slicing.KEPT.items()} == KEPT_S
    assert 184 * sum(kept // each + 1 for each, kept in KEPT_S.items()) == slicing.MOST_ROWS
    assert slicing.MOST_ROWS < 133_000
    now_s = int(NOON.timestamp())
    for length_s, kept_s in KEPT_S.items():
        for back in range(0, kept_s + 6 * length_s, length_s):
            bucket_ts = (now_s - back) // length_s * length_s
            Slice.unscoped.create(
                tenant=tenant, kind="tenant", resolution_s=length_s, bucket_ts=bucket_ts
            )
    assert slicing.prune(NOON) > 0
    assert slicing.prune(NOON) == 0
    for length_s, kept_s in KEPT_S.items():
        # The bucket that runs, those of the time, and the one in which it begins.
        assert rows(tenant, "tenant", length_s).count() in (
            kept_s // length_s + 1,
            kept_s // length_s + 2,
        )


def test_slices_cost_heartbeats_no_statement(clock):
    """As many as before slices were stored; the session's row has what they need."""
    tenant = make_tenant()
    session = make_session(make_space(tenant), "gpu-1")
    beat(session, 1, requested_tokens=100)
    with CaptureQueriesContext(connection) as seen:
        beat(session, 2, requested_tokens=100, misses={"evicted": 1}, load_ms={"<=5": 1})
    said = [query["sql"].replace('"', "").split(" WHERE ")[0] for query in seen]
    verbs = Counter(
        (sql.split()[0], table)
        for sql in said
        for table in ("catalog_nodesession", "catalog_usagerollup")
        if f"{table} " in f"{sql} " and "SAVEPOINT" not in sql
    )
    assert verbs == {
        ("SELECT", "catalog_nodesession"): 1,
        ("SELECT", "catalog_usagerollup"): 1,
        ("UPDATE", "catalog_usagerollup"): 3,
        ("UPDATE", "catalog_nodesession"): 1,
    }
    assert len([sql for sql in said if "SAVEPOINT" not in sql]) == sum(verbs.values())
    assert NodeSession.unscoped.get().totals_by_name == {
        "misses": {"evicted": 1},
        "load_ms": {"<=5": 1},
    }


def test_a_tenants_slices_go_with_it(clock):
    tenant, other = make_tenant(), make_tenant()
    for each in (tenant, other):
        beat(make_session(make_space(each), "gpu-1"), 1, requested_tokens=100)
        slicing.take(each.pk, clock.at)
    tenant_pk = tenant.pk
    tenant.delete()
    assert not Slice.unscoped.filter(tenant_id=tenant_pk).exists()
    assert slicing.take(tenant_pk, clock.at) == 0
    assert Slice.unscoped.aggregate(all=Sum("prompt_tokens"))["all"] == 100 * 2 * 4
    assert SlicedSession.unscoped.count() == 1
