"""Samples by REST: what nodes are told, what is stored, the switch, and the export as a trace."""

import random
from base64 import b64encode
from dataclasses import replace
from typing import Any

import pytest

from cacheapi.teams import samples as samples_api
from catalog import kinds
from catalog.targets import Opener
from neve.formats.samples import Batch, IdSampler, SampledRequest, Totals
from neve.planner.simulate.samples import read_lines
from planning import samples
from storage.s3 import ensure_bucket
from support.caller import Caller
from support.rows import make_key, make_tenant
from tenants.models import AuditEvent, Tenant

pytestmark = [
    pytest.mark.integration,
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("valkey_bus", "s3"),
]


@pytest.fixture(autouse=True)
def bucket(s3):
    ensure_bucket()


@pytest.fixture
def opened(clean_hot, node, handshake):
    answer = node.send("post", "/cache/v1/sessions", handshake)
    assert answer.status_code == 201, answer.content
    return answer.json()


def batch(opened, seed=0):
    terms = opened["sample"]
    sampler = IdSampler(bytes.fromhex(terms["key"]), rate_log=terms["rate_log"])
    chosen = sampler.choose(random.Random(seed).randbytes(16 * 300))
    places, ids = zip(*chosen, strict=True)
    found = Batch(terms["rate_log"], [SampledRequest(-1, 300, places, ids)], Totals.of([300]))
    return b64encode(found.encode()).decode()


def beat(node, opened, seq, **members):
    path = f"/cache/v1/sessions/{opened['session']}/heartbeat"
    answer = node.send("post", path, {"seq": seq, **members})
    assert answer.status_code == 200, answer.content
    return answer.json()


def store(tenant, monkeypatch):
    monkeypatch.setattr(samples, "FILE_S", 0.0)
    samples.store(Opener(kinds.STORE_SAMPLES, tenant.pk), tenant.pk)


def test_what_a_node_sends_is_exported_as_a_trace(node, team, opened, tenant, monkeypatch):
    assert beat(node, opened, 1, samples=batch(opened))["sample"] == opened["sample"]
    store(tenant, monkeypatch)
    shown = team.get("/api/v1/samples").json()
    assert (shown["tenant"], shown["enabled"], shown["rate"], shown["files"]) == (
        *("acme", True, 1, 1),  # so little traffic is sampled whole from now on
    )
    answer: Any = team.get("/api/v1/samples/export")
    assert answer["Content-Type"].startswith("application/jsonl")
    text = b"".join(answer.streaming_content).decode()
    found = read_lines(text.splitlines())
    assert found.totals == Totals.of([300])
    assert found.requests[0].asked_blocks == 300
    assert opened["sample"]["key"] not in text


@pytest.mark.parametrize("wrong", ["", "no base64!", 7, {}, [], "A" * 200_000])
def test_samples_that_cannot_be_read_cost_no_counts(node, team, opened, wrong):
    beat(node, opened, 1, samples=wrong, counters={"put_blocks": 3})
    nodes = team.get("/api/v1/usage").json()["points"]
    assert sum(point["put_blocks"] for point in nodes) == 3


def test_a_node_of_before_samples_needs_no_change(node, opened):
    assert beat(node, opened, 1)["heartbeat_s"] == 1


def test_a_team_switches_its_samples_off_and_on(node, team, opened, tenant):
    shown = team.send("patch", "/api/v1/samples", {"enabled": False}).json()
    assert (shown["enabled"], shown["rate"]) == (False, 0)
    assert beat(node, opened, 1, samples=batch(opened))["sample"] is None
    event = AuditEvent.unscoped.get(action="tenant.samples")
    assert (event.tenant_id, event.after) == (tenant.pk, {"samples_enabled": False})
    assert team.send("patch", "/api/v1/samples", {"enabled": True}).json()["enabled"]
    assert beat(node, opened, 2)["sample"] == opened["sample"]


def test_an_operator_switches_them_in_the_tenants_resource(operator, tenant):
    changed = operator.send("patch", "/api/v1/tenants/acme", {"samples_enabled": False})
    assert changed.json()["samples_enabled"] is False
    assert not Tenant.objects.get(pk=tenant.pk).samples_enabled
    assert operator.get("/api/v1/samples?tenant=acme").json()["enabled"] is False


def test_another_tenant_sees_nothing_of_them(node, opened, tenant, monkeypatch):
    beat(node, opened, 1, samples=batch(opened))
    store(tenant, monkeypatch)
    stranger = Caller(make_key(make_tenant("other"), "team"))
    for path in ("samples", "samples/export"):
        assert stranger.get(f"/api/v1/{path}?tenant=acme").status_code == 404
    assert (
        stranger.send("patch", "/api/v1/samples?tenant=acme", {"enabled": False}).status_code == 404
    )
    assert stranger.get("/api/v1/samples").json()["files"] == 0
    empty: Any = stranger.get("/api/v1/samples/export")
    assert b"".join(empty.streaming_content) == b""


def test_s3_that_does_not_answer_is_a_problem_that_says_so(team, settings):
    settings.ENV = replace(settings.ENV, s3_bucket="no-such-bucket")
    for path in ("samples", "samples/export"):
        answer = team.get(f"/api/v1/{path}")
        assert answer.status_code == 503
        assert answer.json()["type"].endswith("/cold-tier-unavailable")


def test_whoever_sees_several_tenants_names_one(operator, tenant):
    make_tenant("other")
    for path in ("samples", "samples/export"):
        problem = operator.get(f"/api/v1/{path}")
        assert problem.status_code == 400
        assert problem.json()["field"] == "tenant"


@pytest.mark.parametrize(
    "query",
    [
        "from=yesterday",
        "to=2026-01-01",
        "to=0001-01-01T00:00:00Z",
        "from=0001-01-01T00:00:00Z",
        "from=2026-01-02T00:00:00Z&to=2026-01-01T00:00:00Z",
    ],
)
def test_a_window_that_makes_no_sense_is_refused(team, query):
    answer = team.get(f"/api/v1/samples/export?{query}")
    assert answer.status_code == 400


def test_any_moment_since_the_first_is_in_a_window(team):
    window = "from=2000-01-01T00:00:00Z&to=9999-12-31T23:59:59Z"
    answer: Any = team.get(f"/api/v1/samples/export?{window}")
    assert answer.status_code == 200
    assert b"".join(answer.streaming_content) == b""


def test_a_tenant_reads_one_export_at_a_time(team, tenant):
    with samples_api.TURNS.turn(tenant.pk):
        assert team.get("/api/v1/samples/export").status_code == 429
    assert team.get("/api/v1/samples/export").status_code == 200
