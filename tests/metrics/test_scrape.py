"""GET /metrics as Prometheus's own parser reads it."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from prometheus_client.parser import text_string_to_metric_families

from catalog.models import Job, Store
from catalog.usage import record_deltas, record_tier_totals
from dashboard import probes
from neve.errors import MissReason
from neve.index.library import load_functions
from support.rows import (
    make_everything,
    make_key,
    make_segment,
    make_session,
    make_space,
    make_tenant,
)
from tenants.scope import tenant_scope

pytestmark = [pytest.mark.integration, pytest.mark.django_db]


def scraper(of, role) -> Client:
    return Client(headers={"Authorization": f"Bearer {make_key(of, role)}"})


def scrape(client: Client) -> dict:
    """(name, sorted labels) → number, of all samples."""
    # What Prometheus 3 sends by default.
    accept = (
        "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,"
        "text/plain;version=0.0.4;q=0.2,*/*;q=0.1"
    )
    answer = client.get("/metrics", headers={"Accept": accept})
    assert answer.status_code == 200, answer.content
    assert answer["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    families = list(text_string_to_metric_families(answer.content.decode()))
    assert len({family.name for family in families}) == len(families)
    found = {}
    for family in families:
        assert family.documentation
        for sample in family.samples:
            assert sample.name.endswith("_total") == (family.type == "counter"), sample
            key = (sample.name, *sorted(sample.labels.items()))
            assert key not in found
            found[key] = sample.value
    return found


def of(tenant, name, **labels):
    return (f"neve_tenant_{name}", *sorted({"tenant": tenant.slug, **labels}.items()))


@pytest.fixture
def acme(db):
    return make_tenant("acme", hot_bytes=1 << 20, cold_bytes=1 << 21)


@pytest.fixture
def operator(db):
    return scraper(None, "operator")


@pytest.fixture
def functions(clean_hot):
    with clean_hot.client() as client:
        load_functions(client)
    return clean_hot


def test_refused_and_lost_blocks_are_seen(functions, acme, operator):
    now = datetime.now(UTC)
    for totals in ({}, {"cold_refused_blocks": 7, "cold_evicted_blocks": 5, "lost_blocks": 3}):
        record_tier_totals(tenant_id=acme.pk, at=now, totals=totals)
    record_deltas(
        tenant_id=acme.pk,
        at=now,
        counters={"requested_tokens": 80, "tail_tokens": 20, "hit_cold_tokens": 40, "corrupt": 1},
        misses={"evicted": 2, 'so="what"\n': 9},
        load_ms={},
        drops={"quota": 4},
    )
    found = scrape(operator)
    for name, number in (
        *(("cold_refused_blocks", 7), ("cold_evicted_blocks", 5), ("lost_blocks", 3)),
        *(("requested_tokens", 80), ("tail_tokens", 20), ("corrupt_blocks", 1)),
        *(("put_refused_blocks", 0), ("promoted_blocks", 0), ("mended_entries", 0)),
    ):
        assert found[of(acme, f"{name}_total")] == number, name
    assert found[of(acme, "hit_tokens_total", tier="cold")] == 40
    assert found[of(acme, "hit_tokens_total", tier="hot")] == 0
    assert found[of(acme, "dropped_blocks_total", reason="quota")] == 4
    missed = {dict(key[1:])["reason"]: n for key, n in found.items() if "missed" in key[0]}
    assert missed == {reason.value: 2 if reason == "evicted" else 0 for reason in MissReason}


def test_decisions_and_what_loads_spared_are_seen(functions, acme, operator):
    record_deltas(
        tenant_id=acme.pk,
        at=datetime.now(UTC),
        counters={
            **{"decided_all": 5, "decided_prefix": 3, "spared_tokens": 640, "slower_tokens": 64},
            **{"spared_gpu_us": 2_500_000, "load_gpu_us": 500_000, "slower_gpu_us": 1},
        },
        misses={},
        load_ms={},
    )
    found = scrape(operator)
    for decision, number in (("load_all", 5), ("load_prefix", 3), ("recompute", 0)):
        assert found[of(acme, "decisions_total", decision=decision)] == number
    for name, number in (
        *(("spared_tokens", 640), ("slower_tokens", 64), ("unpriced_tokens", 0)),
        *(("spared_gpu_seconds", 2.5), ("load_gpu_seconds", 0.5), ("slower_gpu_seconds", 1e-6)),
    ):
        assert found[of(acme, f"{name}_total")] == number, name


def test_counters_are_of_today(functions, acme, operator):
    now = datetime.now(UTC)
    for at, tokens in ((now - timedelta(days=1), 1000), (now, 10)):
        record_deltas(
            tenant_id=acme.pk, at=at, counters={"tail_tokens": tokens}, misses={}, load_ms={}
        )
    assert scrape(operator)[of(acme, "tail_tokens_total")] == 10


def test_what_tenants_and_the_platform_hold(functions, s3, acme, operator):
    space = make_space(acme)
    make_segment(space, size_bytes=100, live_bytes=60)
    make_segment(space, size_bytes=30, state="deleting")
    make_session(space, "well")
    make_session(space, 'node-"2"\n', breaker="open")
    make_session(space, "silent", last_heartbeat_at=timezone.now() - timedelta(hours=1))
    acme.cut_off_at = timezone.now()
    acme.save()
    with tenant_scope(acme.pk):
        for state, ago in (("queued", 0), ("failed", 5), ("failed", 90), ("done", 0)):
            at = timezone.now() - timedelta(minutes=ago)
            Job.objects.create(kind="flush", state=state, finished_at=at)
    where = {"endpoint": "http://127.0.0.1:9", "region": "r"}
    Store.objects.create(name="near", bucket="near", **where)
    Store.objects.create(name="far", bucket="far", failing_since=timezone.now(), **where)
    probes.HOT.ask()
    found = scrape(operator)
    for state, number in (("live", 60), ("dead", 40), ("waiting", 30)):
        assert found[of(acme, "segment_bytes", state=state)] == number
    assert found[of(acme, "nodes", state="live")] == 2
    assert found[of(acme, "nodes", state="silent")] == 1
    assert found[of(acme, "open_breakers")] == found[of(acme, "cut_off")] == 1
    assert found[of(acme, "hot_used_bytes")] == found[of(acme, "flush_late_seconds")] == 0
    assert found[of(acme, "hot_quota_bytes")] == found["neve_hot_promised_bytes",] == 1 << 20
    assert found["neve_hot_memory_used_bytes",] > 0
    assert found["neve_up", ("server", "valkey-hot")] == 1
    assert found["neve_store_up", ("store", "far")] == 0
    assert found["neve_store_up", ("store", "near")] == 1
    for state, number in (("queued", 1), ("running", 0), ("failed", 1)):
        assert found["neve_jobs", ("kind", "flush"), ("state", state)] == number


def test_a_valkey_that_is_down_leaves_its_series_out(valkey_hot, acme, operator, settings):
    settings.ENV = replace(settings.ENV, hot_url="redis://127.0.0.1:1/0")
    probes.HOT.ask()
    found = scrape(operator)
    names = {key[0] for key in found}
    assert found["neve_up", ("server", "valkey-hot")] == 0
    assert found[of(acme, "hot_quota_bytes")] == 1 << 20
    assert found[of(acme, "lost_blocks_total")] == 0
    assert not names & {"neve_tenant_hot_used_bytes", "neve_hot_memory_used_bytes"}
    assert not names & {"neve_tenant_dirty_blocks", "neve_tenant_mended_entries_total"}


def test_a_team_key_gets_its_own_tenants_series_only(functions, acme):
    make_tenant("globex")
    found = scrape(scraper(acme, "team"))
    assert {key[1:][0] for key in found if len(key) == 2} == {("tenant", "acme")}
    assert all(("tenant", "acme") in key for key in found)
    assert {key[0] for key in found} >= {"neve_tenant_hot_used_bytes"}


def test_refusals_are_problem_documents(acme, operator):
    node = scraper(acme, "node").get("/metrics", headers={"Accept": "text/plain"})
    assert (node.status_code, node.json()["status"]) == (403, 403)
    nobody = Client().get("/metrics")
    assert nobody["Content-Type"] == "application/problem+json"
    assert (nobody.status_code, nobody["WWW-Authenticate"]) == (401, 'Bearer realm="neve"')
    assert operator.get("/metrics?tenant=acme").json()["field"] == "tenant"
    assert operator.post("/metrics").json()["status"] == 405


def test_a_scrape_costs_the_same_statements_whatever_the_number_of_tenants(
    functions, acme, operator
):
    def statements():
        with CaptureQueriesContext(connection) as queries:
            scrape(operator)
        return len(queries)

    make_everything(acme)
    statements()  # what a process asks once
    few = statements()
    for _ in range(4):
        make_everything(make_tenant(), 2)
    assert statements() == few < 17
