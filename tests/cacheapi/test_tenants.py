"""Operators make, change and deactivate tenants, and give roles in them; teams read theirs."""

from dataclasses import replace
from uuid import uuid4

import pytest
from django.test import Client

from base.problems import Problem
from retention import provisioning
from support.caller import Caller
from support.rows import (
    make_context,
    make_key,
    make_person,
    make_session,
    make_space,
    make_tenant,
)
from tenants import room, services
from tenants.audit import SYSTEM
from tenants.models import AuditEvent, Membership, Quota, Tenant

pytestmark = [pytest.mark.integration, pytest.mark.django_db]

TENANTS, MEMBERS = "/api/v1/tenants", "/api/v1/members"


@pytest.fixture
def crowded(monkeypatch):
    """The hot tier has room for 1 GiB."""
    monkeypatch.setattr(room, "read_room", lambda **_: room.Room(1 << 30, 0))


def test_a_tenant_is_made_with_its_quota_and_its_keys_work(operator):
    quota = {"hot_bytes": 1 << 20, "cold_bytes": 1 << 21, "context_limit": 7}
    body = {"slug": "blue", "name": "Team Blue", "node_limit": 3, "quota": quota}
    answer = operator.send("post", TENANTS, body)
    assert answer.status_code == 201, answer.content
    made = answer.json()
    assert (made["slug"], made["node_limit"], made["is_active"]) == ("blue", 3, True)
    assert {name: made["quota"][name] for name in quota} == quota
    tenant = Tenant.objects.get(slug="blue")
    assert tenant.retention is not None
    event = AuditEvent.unscoped.get(action="tenant.create", tenant=tenant)
    assert event.actor_name.startswith("key:operator key")
    key = operator.send("post", "/api/v1/keys", {"name": "k", "role": "team", "tenant": "blue"})
    assert Caller(key.json()["key"]).get(f"{TENANTS}/blue/quota").status_code == 200


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ({"slug": "acme"}, 409, "slug"),
        ({"slug": "all"}, 400, "slug"),
        ({"slug": "Blue"}, 400, "slug"),
        ({"slug": "b" * 41}, 400, "slug"),
        ({"name": ""}, 400, "name"),
        ({"node_limit": -1}, 400, "node_limit"),
        ({"quota": {"hot": 1}}, 400, "quota.hot"),
        ({"quota": {"hot_bytes": 1 << 40}}, 409, "hot_bytes"),
    ],
)
def test_a_tenant_that_cannot_be_is_refused_by_name(operator, tenant, crowded, body, status, field):
    answer = operator.send("post", TENANTS, {"slug": "blue", "name": "Blue", **body})
    assert (answer.status_code, answer.json().get("field")) == (status, field)
    assert Tenant.objects.count() == 1


def test_an_operator_may_promise_more_than_there_is(operator, crowded):
    quota = {"hot_bytes": 1 << 40, "overcommit": True}
    answer = operator.send("post", TENANTS, {"slug": "blue", "name": "Blue", "quota": quota})
    assert answer.status_code == 201
    event = AuditEvent.unscoped.get(action="tenant.create")
    assert event.after["overcommit"]["left_bytes"] == 1 << 30


def test_deactivating_ends_access_at_once_and_activating_gives_it_back(operator, tenant, team):
    member = Client()
    member.force_login(make_person("ann", acme="team"))
    node = Caller(make_key(tenant, "node"))

    def answers():
        return (
            team.get("/api/v1/contexts").status_code,
            node.get("/cache/v1/sessions").status_code,
            len(member.get("/api/v1/me").json()["tenants"]),
        )

    assert answers() == (200, 405, 1)
    off = operator.send("patch", f"{TENANTS}/acme", {"is_active": False})
    assert (off.status_code, off.json()["is_active"], off.json()["name"]) == (200, False, "Acme")
    assert answers() == (401, 401, 0)
    on = operator.send("patch", f"{TENANTS}/acme", {"is_active": True, "overcommit": True})
    assert on.status_code == 200, on.content
    assert answers() == (200, 405, 1)
    events = AuditEvent.unscoped.filter(action="tenant.change", tenant=tenant)
    assert [event.after["is_active"] for event in events.order_by("pk")] == [False, True]


def test_a_tenant_becomes_active_only_if_its_quota_fits(operator, tenant, crowded):
    services.change_tenant(tenant=tenant, name="x", node_limit=1, is_active=False, actor=SYSTEM)
    Quota.unscoped.filter(tenant=tenant).update(hot_bytes=1 << 40)
    answer = operator.send("patch", f"{TENANTS}/acme", {"is_active": True})
    assert (answer.status_code, answer.json()["type"]) == (409, "/problems/hot-overcommit")


def test_a_tenant_that_is_being_removed_does_not_come_back(operator, tenant):
    services.remove_tenant(tenant=tenant, actor=SYSTEM)
    answer = operator.send("patch", f"{TENANTS}/acme", {"is_active": True})
    assert (answer.status_code, answer.json()["type"]) == (409, "/problems/conflict")
    with pytest.raises(Problem):
        services.change_tenant(tenant=tenant, name="x", node_limit=1, is_active=True, actor=SYSTEM)


def test_a_tenant_that_was_cut_off_is_let_in(operator, tenant):
    services.cut_off(tenant=tenant, reason="a flood")
    assert operator.get(f"{TENANTS}/acme").json()["cut_off_reason"] == "a flood"
    assert operator.send("post", f"{TENANTS}/acme/let-in").json()["cut_off_at"] is None


def test_a_team_reads_its_own_quota_and_use(team, tenant, clean_hot):
    provisioning.provision_tenant(tenant)
    space = make_space(tenant)
    make_context(space)
    for process in ("gpu-1/a", "gpu-1/b", "gpu-2"):
        make_session(space, process)
    quota = team.get(f"{TENANTS}/acme/quota").json()
    assert (quota["hot_bytes"], quota["node_limit"], quota["key_limit"]) == (1 << 30, 16, 100)
    assert quota["used"] == {
        **{"hot_bytes": 0, "cold_bytes": 0, "pinned_bytes": 0},
        **{"spaces": 1, "contexts": 1, "nodes": 2, "keys": 1},
    }
    assert team.send("patch", f"{TENANTS}/acme/quota", {"hot_bytes": 1}).status_code == 403
    stranger = Caller(make_key(make_tenant(), "team"))
    assert stranger.get(f"{TENANTS}/acme/quota").status_code == 404
    assert team.get(TENANTS).status_code == 403


def test_without_the_hot_tier_the_bytes_in_use_are_unknown(team, settings):
    settings.ENV = replace(settings.ENV, hot_url="valkey://127.0.0.1:1/0")
    used = team.get(f"{TENANTS}/acme/quota").json()["used"]
    assert (used["hot_bytes"], used["keys"]) == (None, 1)


def test_a_member_gets_in_changes_and_leaves(operator, tenant):
    person = make_person("ann")
    browser = Client()
    browser.force_login(person)
    body = {"tenant": "acme", "user": "ann", "role": "viewer"}
    made = operator.send("post", MEMBERS, body).json()
    assert {name: made[name] for name in body} == body
    assert operator.send("post", MEMBERS, body).status_code == 409
    assert browser.get("/api/v1/me").json()["tenants"][0]["may_write"] is False
    assert operator.send("patch", f"{MEMBERS}/{made['id']}", {"role": "team"}).status_code == 200
    assert browser.get("/api/v1/me").json()["tenants"][0]["may_write"] is True
    assert [row["user"] for row in browser.get(MEMBERS).json()["results"]] == ["ann"]
    assert operator.delete(f"{MEMBERS}/{made['id']}").status_code == 204
    assert browser.get("/api/v1/me").json()["tenants"] == []
    events = AuditEvent.unscoped.filter(object_type="membership").order_by("pk")
    assert [event.action for event in events] == [
        *("membership.create", "membership.change", "membership.remove"),
    ]
    assert all(event.actor_name.startswith("key:operator key") for event in events)


def test_members_are_found_by_address_if_it_is_theirs_alone(operator, tenant):
    ann, bob = make_person("ann"), make_person("bob")
    ann.email = bob.email = f"{uuid4().hex}@example.com"
    ann.save()
    body = {"tenant": "acme", "user": ann.email.upper(), "role": "team"}
    assert operator.send("post", MEMBERS, body).json()["user"] == "ann"
    bob.save()
    for user in (ann.email, "nobody"):
        answer = operator.send("post", MEMBERS, {**body, "user": user})
        assert (answer.status_code, answer.json()["field"]) == (400, "user")
    assert Membership.objects.count() == 1


def test_me_says_who_asks(team, operator, tenant):
    me = team.get("/api/v1/me").json()
    assert (me["kind"], me["role"], me["scopes"]) == ("key", "team", ["read", "write"])
    assert me["id"] == f"key:{me['key']['id']}"
    assert me["tenants"] == [{"slug": "acme", "name": "Acme", "may_write": True}]
    assert (me["key"]["expires_at"], me["rate_limit"]) == (None, {"requests": 1200, "window_s": 60})
    reader = Caller(make_key(tenant, "team", ["read"])).get("/api/v1/me").json()
    assert (reader["scopes"], reader["tenants"][0]["may_write"]) == (["read"], False)
    assert operator.get("/api/v1/me").json()["tenants"] is None
    person = Client()
    person.force_login(make_person("ann", acme="viewer"))
    assert person.get("/api/v1/me").json()["key"] is None
