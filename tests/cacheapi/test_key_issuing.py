"""Keys that teams make, rotate and revoke; what a hostile key tries."""

import threading
from datetime import datetime, timedelta
from uuid import uuid4

import pytest
from django.db import close_old_connections, connection
from django.utils import timezone

from support.caller import Caller
from support.rows import make_context, make_key, make_person, make_space, make_tenant
from tenants import services
from tenants.audit import SYSTEM
from tenants.keys import find_key
from tenants.models import ApiKey, AuditEvent

pytestmark = [pytest.mark.integration, pytest.mark.django_db]

KEYS = "/api/v1/keys"
NEW = {"name": "ci", "role": "team"}


class Holder(Caller):
    """Of a new key with these scopes."""

    def __init__(self, tenant, *scopes, **fields):
        role = "team" if tenant else "operator"
        self.key, plaintext = services.issue_key(
            tenant=tenant, role=role, name="k", scopes=scopes, **fields
        )
        super().__init__(plaintext)


@pytest.fixture
def maker(tenant):
    return Holder(tenant, "read", "write", "keys")


def made_by(caller, **body):
    answer = caller.send("post", KEYS, {**NEW, **body})
    assert answer.status_code == 201, answer.content
    return answer.json()


def refusal(answer):
    problem = answer.json()
    return answer.status_code, problem.get("field")


def status(key):
    return Caller(key["key"]).send("get", KEYS).status_code


def test_a_team_makes_keys_of_its_own_tenant(maker, tenant):
    made = made_by(maker, scopes=["contexts"])
    assert (made["tenant"], made["scopes"], made["made_by"]) == ("acme", ["contexts"], maker.key.pk)
    assert made_by(maker)["scopes"] == ["read", "write"]  # those of a new key
    assert made_by(maker, scopes=["write"])["scopes"] == ["read", "write"]
    ids = [key["id"] for key in maker.get(KEYS).json()["results"]]
    assert made["id"] in ids
    event = AuditEvent.unscoped.get(action="key.issue", object_id=made["id"])
    assert (event.tenant, event.after["scopes"]) == (tenant, ["contexts"])


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"scopes": ["read", "keys"], "role": "operator"}, (403, "role")),
        ({"role": "node"}, (403, "role")),
        ({"tenant": "other"}, (400, "tenant")),
        ({"scopes": []}, (400, "scopes")),
        ({"scopes": ["all"]}, (400, "scopes.0")),
        ({"scopes": ["write"]}, (403, "scopes")),
        ({"scopes": ["contexts", "read"]}, (403, "scopes")),
        ({"expires_in": "2h", "expires_at": "2099-01-01T00:00:00Z"}, (400, "expires_in")),
        ({"expires_at": "2001-01-01T00:00:00Z"}, (400, "expires_at")),
        ({"made_by": 1}, (400, "made_by")),
    ],
)
def test_no_key_gets_out_of_its_role_tenant_or_scopes(tenant, body, expected):
    make_tenant("other")
    asking = Holder(tenant, "read", "keys")
    before = ApiKey.unscoped.count()
    assert refusal(asking.send("post", KEYS, {**NEW, "scopes": ["read"], **body})) == expected
    assert ApiKey.unscoped.count() == before


@pytest.mark.parametrize("scopes", [["read"], ["write"], ["contexts"], ["read", "write"]])
def test_without_the_scope_keys_none_is_made_rotated_or_revoked(tenant, scopes):
    asking = Holder(tenant, *scopes)
    own = f"{KEYS}/{asking.key.pk}"
    for answer in (
        asking.send("post", KEYS, {**NEW, "scopes": scopes}),
        asking.send("post", f"{own}/rotate"),
        asking.send("post", f"{own}/revoke"),
    ):
        assert answer.status_code == 403
        assert "keys" in answer.json()["detail"]


def test_no_key_outlives_the_one_that_made_it(tenant):
    ends = timezone.now() + timedelta(hours=1)
    asking = Holder(tenant, "read", "keys", expires_at=ends)
    assert datetime.fromisoformat(made_by(asking, scopes=["read"])["expires_at"]) == ends
    sooner = made_by(asking, scopes=["read"], expires_in="30m")
    assert datetime.fromisoformat(sooner["expires_at"]) < ends
    answer = asking.send("post", KEYS, {**NEW, "scopes": ["read"], "expires_in": "2h"})
    assert refusal(answer) == (400, "expires_at")
    rotated = asking.send("post", f"{KEYS}/{asking.key.pk}/rotate", {"overlap": "0s"})
    assert datetime.fromisoformat(rotated.json()["expires_at"]) <= ends


def test_a_key_that_ended_makes_none(tenant):
    expired = Holder(tenant, "keys", expires_at=timezone.now() - timedelta(seconds=1))
    assert expired.send("post", KEYS, NEW).status_code == 401


def test_revoking_a_key_ends_the_keys_that_it_made(maker, operator):
    child = made_by(maker, scopes=["read", "keys"])
    grandchild = made_by(Caller(child["key"]), scopes=["read"])
    path = f"{KEYS}/{maker.key.pk}/revoke"
    assert operator.send("post", path, {"keep_made": True}).status_code == 200
    assert (status(child), status(grandchild)) == (200, 200)
    assert operator.send("post", path).status_code == 200
    assert (status(child), status(grandchild)) == (401, 401)


def test_a_key_that_rotates_itself_does_not_escape_its_revocation(maker, operator):
    new = maker.send("post", f"{KEYS}/{maker.key.pk}/rotate").json()
    assert operator.send("post", f"{KEYS}/{maker.key.pk}/revoke").status_code == 200
    assert status(new) == 401


def test_a_key_ends_only_itself_and_what_it_made(maker, tenant):
    sibling, _ = services.issue_key(tenant=tenant, role="team", name="s", scopes=["read"])
    node, _ = services.issue_key(tenant=tenant, role="node", name="n")
    strange, _ = services.issue_key(tenant=make_tenant(), role="team", name="x")
    child = made_by(maker, scopes=["read", "keys"])
    for action in ("rotate", "revoke"):
        for key, expected in ((sibling.pk, 403), (node.pk, 403), (strange.pk, 404)):
            assert maker.send("post", f"{KEYS}/{key}/{action}").status_code == expected
        answer = Caller(child["key"]).send("post", f"{KEYS}/{maker.key.pk}/{action}")
        assert answer.status_code == 403
    assert maker.send("post", f"{KEYS}/{child['id']}/revoke").status_code == 200
    assert maker.send("post", f"{KEYS}/{maker.key.pk}/revoke").status_code == 200
    assert maker.send("get", KEYS).status_code == 401


def test_a_rotated_key_has_no_power_over_its_successor(maker, operator):
    new = operator.send("post", f"{KEYS}/{maker.key.pk}/rotate").json()
    for action in ("rotate", "revoke"):
        assert maker.send("post", f"{KEYS}/{new['id']}/{action}").status_code == 403
    assert Caller(new["key"]).send("post", f"{KEYS}/{maker.key.pk}/revoke").status_code == 200


def test_an_operator_key_passes_on_no_scope_that_it_lacks(db):
    other, _ = services.issue_key(tenant=None, role="operator", name="all")
    asking = Holder(None, "read", "keys")
    for answer in (
        asking.send("post", KEYS, {"name": "x", "role": "operator", "scopes": ["write"]}),
        asking.send("post", f"{KEYS}/{other.pk}/rotate"),
        asking.send("post", KEYS, {"name": "x", "role": "node", "tenant": make_tenant().slug}),
    ):
        assert refusal(answer) == (403, "scopes")


def test_both_keys_work_during_the_overlap_then_only_the_new_one(operator, tenant):
    old = made_by(operator, tenant="acme", scopes=["contexts", "read"])
    answer = operator.send("post", f"{KEYS}/{old['id']}/rotate", {"overlap": "1h"})
    new = answer.json()
    assert answer.status_code == 201
    assert [new[name] for name in ("name", "scopes", "role", "rotated_from", "expires_at")] == [
        *("ci", ["contexts", "read"], "team"),
        old["id"],
        None,
    ]
    assert (status(old), status(new)) == (200, 200)
    row = ApiKey.unscoped.get(pk=old["id"])
    assert timedelta(minutes=59) < row.expires_at - timezone.now() <= timedelta(hours=1)
    ApiKey.unscoped.filter(pk=row.pk).update(expires_at=timezone.now())  # the hour is over
    assert (status(old), status(new)) == (401, 200)
    assert operator.send("post", f"{KEYS}/{old['id']}/rotate").status_code == 409
    at_once = operator.send("post", f"{KEYS}/{new['id']}/rotate", {"overlap": "0s"}).json()
    assert (status(new), status(at_once)) == (401, 200)


def test_a_rotation_lengthens_no_life_of_the_old_key(operator, tenant):
    ends = timezone.now() + timedelta(minutes=10)
    old, _ = services.issue_key(tenant=tenant, role="team", name="k", expires_at=ends)
    new = operator.send("post", f"{KEYS}/{old.pk}/rotate", {"overlap": "1d"}).json()
    old.refresh_from_db()
    assert old.expires_at == ends
    lives = datetime.fromisoformat(new["expires_at"]) - timezone.now()
    assert timedelta(minutes=9) < lives <= timedelta(minutes=10)


def test_a_repeated_rotation_hands_out_one_key(operator, tenant):
    old = made_by(operator, tenant="acme")
    path, once = f"{KEYS}/{old['id']}/rotate", {"Idempotency-Key": str(uuid4())}
    first = operator.send("post", path, {}, headers=once).json()
    again = operator.send("post", path, {}, headers=once).json()
    assert (again["id"], again["key"]) == (first["id"], None)
    assert operator.send("post", path).status_code == 409
    operator.send("post", f"{KEYS}/{first['id']}/revoke")  # its secret is lost
    assert operator.send("post", path).status_code == 201


@pytest.mark.django_db(transaction=True)
def test_two_rotations_at_once_hand_out_one_key(db):
    old, _ = services.issue_key(tenant=make_tenant(), role="team", name="k")
    keys = [make_key(None, "operator") for _ in range(2)]
    barrier, answers = threading.Barrier(2), []

    def rotate(key):
        close_old_connections()
        barrier.wait(10)
        answers.append(Caller(key).send("post", f"{KEYS}/{old.pk}/rotate").status_code)
        connection.close()

    threads = [threading.Thread(target=rotate, args=(key,)) for key in keys]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    # The tests' SQLite in memory refuses a second writer instead of letting it wait.
    assert sorted(answers) in ([201, 409], [201, 503])
    assert ApiKey.unscoped.filter(rotated_from=old).count() == 1


def test_a_contexts_key_changes_contexts_only(tenant):
    asking = Holder(tenant, "contexts")
    context = make_context(make_space(tenant))
    assert asking.send("get", "/api/v1/contexts").status_code == 200
    assert asking.send("delete", f"/api/v1/contexts/{context.pk}").status_code == 204
    for path in ("spaces", "audit", "keys", "usage", "policies"):
        answer = asking.send("get", f"/api/v1/{path}")
        assert answer.status_code == 403
        assert "read" in answer.json()["detail"]


def test_people_make_team_keys_where_they_are_members(client, tenant):
    make_tenant("seen")
    client.force_login(make_person("ann", acme="team", seen="viewer"))
    body = {**NEW, "tenant": "acme"}
    made = client.post(KEYS, body, content_type="application/json")
    assert made.status_code == 201
    for change, expected in (
        ({"tenant": "seen"}, (403, "tenant")),
        ({"tenant": None}, (400, "tenant")),
        ({"role": "operator", "tenant": None}, (403, "role")),
        ({"role": "node"}, (403, "role")),
    ):
        answer = client.post(KEYS, {**body, **change}, content_type="application/json")
        assert refusal(answer) == expected
    path = f"{KEYS}/{made.json()['id']}/revoke"
    assert client.post(path, content_type="application/json").status_code == 200


def test_the_keys_of_a_tenant_are_limited_the_ended_ones_too(maker, settings, monkeypatch):
    from dataclasses import replace

    from tenants import issuing

    monkeypatch.setattr(issuing, "ENDED_PER_KEY", 1)
    settings.ENV = replace(settings.ENV, key_limit=2)
    path = f"{KEYS}/{made_by(maker)['id']}/revoke"
    problem = maker.send("post", KEYS, NEW).json()
    assert (problem["type"], problem["limit"], problem["most"]) == (
        "/problems/limit-reached",
        "key_limit",
        2,
    )
    for _ in range(2):
        assert maker.send("post", path).status_code == 200
        path = f"{KEYS}/{made_by(maker)['id']}/revoke"
    maker.send("post", path)
    assert maker.send("post", KEYS, NEW).status_code == 409  # four rows


def test_a_deactivated_tenants_keys_end(maker, tenant):
    child = made_by(maker)
    services.change_tenant(tenant=tenant, name="x", node_limit=1, is_active=False, actor=SYSTEM)
    assert find_key(child["key"]) is None
    assert maker.send("post", KEYS, NEW).status_code == 401
