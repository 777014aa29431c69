"""Who may call what: tables by role, and no route, method or socket may be missing from them.

The letters: n node key; t team key and o operator key with the scopes of a new one; team keys with
one scope: r read, w write, c contexts, k keys; p operator key with read. In browsers: v viewer, m
team member, s staff, x a person without a membership. Of the APIs, a caller who may gets an answer
other than 401 and 403; the rest get 403, and nobody's key 401. Pages know no keys, and have a
status for each person.
"""

import re
from datetime import UTC, datetime
from operator import attrgetter
from uuid import uuid4

import pytest
from channels.db import database_sync_to_async
from django.contrib.auth.models import AnonymousUser
from django.test import Client
from django.urls import NoReverseMatch, URLPattern, URLResolver, get_resolver, reverse

from base import live
from dashboard import probes
from dashboard.consumers import SIGNED_OUT
from dashboard.pages.tiers.view import NOW
from dashboard.routing import websocket_urlpatterns
from events import webhooks
from support.rows import (
    make_context,
    make_engine,
    make_everything,
    make_key,
    make_person,
    make_tenant,
    make_warm_policy,
)
from support.sockets import Socket
from tenants.audit import SYSTEM

pytestmark = [pytest.mark.integration, pytest.mark.django_db]

METHODS = ("get", "post", "put", "patch", "delete")
ANYBODY = {"api:schema", "api:docs"}
PLAIN = {  # name no row
    *(
        "api:me",
        "api:usage",
        "api:explore",
        "api:lookup",
        "cache:sessions",
        "cache:contexts",
        "metrics:scrape",
    ),
    *("api:samples", "api:samples-export", "api:why"),
    *("api:what-if", "api:what-if-recommendation", "api:alert-rules", "api:incident-mail"),
    *("api:savings", "api:prices", "api:context-bulk", "api:context-bulk-preview"),
}
LOOK, ACT = "trwopvms", "twoms"
LOOK_AT_CONTEXTS, ACT_ON_CONTEXTS = f"{LOOK}c", f"{ACT}c"
OVERSEE, OPERATE = "ops", "os"
SCOPES = {"r": ["read"], "w": ["write"], "c": ["contexts"], "k": ["keys"], "p": ["read"]}

TABLE = {
    ("cache:sessions", "post"): "n",
    ("cache:session", "delete"): "n",
    ("cache:heartbeat", "post"): "n",
    ("cache:attestation", "post"): "n",
    ("cache:removals", "get"): "n",
    ("cache:segments", "get"): "n",
    ("cache:contexts", "post"): "n",
    ("metrics:scrape", "get"): "trwop",
    ("api:usage", "get"): LOOK,
    ("api:explore", "get"): LOOK,
    ("api:savings", "get"): LOOK,
    ("api:savings-export", "get"): LOOK,
    ("api:prices", "get"): LOOK,
    ("api:prices", "patch"): OPERATE,
    ("api:samples", "get"): LOOK,
    ("api:samples", "patch"): ACT,
    ("api:samples-export", "get"): LOOK,
    ("api:me", "get"): f"{LOOK}nck",
    ("api:context-list", "get"): LOOK_AT_CONTEXTS,
    ("api:context-list", "post"): ACT_ON_CONTEXTS,
    ("api:context-warm", "post"): ACT_ON_CONTEXTS,
    ("api:lookup", "post"): LOOK_AT_CONTEXTS,
    ("api:why", "get"): LOOK_AT_CONTEXTS,
    ("api:why", "post"): LOOK_AT_CONTEXTS,
    ("api:warm_policy-list", "get"): LOOK_AT_CONTEXTS,
    ("api:warm_policy-list", "post"): ACT_ON_CONTEXTS,
    ("api:warm_policy-detail", "get"): LOOK_AT_CONTEXTS,
    ("api:warm_policy-detail", "patch"): ACT_ON_CONTEXTS,
    ("api:warm_policy-detail", "delete"): ACT_ON_CONTEXTS,
    ("api:context-detail", "get"): LOOK_AT_CONTEXTS,
    ("api:context-detail", "patch"): ACT_ON_CONTEXTS,
    ("api:context-detail", "delete"): ACT_ON_CONTEXTS,
    ("api:context-residency", "get"): LOOK_AT_CONTEXTS,
    ("api:context-pin", "post"): ACT_ON_CONTEXTS,
    ("api:context-unpin", "post"): ACT_ON_CONTEXTS,
    ("api:context-expire", "post"): ACT_ON_CONTEXTS,
    ("api:context-extend", "post"): ACT_ON_CONTEXTS,
    ("api:tenant-list", "get"): OVERSEE,
    ("api:tenant-detail", "get"): OVERSEE,
    ("api:tenant-detail", "delete"): OPERATE,
    ("api:tenant-list", "post"): OPERATE,
    ("api:tenant-detail", "patch"): OPERATE,
    ("api:tenant-quota", "get"): LOOK,
    ("api:tenant-quota", "patch"): OPERATE,
    ("api:tenant-let-in", "post"): OPERATE,
    ("api:membership-list", "get"): LOOK,
    ("api:membership-list", "post"): OPERATE,
    ("api:membership-detail", "get"): LOOK,
    ("api:membership-detail", "patch"): OPERATE,
    ("api:membership-detail", "delete"): OPERATE,
    ("api:invitation-list", "get"): OVERSEE,
    ("api:invitation-list", "post"): OPERATE,
    ("api:invitation-detail", "get"): OVERSEE,
    ("api:invitation-detail", "delete"): OPERATE,
    ("api:signin-list", "get"): LOOK,
    ("api:signin-detail", "get"): LOOK,
    ("api:signin-detail", "delete"): f"{ACT}v",  # somebody else's is 404
    ("api:space-list", "get"): LOOK,
    ("api:space-detail", "get"): LOOK,
    ("api:space-detail", "delete"): OPERATE,
    ("api:family-list", "get"): LOOK,
    ("api:family-list", "post"): OPERATE,
    ("api:family-detail", "get"): LOOK,
    ("api:family-detail", "delete"): OPERATE,
    ("api:member-list", "get"): LOOK,
    ("api:member-detail", "get"): LOOK,
    ("api:member-try-again", "post"): OPERATE,
    ("api:engine-list", "get"): LOOK,
    ("api:engine-list", "post"): ACT,
    ("api:engine-detail", "get"): LOOK,
    ("api:engine-detail", "patch"): ACT,
    ("api:engine-detail", "delete"): ACT,
    ("api:engine-check", "post"): ACT,
    ("api:node-list", "get"): LOOK,
    ("api:node-detail", "get"): LOOK,
    ("api:node-end", "post"): OPERATE,
    ("api:segment-list", "get"): LOOK,
    ("api:segment-detail", "get"): LOOK,
    ("api:store-list", "get"): OVERSEE,
    ("api:store-list", "post"): OPERATE,
    ("api:store-detail", "get"): OVERSEE,
    ("api:store-detail", "patch"): OPERATE,
    ("api:store-detail", "delete"): OPERATE,
    ("api:move_rule-list", "get"): OVERSEE,
    ("api:move_rule-list", "post"): OPERATE,
    ("api:move_rule-detail", "get"): OVERSEE,
    ("api:move_rule-detail", "patch"): OPERATE,
    ("api:move_rule-detail", "delete"): OPERATE,
    ("api:move_rule-dry-run", "post"): OVERSEE,
    ("api:move-list", "get"): LOOK,
    ("api:move-detail", "get"): LOOK,
    ("api:job-list", "get"): LOOK_AT_CONTEXTS,
    ("api:job-detail", "get"): LOOK_AT_CONTEXTS,  # c finds jobs of contexts, here 404
    ("api:job-list", "post"): OPERATE,
    ("api:job-cancel", "post"): f"{OPERATE}c",
    ("api:job-retry", "post"): f"{OPERATE}c",
    ("api:incident-list", "get"): LOOK,
    ("api:incident-detail", "get"): LOOK,
    ("api:incident-detail", "patch"): ACT,
    ("api:incident-acknowledge", "post"): ACT,
    ("api:incident-mute", "post"): ACT,
    ("api:incident-unmute", "post"): ACT,
    ("api:incident-mail", "get"): "vms",  # keys have no address
    ("api:incident-mail", "patch"): "vms",
    ("api:alert-rules", "get"): LOOK,
    ("api:alert-rule", "patch"): OPERATE,
    ("api:alert-rule", "delete"): OPERATE,
    ("api:event-list", "get"): LOOK,
    ("api:event-detail", "get"): LOOK,
    ("api:webhook-list", "get"): LOOK,
    ("api:webhook-list", "post"): ACT,
    ("api:webhook-detail", "get"): LOOK,
    ("api:webhook-detail", "patch"): ACT,
    ("api:webhook-detail", "delete"): ACT,
    ("api:webhook-test", "post"): ACT,
    ("api:webhook-rotate-secret", "post"): ACT,
    ("api:delivery-list", "get"): LOOK,
    ("api:delivery-detail", "get"): LOOK,
    ("api:delivery-retry", "post"): ACT,
    ("api:audit-list", "get"): LOOK,
    ("api:audit-detail", "get"): LOOK,
    ("api:audit-undo", "post"): OPERATE,
    ("api:audit-export", "get"): LOOK,
    ("api:policy-list", "get"): LOOK,
    ("api:policy-detail", "get"): LOOK,
    ("api:policy-detail", "patch"): OPERATE,
    ("api:policy-dry-run", "post"): LOOK,
    ("api:context-diff", "get"): LOOK_AT_CONTEXTS,
    ("api:context-export", "get"): LOOK_AT_CONTEXTS,
    ("api:context-bulk", "post"): ACT_ON_CONTEXTS,
    ("api:context-bulk-preview", "post"): ACT_ON_CONTEXTS,
    ("api:space-lineage", "get"): LOOK,
    ("api:space-removals", "get"): LOOK,
    ("api:space-compare", "get"): LOOK,
    ("api:what-if", "post"): LOOK,  # a job, but no change
    ("api:what-if-recommendation", "get"): LOOK,
    ("api:rule-list", "get"): LOOK,
    ("api:rule-list", "post"): OPERATE,
    ("api:rule-detail", "get"): LOOK,
    ("api:rule-detail", "patch"): OPERATE,
    ("api:rule-detail", "delete"): OPERATE,
    ("api:key-list", "get"): f"{LOOK}k",
    ("api:key-list", "post"): "okms",
    ("api:key-detail", "get"): f"{LOOK}k",
    ("api:key-rotate", "post"): "oms",  # k: only itself and what it made, see test_key_issuing.py
    ("api:key-revoke", "post"): "oms",
}

# (route, method) → status for x, v, m, s. Signed out, a page leads to the login, and data is 401.
PAGES = {
    ("dashboard:overview", "get"): (200, 200, 200, 200),
    ("dashboard:palette", "get"): (200, 200, 200, 200),
    ("dashboard:tenants", "get"): (200, 200, 200, 200),
    ("dashboard:tenant", "get"): (404, 200, 200, 200),
    ("dashboard:tenant", "post"): (404, 404, 404, 404),  # no action: test_tenant_page has them all
    ("dashboard:tenant-new", "get"): (404, 404, 404, 200),
    ("dashboard:tenant-new", "post"): (404, 404, 404, 400),  # an empty form
    ("dashboard:policies", "get"): (200, 200, 200, 200),
    ("dashboard:tenant-invite", "post"): (
        404,
        404,
        404,
        400,
    ),  # an empty form, refused after the check
    ("dashboard:invitation-revoke", "post"): (404, 404, 404, 200),
    ("dashboard:tiers-reclaim", "post"): (404, 404, 404, 302),
    ("dashboard:account", "get"): (200, 200, 200, 200),
    ("dashboard:account-password", "post"): (400, 400, 400, 400),  # an empty form
    ("dashboard:account-address", "post"): (400, 400, 400, 400),
    ("dashboard:account-look", "post"): (302, 302, 302, 302),
    ("dashboard:account-link", "post"): (400, 400, 400, 400),
    ("dashboard:account-end-others", "post"): (302, 302, 302, 302),
    ("dashboard:identity-unlink", "post"): (404, 404, 404, 404),  # somebody else's
    ("dashboard:signin-end", "post"): (404, 404, 404, 302),
    ("dashboard:second-factor", "get"): (200, 200, 200, 200),
    ("dashboard:second-factor-on", "post"): (400, 400, 400, 400),
    ("dashboard:second-factor-off", "post"): (400, 400, 400, 400),
    ("dashboard:second-factor-codes", "post"): (400, 400, 400, 400),
    ("dashboard:nodes", "get"): (200, 200, 200, 200),
    ("dashboard:node", "get"): (404, 200, 200, 200),
    ("dashboard:why", "get"): (200, 200, 200, 200),
    ("dashboard:why", "post"): (200, 200, 200, 200),  # an empty form: the page says so
    ("dashboard:families", "get"): (200, 200, 200, 200),
    ("dashboard:member-try-again", "post"): (404, 404, 404, 302),
    ("dashboard:tiers", "get"): (200, 200, 200, 200),
    ("dashboard:explorer", "get"): (200, 200, 200, 200),
    ("dashboard:savings", "get"): (200, 200, 200, 200),
    ("dashboard:spaces", "get"): (200, 200, 200, 200),
    ("dashboard:spaces-compare", "get"): (200, 200, 200, 200),
    ("dashboard:space", "get"): (404, 200, 200, 200),
    ("dashboard:system", "get"): (200, 200, 200, 200),
    ("dashboard:system", "post"): (404, 404, 404, 400),  # an empty form, refused after the check
    ("dashboard:incidents", "get"): (200, 200, 200, 200),
    ("dashboard:incident", "get"): (404, 200, 200, 200),
    ("dashboard:incident-act", "post"): (404, 404, 400, 400),  # an empty form
    ("dashboard:incident-mail", "post"): (302, 302, 302, 302),
    ("dashboard:alert-rule", "post"): (404, 404, 404, 400),  # an empty form
    ("dashboard:jobs", "get"): (200, 200, 200, 200),
    ("dashboard:job", "get"): (404, 200, 200, 200),
    ("dashboard:job-retry", "post"): (404, 404, 404, 404),  # nobody asked for it
    ("dashboard:job-cancel", "post"): (404, 404, 404, 404),
    ("dashboard:what_if", "get"): (200, 200, 200, 200),
    ("dashboard:what_if", "post"): (200, 400, 400, 400),  # an empty form, refused; x has no tenant
    ("dashboard:audit", "get"): (200, 200, 200, 200),
    ("dashboard:contexts", "get"): (200, 200, 200, 200),
    ("dashboard:contexts-act", "post"): (404, 404, 400, 400),  # an empty form
    ("dashboard:context", "get"): (404, 200, 200, 200),
    ("dashboard:context-pin", "post"): (404, 404, 302, 302),
    ("dashboard:context-extend", "post"): (404, 404, 302, 302),
    ("dashboard:context-warm", "post"): (404, 404, 302, 302),
    ("dashboard:context-change", "post"): (404, 404, 302, 302),
    ("dashboard:context-unpin", "post"): (404, 404, 302, 302),
    ("dashboard:context-expire", "get"): (404, 404, 200, 200),
    ("dashboard:context-expire", "post"): (404, 404, 302, 302),
    ("dashboard:context-delete", "get"): (404, 404, 200, 200),
    ("dashboard:context-delete", "post"): (404, 404, 302, 302),
    ("dashboard:webhooks", "get"): (200, 200, 200, 200),
    ("dashboard:webhook-test", "post"): (404, 404, 302, 302),
    ("dashboard:keys", "get"): (200, 200, 200, 200),
    ("dashboard:keys", "post"): (404, 404, 400, 400),  # an empty form, refused after the check
    ("dashboard:key-revoke", "get"): (404, 404, 200, 200),  # of a team key
    ("dashboard:key-revoke", "post"): (404, 404, 302, 302),
    ("dashboard:key-rotate", "get"): (404, 404, 200, 200),
    ("dashboard:key-rotate", "post"): (404, 404, 200, 400),  # the member was faster
    ("dashboard:key-first-use", "get"): (404, 200, 200, 200),
}
DOORS = {
    *("dashboard:login", "dashboard:login-code", "dashboard:sso", "dashboard:sso-callback"),
    *("dashboard:logout", "dashboard:invitation", "dashboard:prove-address"),
    *("dashboard:forgot", "dashboard:reset"),
}
# For anybody, outside of all namespaces; the last two are names that allauth looks up.
BARE = {"healthz", "problem", "account_login", "socialaccount_connections"}
# Who hears of the tenant; signed out, a socket is closed.
SOCKETS = {"ws/usage": "vms", "ws/changes": "vms"}


def routes():
    """(name, callback, pattern) of every route: `namespace:name`, or the bare name."""

    def walk(resolver, namespace, prefix):
        for entry in resolver.url_patterns:
            pattern = prefix + str(entry.pattern)
            if isinstance(entry, URLResolver):
                yield from walk(entry, entry.namespace or namespace, pattern)
            elif isinstance(entry, URLPattern):
                name = f"{namespace}:{entry.name}" if namespace else entry.name
                yield name, entry.callback, pattern

    yield from walk(get_resolver(), None, "")


def allowed_methods(callback):
    names = getattr(callback, "actions", None)
    if names is not None:
        return set(names) & set(METHODS)
    return {method for method in METHODS if hasattr(callback.cls, method)}


ROUTES = {name: callback for name, callback, _ in routes() if name}
# Pages of the admin, with a 1 for each part that varies; the last of its routes takes any address.
ADMIN = sorted(
    {
        f"/{re.sub(r'<[^>]+>|[(][^$]*[$]', '1', pattern)}"
        for name, _, pattern in routes()
        if (name or "").startswith("admin:")
    }
    - {"/admin/login/", "/admin/logout/"}
)


def names_of(*namespaces):
    return {name for name in ROUTES if name.split(":")[0] in namespaces}


def test_the_table_holds_every_route_and_method_of_the_apis():
    real = {
        (name, method)
        for name in names_of("api", "cache", "metrics") - ANYBODY
        for method in allowed_methods(ROUTES[name])
    }
    assert real == set(TABLE)


def test_every_other_route_is_a_page_a_door_or_of_the_admin():
    apis = names_of("api", "cache", "metrics")
    pages = {name for name, _ in PAGES} | DOORS
    assert names_of("dashboard") == pages
    assert set(ROUTES) - apis - pages - names_of("admin") == BARE


@pytest.fixture
def world(db):
    """One tenant with a row of each kind, and every kind of caller."""
    tenant = make_tenant("acme")
    rows = make_everything(tenant)
    from tenants.models import AuditEvent

    rows["audit"] = AuditEvent.unscoped.filter(tenant=tenant).first()
    callers = {
        letter: Client(
            headers={"Authorization": f"Bearer {make_key(of, role, SCOPES.get(letter))}"}
        )
        for of, role, letters in (
            (tenant, "node", "n"),
            (tenant, "team", "trwck"),
            (None, "operator", "op"),
        )
        for letter in letters
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
    kind = name.split(":")[1].split("-")[0]
    if kind == "delivery":
        own = [] if name.endswith("-list") else [rows[kind].pk]
        return reverse(name, args=[rows["webhook"].pk, *own])
    if name.endswith(("-list", "-export")) or name in PLAIN:
        return reverse(name)
    if name.startswith("cache:"):
        return reverse(name, args=[rows["node"].pk]) + "?ids=1"
    if name == "api:alert-rule":
        return reverse(name, args=["hit_rate"])
    row = rows[kind]
    slug = {"tenant": "slug", "policy": "tenant.slug", "event": "uuid"}.get(kind, "pk")
    return reverse(name, args=[attrgetter(slug)(row)])


@pytest.mark.parametrize(("name", "method"), TABLE, ids=lambda part: part)
def test_each_credential_gets_what_the_table_says(world, name, method):
    rows, callers = world
    path = address(name, rows)
    for letter in "ntrwckopvms":
        if (name, method) == ("api:context-detail", "delete"):  # each who may, takes one away
            path = address(name, {"context": make_context(rows["space"], letter)})
        if (name, method) == ("api:webhook-detail", "delete"):
            of = {"tenant": rows["tenant"], "url": "http://127.0.0.1:9/", "types": []}
            path = address(name, {"webhook": webhooks.add(**of, actor=SYSTEM)[0]})
        if (name, method) == ("api:engine-detail", "delete"):
            path = address(name, {"engine": make_engine(rows["space"])})
        if (name, method) == ("api:warm_policy-detail", "delete"):
            path = address(name, {"warm_policy": make_warm_policy(rows["context"])})
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
        if name.startswith(
            (
                "api:tenant-list",
                "api:tenant-detail",
                "api:invitation-",
                "api:store-",
                "api:move_rule-",
            )
        ):
            assert answer.status_code == 403
        elif name in ("api:samples", "api:samples-export"):
            assert caller.get(address(name, rows) + "?tenant=acme").status_code == 404
        elif name.endswith("-list") and name != "api:delivery-list":
            assert answer.status_code == 200
            # Sign-ins are of people, who belong to several tenants.
            assert {row.get("tenant", "other") for row in answer.json()["results"]} <= {"other"}
        elif name == "api:why":
            assert caller.get(f"{address(name, rows)}?q={rows['context'].pk}").status_code == 404
        elif name.endswith("-export"):
            assert b"acme" not in b"".join(answer.streaming_content)
        elif name == "api:me":
            assert {tenant["slug"] for tenant in answer.json()["tenants"]} <= {"other"}
        elif name == "api:what-if-recommendation":
            assert answer.status_code == 400 or answer.json()["tenant"] == "other"
            assert caller.get(address(name, rows) + "?tenant=acme").status_code == 404
        elif name in ("api:usage", "api:explore"):
            assert answer.json()["points" if name == "api:usage" else "groups"] == []
            assert caller.get(address(name, rows) + "?tenant=acme").status_code == 404
        elif name == "api:savings":
            assert answer.json()["rows"] == []
            assert caller.get(address(name, rows) + "?tenant=acme").status_code == 404
        elif name == "api:alert-rules":
            assert {rule["tenant"] for rule in answer.json()} == {None}
            assert caller.get(address(name, rows) + "?tenant=acme").status_code == 404
        elif name == "api:incident-mail":
            assert answer.status_code == (200 if caller is callers["x"] else 403)
        elif name == "api:prices":
            assert answer.status_code == 200
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


def page_address(name, rows):
    kind = name.removeprefix("dashboard:").split("-")[0]
    if name == "dashboard:tenant":
        return reverse(name, args=[rows["tenant"].slug])
    if name == "dashboard:alert-rule":
        return reverse(name, args=["hit_rate"])
    if name == "dashboard:tiers-reclaim":
        return reverse(name, args=[rows["tenant"].slug, next(iter(NOW))])
    try:
        return reverse(name)
    except NoReverseMatch:  # of one row
        return reverse(name, args=[rows[kind].pk])


@pytest.fixture
def answering(monkeypatch):
    """The probes of the platform's servers, which pages read: these were asked."""
    answer = probes.Answer(True, "1", datetime.now(UTC))
    monkeypatch.setattr(probes.Probe, "read", lambda probe: answer)


@pytest.mark.usefixtures("answering")
@pytest.mark.parametrize("name", sorted({name for name, _ in PAGES}))
def test_each_person_gets_what_the_table_of_pages_says(world, name):
    rows, callers = world
    for method in METHODS:
        expected = PAGES.get((name, method), (405,) * 4)
        for letter, status in zip("xvms", expected, strict=True):
            if name == "dashboard:context-delete":  # each who may, takes one away
                rows["context"] = make_context(rows["space"], method + letter)
            answer = getattr(callers[letter], method)(page_address(name, rows))
            assert answer.status_code == status, (method, letter, answer.content)
        for letter in "ntrwckop":  # keys open no page
            answer = getattr(callers[letter], method)(page_address(name, rows))
            assert is_signed_out(answer, name, method), (method, letter)
        assert is_signed_out(getattr(Client(), method)(page_address(name, rows)), name, method)


def is_signed_out(answer, name, method):
    if name == "dashboard:palette":
        return answer.status_code == 401
    return answer.status_code == 302 and answer["Location"].startswith("/login/?next=")


def test_the_admin_is_closed_to_members_and_keys(world):
    """What staff do there: tests/platform_/test_admin.py."""
    _, callers = world
    for path in ADMIN:
        for caller in (Client(), callers["m"], callers["o"]):
            for answer in (caller.get(path), caller.post(path)):
                assert answer.status_code == 302, path
                assert answer["Location"].startswith("/admin/login/?next="), path


def test_the_table_holds_every_socket():
    assert {str(entry.pattern) for entry in websocket_urlpatterns} == set(SOCKETS)


@database_sync_to_async
def stage():
    tenant = make_tenant("acme")
    people = {
        "v": make_person("viewer", acme="viewer"),
        "m": make_person("member", acme="team"),
        "s": make_person("staff", staff=True),
        "x": make_person("outsider"),
    }
    return tenant, people


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("path", SOCKETS)
async def test_each_person_hears_on_a_socket_of_their_tenants_only(valkey_bus, path):
    tenant, people = await stage()
    sockets = {letter: await Socket.open(person, path) for letter, person in people.items()}
    for socket in sockets.values():
        assert await socket.hear() == {"hello": True}
    await database_sync_to_async(live.hint_on_commit)(tenant.pk)
    for letter, socket in sockets.items():
        if letter in SOCKETS[path]:
            assert set(await socket.hear()) == {"seq"}, letter
    assert await sockets["x"].receive_nothing(0.5)
    for socket in sockets.values():
        await socket.leave()
    nobody = await Socket.open(AnonymousUser(), path)
    closed = await nobody.receive_output(30)
    assert (closed["type"], closed["code"]) == ("websocket.close", SIGNED_OUT)
