"""What a request says is read whole or refused by name: query strings, bodies, addresses."""

import base64
import json
import re
from urllib.parse import parse_qs, urlsplit

import pytest
from django.test import Client
from drf_spectacular.generators import SchemaGenerator

from cacheapi.teams.contexts.view import ContextsView
from catalog.models import Context
from support.rows import (
    make_context,
    make_everything,
    make_key,
    make_person,
    make_space,
    make_tenant,
)
from tenants.models import ApiKey, AuditEvent

pytestmark = [pytest.mark.integration, pytest.mark.django_db]

HUGE = 9223372036854775808


def refused(answer, field):
    assert answer.status_code == 400, answer.content
    problem = answer.json()
    assert problem["field"] == field
    assert problem["detail"].startswith(f"{field}: ")
    return problem["detail"]


def operations():
    """(method, path, parameters in the query) of each documented operation."""
    for path, methods in SchemaGenerator().get_schema(request=None, public=True)["paths"].items():
        for method, operation in methods.items():
            parameters = operation.get("parameters", ())
            query = {each["name"] for each in parameters if each["in"] == "query"}
            yield method, path, query


@pytest.fixture
def world(operator, node):
    """Sends to an operation's address, filled with rows that exist, as who may."""
    tenant = make_tenant("filled")
    rows = make_everything(tenant)
    rows["audit"] = AuditEvent.unscoped.filter(tenant=tenant).first()
    of_node = Client(headers={"Authorization": f"Bearer {make_key(tenant, 'node')}"})

    person = Client()
    person.force_login(make_person("somebody", staff=True))

    def send(method, path, query="", **options):
        resource = path.split("/")[3]
        if resource == "incident-mail":  # of people, not keys
            return person.generic(method.upper(), path + query, **options)
        odd = {
            **{"policies": "policy", "audit": "audit", "families": "family"},
            **{"family-members": "member", "members": "membership"},
            **{"warm-policies": "warm_policy", "sign-ins": "signin", "move-rules": "move_rule"},
        }
        one = odd.get(resource, resource.rstrip("s"))
        row = rows["node"] if resource == "sessions" else rows.get(one)
        key = getattr(row, "uuid" if resource == "events" else "pk", "")
        key = "filled" if resource in ("tenants", "policies") else key
        key = "hit_rate" if resource == "alert-rules" else key
        if "{webhook}" in path:
            path, key = path.replace("{webhook}", str(key)), rows["delivery"].pk
        caller = of_node if path.startswith("/cache/") else operator
        return caller.generic(method.upper(), re.sub(r"{.*?}", str(key), path) + query, **options)

    return send


class TestEveryOperation:
    def test_refuses_a_parameter_that_it_does_not_know(self, world):
        for method, path, known in operations():
            assert "lable" not in known
            answer = world(method, path, "?lable=old")
            detail = refused(answer, "lable")
            assert ("label" in known) == ("did you mean label?" in detail)

    def test_takes_the_parameters_that_are_documented(self, world):
        for method, path, known in operations():
            for name in known:
                answer = world(method, path, f"?{name}=")
                assert "is empty" in refused(answer, name), (method, path)

    def test_refuses_a_member_that_it_does_not_know_and_what_is_no_json(self, world):
        for method, path, known in operations():
            if method == "get":
                continue
            query = "?tenant=filled" if "tenant" in known else ""
            sent = {"query": query, "content_type": "application/json"}
            refused(world(method, path, data=json.dumps({"surprise": 1}), **sent), "surprise")
            broken = world(method, path, data='{"at": ', **sent)
            assert (broken.status_code, broken.json()["type"]) == (400, "/problems/malformed")
            other = world(method, path, query, data="a=1", content_type="text/plain")
            assert other.status_code == 415


class TestQueries:
    @pytest.mark.parametrize(
        ("query", "field"),
        [
            ("pinned=ture", "pinned"),
            ("pinned=", "pinned"),
            ("label=", "label"),
            ("label=a&label=b", "label"),
            ("label=%00", "label"),
            (f"name={'n' * 201}", "name"),
            ("ordering=size", "ordering"),
            ("ordering=-updated_at,name", "ordering"),
            ("page_size=-1", "page_size"),
            ("page_size=0", "page_size"),
            ("page_size=501", "page_size"),
            ("page_size=1e2", "page_size"),
            ("space=x", "space"),
            ("space=1.5", "space"),
            ("space=0", "space"),
            (f"space={HUGE}", "space"),
            ("cursor=x", "cursor"),
            ("cursor=cD0yMDI2", "cursor"),
            ("cursor=bz01", "cursor"),
            ("format=json", "format"),
        ],
    )
    def test_what_can_not_be_read_is_refused_by_name(self, team, tenant, query, field):
        make_context(make_space(tenant))
        refused(team.get(f"/api/v1/contexts?{query}"), field)

    @pytest.mark.parametrize("resource", ["contexts", "nodes", "segments", "rules"])
    def test_numbers_that_no_row_can_have(self, team, resource):
        refused(team.get(f"/api/v1/{resource}?space={HUGE}"), "space")
        assert team.get(f"/api/v1/{resource}?space={HUGE - 1}").json()["results"] == []
        assert team.get(f"/api/v1/{resource}/{HUGE}").status_code == 404
        assert team.get(f"/api/v1/{resource}/%00").status_code == 400

    def test_a_detail_and_usage_are_as_strict(self, team, tenant):
        context = make_context(make_space(tenant))
        refused(team.get(f"/api/v1/contexts/{context.pk}?blocks=yes"), "blocks")
        refused(team.get("/api/v1/usage?range=15m&range=1h"), "range")
        refused(team.get("/api/v1/usage?tenant=%00"), "tenant")

    def test_a_cursor_belongs_to_one_list_and_one_order(self, team, tenant):
        space = make_space(tenant)
        [make_context(space, f"c{n}") for n in range(3)]
        following = team.get("/api/v1/contexts?page_size=1").json()["next"]
        cursor = parse_qs(urlsplit(following).query)["cursor"][0]
        refused(team.get(f"/api/v1/contexts?ordering=name&cursor={cursor}"), "cursor")
        refused(team.get(f"/api/v1/jobs?cursor={cursor}"), "cursor")
        made = "2027-01-31T18:00:00+00:00"
        pk = "6f1ad33f-9d20-4ae2-a2c6-8e0fd9c2a3b1"
        order = "catalog.context -created_at"
        for forged in (
            *([order, False, value, pk] for value in ("yesterday", 5, [], None, "9" * 30)),
            *([order, False, made, pk] for pk in ("x", 5, None, "")),
            *([order, backwards, made, pk] for backwards in (0, None, "true")),
            *([order, False, made], [], {}, None, 5),
            *(["catalog.context name", False, name, pk] for name in ("a\0", "\ud800")),
        ):
            text = base64.urlsafe_b64encode(json.dumps(forged).encode()).decode()
            sort = "name" if forged and "context name" in str(forged) else "-created_at"
            refused(team.get("/api/v1/contexts", {"cursor": text, "ordering": sort}), "cursor")
        for pk in (-HUGE - 1, HUGE, "1.5", True):
            forged = ["catalog.segment -id", False, "1", str(pk)]
            text = base64.urlsafe_b64encode(json.dumps(forged).encode()).decode()
            refused(team.get("/api/v1/segments", {"cursor": text}), "cursor")

    def test_an_order_is_asked_for_by_name(self, team, tenant):
        space = make_space(tenant)
        [make_context(space, name) for name in ("b", "c", "a")]

        def names(query):
            return [row["name"] for row in team.get(f"/api/v1/contexts{query}").json()["results"]]

        assert names("") == ["a", "c", "b"]  # the newest first
        assert names("?ordering=name") == ["a", "b", "c"]
        assert names("?ordering=-name") == ["c", "b", "a"]


class TestWalks:
    def test_a_walk_sees_each_row_once_while_rows_change(self, team, tenant):
        space = make_space(tenant)
        made = [make_context(space, f"c{n}") for n in range(9)]
        seen, path = [], "/api/v1/contexts?page_size=2"
        while path:
            page = team.get(path).json()
            seen += [row["name"] for row in page["results"]]
            for context in made:  # all are in use meanwhile
                beat = {"updated_at": context.updated_at.replace(year=2030 + len(seen))}
                Context.unscoped.filter(pk=context.pk).update(**beat)
            path = page["next"]
        assert sorted(seen) == [f"c{n}" for n in range(9)]

    @pytest.mark.parametrize(
        "resource", ["contexts", "nodes", "segments", "jobs", "audit", "keys", "spaces", "rules",
                     "policies", "tenants"]
    )  # fmt: skip
    def test_every_list_is_walked_forth_and_back(self, operator, resource):
        for _ in range(2):
            make_everything(make_tenant())
        whole = operator.get(f"/api/v1/{resource}").json()["results"]
        assert len(whole) > 1
        for ordering in operations_of(resource):
            path = path_of(resource, ordering)
            forth, pages = [], []
            while path:
                page = operator.get(path).json()
                forth, pages, path = forth + page["results"], [*pages, page], page["next"]
            assert len(forth) == len(whole), ordering
            assert all(row in forth for row in whole)
            cursor = pages[-1]["previous_cursor"]
            before = operator.get(f"{path_of(resource, ordering)}&cursor={cursor}").json()
            assert before == operator.get(pages[-1]["previous"]).json()
            assert before["results"] == pages[-2]["results"]
            assert pages[-1]["next_cursor"] is None
            assert pages[0]["previous_cursor"] is None
            counted = operator.get(f"{path_of(resource, ordering)}&total=true").json()
            assert (counted["total"], "total" in before) == (len(whole), False)

    def test_rows_without_a_value_come_once_at_the_end_or_the_beginning(
        self, team, tenant, monkeypatch
    ):
        """Null is the smallest value, on both databases."""
        monkeypatch.setattr(ContextsView, "orderings", ("-created_at", "last_used_at"))
        space = make_space(tenant)
        made = [make_context(space, f"c{n}") for n in range(5)]
        for n in (1, 3):
            used = {"last_used_at": made[n].created_at.replace(year=2030 + n)}
            Context.unscoped.filter(pk=made[n].pk).update(**used)
        for ordering, at_end in (("-last_used_at", True), ("last_used_at", False)):
            path, names = path_of("contexts", ordering), []
            while path:
                page = team.get(path).json()
                names += [row["name"] for row in page["results"]]
                path = page["next"]
            assert sorted(names) == ["c0", "c1", "c2", "c3", "c4"]
            used = names[:2] if at_end else names[-2:]
            assert used == (["c3", "c1"] if at_end else ["c1", "c3"])


def path_of(resource, ordering):
    return f"/api/v1/{resource}?page_size=1&ordering={ordering}"


def operations_of(resource):
    """The orderings that are documented for a list."""
    paths = SchemaGenerator().get_schema(request=None, public=True)["paths"]
    for parameter in paths[f"/api/v1/{resource}"]["get"]["parameters"]:
        if parameter["name"] == "ordering":
            return parameter["schema"]["enum"]
    raise AssertionError(f"{resource} documents no ordering")


class TestBodies:
    @pytest.mark.parametrize(
        ("action", "body", "field"),
        [
            ("expire", {"when": "2027-01-01T00:00:00Z"}, "when"),
            ("unpin", {"until": "2027-01-01T00:00:00Z"}, "until"),
            ("pin", {"until": "2027-01-01"}, "until"),
            ("pin", {"until": "2027-01-01T00:00:00"}, "until"),
            ("pin", {"until": "0001-01-01T00:00:00+23:59"}, "until"),
            ("pin", {"until": 1893456000}, "until"),
            ("extend", {"for_s": 1.0}, "for_s"),
            ("extend", {"for_s": True}, "for_s"),
            ("extend", {"for_s": HUGE}, "for_s"),
            ("extend", {"for": "1h", "for_s": 3600}, "for"),
            ("extend", {"for": 3600}, "for"),
            ("extend", {"for": "1mo"}, "for"),
            ("extend", {"for": "P1M"}, "for"),
            ("extend", {"for": "366d"}, "for"),
            ("extend", {"for": "0s"}, "for"),
            ("extend", {}, "for"),
            ("pin", {"for": "2h", "until": "2027-01-01T00:00:00Z"}, "until"),
        ],
    )
    def test_an_action_does_nothing_when_its_body_is_not_understood(
        self, team, tenant, action, body, field
    ):
        context = make_context(make_space(tenant))
        refused(team.send("post", f"/api/v1/contexts/{context.pk}/{action}", body), field)
        row = Context.unscoped.get(pk=context.pk)
        assert (row.expired_at, row.pinned_until, row.extended_until) == (None, None, None)

    def test_a_word_of_a_few_is_refused_with_the_few(self, operator):
        answer = operator.send("post", "/api/v1/jobs", {"kind": "compct"})
        assert re.search(r"need one of .*\bcompact\b", refused(answer, "kind"))

    def test_a_key_stays_when_its_revocation_is_not_understood(self, operator, tenant):
        make_key(tenant, "team")
        key = ApiKey.unscoped.get(tenant=tenant)
        answer = operator.send("post", f"/api/v1/keys/{key.pk}/revoke", {"at": "tomorrow"})
        refused(answer, "at")
        assert ApiKey.unscoped.get(pk=key.pk).revoked_at is None

    @pytest.mark.parametrize(
        "raw",
        [
            b'{"for_s": 1e999}',
            b'{"for_s": 5, "for_s": 6}',
            b'{"for_s": 5, "x\\ud800": 1}',
            b'{"x": "\xff"}',
            b'{"x": "\xed\xa0\x80"}',
            b"[" * 100_000,
            b"9" * 5000,
        ],
    )
    def test_text_and_numbers_that_nothing_can_store(self, team, tenant, raw):
        context = make_context(make_space(tenant))
        path = f"/api/v1/contexts/{context.pk}/extend"
        answer = team.generic("POST", path, data=raw, content_type="application/json")
        assert (answer.status_code, answer.json()["type"]) == (400, "/problems/malformed")

    def test_a_body_in_chunks_is_refused_instead_of_not_read(self, team, tenant):
        context = make_context(make_space(tenant))
        path = f"/api/v1/contexts/{context.pk}/expire"
        answer = team.generic("POST", path, headers={"Transfer-Encoding": "chunked"})
        assert answer.status_code == 411


@pytest.mark.parametrize("bad", ["\ud800", "a\0b"])
def test_text_of_a_node_that_nothing_can_store_is_named(node, handshake, bad):
    """In any member of any body, also as a member's name."""

    def send(body, path="/cache/v1/sessions"):
        return node.generic("POST", path, data=json.dumps(body), content_type="application/json")

    refused(send(handshake | {"node": bad}), "node")
    refused(send(handshake | {"engine": {"name": bad, "version": "1"}}), "engine.name")
    for name in ("model", "revision", "layout"):
        identity = handshake["identity"] | {name: bad}
        refused(send(handshake | {"identity": identity}), f"identity.{name}")
    strange = send({"seq": 1, "load_ms": {bad: 1}}, f"/cache/v1/sessions/{make_uuid()}/heartbeat")
    refused(strange, "load_ms")


def make_uuid():
    return "6f1ad33f-9d20-4ae2-a2c6-8e0fd9c2a3b1"


def test_one_of_many_members_that_occurs_twice_is_found_at_once(operator):
    """Looking for it name by name took an hour of a web process for a body of 2 MB."""
    members = [*(f'"{n:x}":0' for n in range(200_000)), f'"{199_999:x}":0']
    body = "{" + ",".join(members) + "}"
    answer = operator.post("/api/v1/keys", body, content_type="application/json")
    assert answer.status_code == 400
    assert "30d3f occurs twice" in answer.json()["detail"].replace("'", "")
