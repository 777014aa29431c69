"""Who may call what: one table, and no route or method may be missing from it.

The letters: n node key, t team key, o operator key, v viewer, m team member, s staff (in browsers).
A caller who may, gets an answer other than 401 and 403; the rest get 403, and nobody's key 401.
"""

from operator import attrgetter
from uuid import uuid4

import pytest
from django.test import Client
from django.urls import URLPattern, URLResolver, get_resolver

from support.rows import make_context, make_everything, make_key, make_person, make_tenant

pytestmark = [pytest.mark.integration, pytest.mark.django_db]

METHODS = ("get", "post", "put", "patch", "delete")
ANYBODY = {"api:schema", "api:docs"}
PLAIN = {"api:usage", "cache:sessions", "cache:contexts", "metrics:scrape"}  # name no row
LOOK, ACT, OPERATE = "tovms", "toms", "os"

TABLE = {
    ("cache:sessions", "post"): "n",
    ("cache:session", "delete"): "n",
    ("cache:heartbeat", "post"): "n",
    ("cache:segments", "get"): "n",
    ("cache:contexts", "post"): "n",
    ("metrics:scrape", "get"): "to",
    ("api:usage", "get"): LOOK,
    ("api:context-list", "get"): LOOK,
    ("api:context-detail", "get"): LOOK,
    ("api:context-detail", "delete"): ACT,
    ("api:context-pin", "post"): ACT,
    ("api:context-unpin", "post"): ACT,
    ("api:context-expire", "post"): ACT,
    ("api:context-extend", "post"): ACT,
    ("api:tenant-list", "get"): OPERATE,
    ("api:tenant-detail", "get"): OPERATE,
    ("api:tenant-detail", "delete"): OPERATE,
    ("api:tenant-quota", "patch"): OPERATE,
    ("api:space-list", "get"): LOOK,
    ("api:space-detail", "get"): LOOK,
    ("api:space-detail", "delete"): OPERATE,
    ("api:node-list", "get"): LOOK,
    ("api:node-detail", "get"): LOOK,
    ("api:node-end", "post"): OPERATE,
    ("api:segment-list", "get"): LOOK,
    ("api:segment-detail", "get"): LOOK,
    ("api:job-list", "get"): LOOK,
    ("api:job-detail", "get"): LOOK,
    ("api:job-list", "post"): OPERATE,
    ("api:job-cancel", "post"): OPERATE,
    ("api:job-retry", "post"): OPERATE,
    ("api:audit-list", "get"): LOOK,
    ("api:audit-detail", "get"): LOOK,
    ("api:policy-list", "get"): LOOK,
    ("api:policy-detail", "get"): LOOK,
    ("api:policy-detail", "patch"): OPERATE,
    ("api:policy-dry-run", "post"): LOOK,
    ("api:rule-list", "get"): LOOK,
    ("api:rule-list", "post"): OPERATE,
    ("api:rule-detail", "get"): LOOK,
    ("api:rule-detail", "patch"): OPERATE,
    ("api:rule-detail", "delete"): OPERATE,
    ("api:key-list", "get"): LOOK,
    ("api:key-list", "post"): OPERATE,
    ("api:key-detail", "get"): LOOK,
    ("api:key-revoke", "post"): OPERATE,
}


def routes():
    """(name, pattern, callback) of every route below /api, /cache and /metrics."""

    def walk(resolver, prefix, namespace):
        for entry in resolver.url_patterns:
            text = prefix + str(entry.pattern)
            if isinstance(entry, URLResolver):
                yield from walk(entry, text, entry.namespace or namespace)
            elif isinstance(entry, URLPattern) and namespace in ("api", "cache", "metrics"):
                yield f"{namespace}:{entry.name}", entry.callback

    yield from walk(get_resolver(), "", None)


def allowed_methods(callback):
    names = getattr(callback, "actions", None)
    if names is not None:
        return set(names) & set(METHODS)
    return {method for method in METHODS if hasattr(callback.cls, method)}


ROUTES = dict(routes())


def test_the_table_holds_every_route_and_method():
    real = {
        (name, method)
        for name, callback in ROUTES.items()
        if name not in ANYBODY
        for method in allowed_methods(callback)
    }
    assert real == set(TABLE)


@pytest.fixture
def world(db):
    """One tenant with a row of each kind, and every kind of caller."""
    tenant = make_tenant("acme")
    rows = make_everything(tenant)
    from tenants.models import AuditEvent

    rows["audit"] = AuditEvent.unscoped.filter(tenant=tenant).first()
    callers = {
        letter: Client(headers={"Authorization": f"Bearer {make_key(of, role)}"})
        for letter, of, role in (
            ("n", tenant, "node"),
            ("t", tenant, "team"),
            ("o", None, "operator"),
        )
    }
    people = {
        "v": make_person("viewer", acme="viewer"),
        "m": make_person("member", acme="team"),
        "s": make_person("staff", staff=True),
        "x": make_person("outsider"),
    }
    for letter, person in people.items():
        callers[letter] = Client()
        callers[letter].force_login(person)
    return rows, callers


def address(name, rows):
    from django.urls import reverse

    kind = name.split(":")[1].split("-")[0]
    if name.endswith("-list") or name in PLAIN:
        return reverse(name)
    if name.startswith("cache:"):
        return reverse(name, args=[rows["node"].pk]) + "?ids=1"
    row = rows[kind]
    slug = {"tenant": "slug", "policy": "tenant.slug"}.get(kind, "pk")
    return reverse(name, args=[attrgetter(slug)(row)])


@pytest.mark.parametrize(("name", "method"), TABLE, ids=lambda part: part)
def test_each_credential_gets_what_the_table_says(world, name, method):
    rows, callers = world
    path = address(name, rows)
    for letter in "notvms":
        if (name, method) == ("api:context-detail", "delete"):  # each who may, takes one away
            path = address(name, {"context": make_context(rows["space"], letter)})
        answer = getattr(callers[letter], method)(path, {}, content_type="application/json")
        refused = answer.status_code in (401, 403)
        assert refused == (letter not in TABLE[name, method]), (letter, answer.content)
        assert answer.status_code < 500 or answer.status_code == 503
    nobody = getattr(Client(), method)(path, {}, content_type="application/json")
    assert nobody.status_code == 401
    wrong = Client(headers={"Authorization": "Bearer neve_wrong_wrong"})
    assert getattr(wrong, method)(path, {}, content_type="application/json").status_code == 401


@pytest.mark.parametrize(
    "name", [name for name, method in TABLE if name.startswith("api:") and method == "get"]
)
def test_another_tenants_rows_do_not_exist(world, name):
    rows, callers = world
    other = make_tenant("other")
    stranger = Client(headers={"Authorization": f"Bearer {make_key(other, 'team')}"})
    for caller in (stranger, callers["x"]):
        answer = caller.get(address(name, rows))
        if name.startswith("api:tenant"):
            assert answer.status_code == 403
        elif name.endswith("-list"):
            assert answer.status_code == 200
            assert {row["tenant"] for row in answer.json()["results"]} <= {"other"}
        elif name == "api:usage":
            assert answer.json()["points"] == []
            assert caller.get(address(name, rows) + "?tenant=acme").status_code == 404
        else:
            assert answer.status_code == 404


@pytest.mark.parametrize("action", ["pin", "unpin", "expire", "extend"])
def test_another_tenants_context_can_not_be_changed(world, action):
    rows, _ = world
    stranger = Client(headers={"Authorization": f"Bearer {make_key(make_tenant(), 'team')}"})
    assert stranger.delete(f"/api/v1/contexts/{rows['context'].pk}").status_code == 404
    path = f"/api/v1/contexts/{rows['context'].pk}/{action}"
    assert stranger.post(path, {"for_s": 5}, content_type="application/json").status_code == 404


def test_browsers_need_the_csrf_token_and_keys_do_not(world):
    rows, callers = world
    path = f"/api/v1/contexts/{rows['context'].pk}/pin"
    browser = Client(enforce_csrf_checks=True)
    browser.force_login(make_person("ann", acme="team"))
    answer = browser.post(path, {}, content_type="application/json")
    assert answer.status_code == 403
    assert "CSRF" in answer.json()["detail"]
    assert callers["t"].post(path, {}, content_type="application/json").status_code == 400


def test_the_schema_and_its_page_are_open(client):
    assert client.get("/api/v1/schema/").status_code == 200
    assert client.get("/api/v1/docs/").status_code == 200


def test_ids_that_are_none_are_404(world):
    _, callers = world
    for path in (f"contexts/{uuid4()}", "contexts/x", "jobs/5", "spaces/x", "segments/999999999"):
        assert callers["o"].get(f"/api/v1/{path}").status_code == 404
