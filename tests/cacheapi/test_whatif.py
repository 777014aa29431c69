"""/api/v1/what-if: who may ask about whom, what is refused by name, and the recommendation."""

import pytest
from celery import current_app
from django.test import Client
from django.utils import timezone

from catalog.models import Job
from support.rows import make_key, make_person, make_space, make_tenant
from tenants.scope import tenant_scope

pytestmark = [pytest.mark.integration, pytest.mark.django_db(transaction=True)]

ADDRESS = "/api/v1/what-if"
ADVICE = f"{ADDRESS}/recommendation"
DOUBLE = {"changes": [{"hot": "x2"}]}


@pytest.fixture(autouse=True)
def sent(monkeypatch):
    calls = []
    monkeypatch.setattr(current_app, "send_task", lambda name, **kwargs: calls.append(name))
    return calls


@pytest.fixture
def acme(db):
    return make_tenant("acme")


@pytest.fixture
def team(acme):
    return Client(headers={"Authorization": f"Bearer {make_key(acme, 'team')}"})


def post(client, body):
    return client.post(ADDRESS, body, content_type="application/json")


def test_a_request_is_a_job_of_the_tenant(team, sent):
    answer = post(team, {**DOUBLE, "window": "6h"})
    assert answer.status_code == 202, answer.content
    job = answer.json()
    assert (job["kind"], job["tenant"], job["state"]) == ("what_if", "acme", "queued")
    assert job["arguments"] == {"changes": [{"hot": "x2"}], "window_s": 21600, "space_id": 0}
    assert sent == ["workers.what_if"]
    assert team.get(f"/api/v1/jobs/{job['id']}").json() == job
    cancelled = team.post(f"/api/v1/jobs/{job['id']}/cancel", content_type="application/json")
    assert cancelled.json()["state"] == "cancelled"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "changes"),
        ({"changes": []}, "changes"),
        ({"changes": [{}]}, "changes"),
        ({"changes": [{"hott": "x2"}]}, "changes"),
        ({"changes": [{"hot": 2}]}, "changes"),
        ({"changes": [{"hot": "x1"}]}, "changes[0].hot"),
        ({"changes": [{"hot": "x2"}] * 13}, "changes"),
        ({**DOUBLE, "window": "1m"}, "window"),
        ({**DOUBLE, "window": "30d"}, "window"),
        ({**DOUBLE, "space": 999}, "space"),
        ({**DOUBLE, "windows": "1h"}, "windows"),
    ],
)
def test_what_cannot_be_is_refused_by_name(team, body, field):
    answer = post(team, body)
    assert answer.status_code == 400, answer.content
    assert answer.json()["field"].startswith(field)
    assert not Job.unscoped.exists()


def test_nobody_asks_about_another_tenant(acme, team):
    other = make_tenant("other")
    space = make_space(other)
    answers = [
        post(team, {**DOUBLE, "tenant": "other"}),
        team.get(f"{ADVICE}?tenant=other"),
        post(team, {**DOUBLE, "tenant": "nobody"}),
    ]
    assert [each.status_code for each in answers] == [404, 404, 404]
    stolen = post(team, {**DOUBLE, "space": space.pk})
    assert (stolen.status_code, stolen.json()["field"]) == (400, "space")
    assert not Job.unscoped.exists()
    advised = advise(other)
    assert team.get(f"/api/v1/jobs/{advised.pk}").status_code == 404
    assert team.get(ADVICE).json()["tenant"] == "acme"
    assert team.get(ADVICE).json()["made_at"] is None


def advise(tenant, place=0):
    """A recommendation as the worker leaves it; only what REST and pages read of it."""
    from neve.planner.whatif import setting_dict
    from planning.whatif import today_of

    setting = setting_dict(today_of(tenant.pk, block_bytes=1))
    detail = {
        "recommendation": {"change": place, "reason": "worth_it", "words": "Double it."},
        "today": {"setting": setting},
        "changes": [{"change": {"hot": "x2"}}],
    }
    with tenant_scope(tenant.pk):
        return Job.objects.create(
            kind="recommend", state="done", detail=detail, finished_at=timezone.now()
        )


def test_a_recommendation_says_how_old_it_is_and_whether_it_still_holds(acme, team):
    before = team.get(ADVICE).json()
    assert (before["verdict"], before["reason"]) == ("unknown", "no_samples")
    advise(acme)
    found = team.get(ADVICE).json()
    assert (found["verdict"], found["change"]) == ("change", {"hot": "x2"})
    assert (found["age_s"], found["is_outdated"]) == (0, False)
    with tenant_scope(acme.pk):
        acme.quota.hot_bytes += 1
        acme.quota.save()
    assert team.get(ADVICE).json()["is_outdated"]


def test_who_sees_several_tenants_names_one(acme, sent):
    make_tenant("other")
    operator = Client(headers={"Authorization": f"Bearer {make_key(None, 'operator')}"})
    for refused in (post(operator, DOUBLE), operator.get(ADVICE)):
        assert (refused.status_code, refused.json()["field"]) == (400, "tenant")
    assert post(operator, {**DOUBLE, "tenant": "other"}).json()["tenant"] == "other"
    viewer = Client()
    viewer.force_login(make_person("viewer", acme="viewer"))
    assert viewer.get(ADVICE).status_code == 200
    contexts_only = Client(
        headers={"Authorization": f"Bearer {make_key(acme, 'team', ['contexts'])}"}
    )
    assert post(contexts_only, DOUBLE).status_code == 403
    assert contexts_only.get(ADVICE).status_code == 403


def test_keys_of_contexts_see_no_what_if(acme, team):
    job = post(team, DOUBLE).json()
    contexts_only = Client(
        headers={"Authorization": f"Bearer {make_key(acme, 'team', ['contexts'])}"}
    )
    assert contexts_only.get(f"/api/v1/jobs/{job['id']}").status_code == 404
    assert contexts_only.get("/api/v1/jobs").json()["results"] == []
