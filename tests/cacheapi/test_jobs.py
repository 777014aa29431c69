"""Operators ask for background work, follow it, and end it."""

import pytest
from celery import current_app
from django.test import Client

from cacheapi.teams import jobs as view
from catalog import jobs
from catalog.models import Job
from support.rows import make_key, make_person, make_tenant
from tenants.models import AuditEvent, Tenant

pytestmark = [pytest.mark.integration, pytest.mark.django_db(transaction=True)]


@pytest.fixture
def sent(monkeypatch):
    calls = []
    monkeypatch.setattr(current_app, "send_task", lambda name, **kwargs: calls.append(name))
    return calls


@pytest.fixture
def operator(sent):
    make_tenant("acme")
    return Client(headers={"Authorization": f"Bearer {make_key(None, 'operator')}"})


def ask(client, **body):
    return client.post("/api/v1/jobs", body, content_type="application/json")


def test_compacting_now_is_a_job_with_an_address(operator, sent):
    answer = ask(operator, kind="compact", tenant="acme")
    assert answer.status_code == 201, answer.content
    job = answer.json()
    assert (job["state"], job["tenant"], job["is_requested"]) == ("queued", "acme", True)
    assert sent == ["workers.compact"]
    assert operator.get(f"/api/v1/jobs/{job['id']}").json() == job
    assert AuditEvent.unscoped.get(action="job.request").actor_name == job["requested_by"]


def act(client, address):
    return client.post(address, content_type="application/json")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"kind": "compakt", "tenant": "acme"}, "kind"),
        ({"kind": "remove_tenant"}, "kind"),
        ({"kind": "compact"}, "tenant"),
        ({"kind": "compact", "tenant": "nobody"}, "tenant"),
        ({"kind": "reconcile", "tenant": "acme"}, "tenant"),
        ({"kind": "reconcile", "now": True}, "now"),
    ],
)
def test_a_job_that_cannot_be_is_refused_by_name(operator, sent, body, field):
    answer = ask(operator, **body)
    assert (answer.status_code, answer.json()["field"]) == (400, field)
    assert sent == []


def test_a_job_is_cancelled_and_tried_again(operator, sent):
    address = f"/api/v1/jobs/{ask(operator, kind='reconcile').json()['id']}"
    assert act(operator, f"{address}/retry").status_code == 409
    assert act(operator, f"{address}/cancel").json()["state"] == "cancelled"
    refused = act(operator, f"{address}/cancel")
    assert (refused.status_code, refused.json()["type"]) == (409, "/problems/conflict")
    assert act(operator, f"{address}/retry").json()["state"] == "queued"
    assert len(sent) == 2


def test_a_running_job_shows_that_it_is_to_end(operator):
    job = Job.unscoped.get(pk=ask(operator, kind="reconcile").json()["id"])
    with jobs.job_run(job.pk) as run:
        answer = act(operator, f"/api/v1/jobs/{job.pk}/cancel").json()
        assert (answer["state"], answer["cancel_asked_at"] is not None) == ("running", True)
        run.progress(0.5)
    answer = act(operator, f"/api/v1/jobs/{job.pk}/retry").json()
    assert (answer["finished_at"], answer["cancel_asked_at"], answer["progress"]) == (None, None, 0)


def test_what_a_tick_found_is_neither_cancelled_nor_tried_again(operator):
    with jobs.attempt("reconcile", None):
        job = Job.unscoped.get()
        for action in ("cancel", "retry"):
            refused = act(operator, f"/api/v1/jobs/{job.pk}/{action}")
            assert refused.status_code == 409
            assert "only jobs that somebody requested" in refused.json()["detail"]


@pytest.fixture
def compacting(operator, monkeypatch):
    """A job of a kind that teams request, and one that they do not."""
    monkeypatch.setattr(view, "OF_TEAMS", ["compact"])
    return [
        f"/api/v1/jobs/{ask(operator, kind=kind, tenant='acme').json()['id']}"
        for kind in ("compact", "flush")
    ]


@pytest.mark.parametrize("scopes", [["write"], ["contexts"]])
def test_a_team_ends_and_repeats_its_own_jobs_only(compacting, scopes):
    own, platforms = compacting
    key = make_key(Tenant.objects.get(), "team", scopes)
    team = Client(headers={"Authorization": f"Bearer {key}"})
    assert act(team, f"{own}/cancel").json()["state"] == "cancelled"
    assert act(team, f"{own}/retry").json()["state"] == "queued"
    event = AuditEvent.unscoped.get(action="job.cancel")
    assert event.actor_name.startswith("key:team key")
    for action in ("cancel", "retry"):
        refused = act(team, f"{platforms}/{action}")
        assert refused.status_code == (403 if scopes == ["write"] else 404)
    kinds = {row["kind"] for row in team.get("/api/v1/jobs").json()["results"]}
    assert kinds == ({"compact", "flush"} if scopes == ["write"] else {"compact"})


def test_nobody_else_ends_a_teams_job(compacting, client):
    own, _ = compacting
    reader = make_key(Tenant.objects.get(), "team", ["read"])
    stranger = make_key(make_tenant(), "team")
    for key, status in ((reader, 403), (stranger, 404)):
        caller = Client(headers={"Authorization": f"Bearer {key}"})
        assert act(caller, f"{own}/cancel").status_code == status
    client.force_login(make_person("looker", acme="viewer"))
    assert act(client, f"{own}/cancel").status_code == 403
    assert Job.unscoped.get(kind="compact").state == "queued"
