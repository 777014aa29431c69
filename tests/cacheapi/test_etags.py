"""If-Match: a change applies only to the object as its caller read it. If-None-Match: 304."""

import re

import pytest
from django.db import connection, transaction
from drf_spectacular.generators import SchemaGenerator

from base import preconditions
from cacheapi.base.etags import Tagged
from catalog.models import Pin
from retention.models import RetentionRule
from retention.services import change_rule
from support.rows import make_context, make_everything, make_space, make_tenant
from tenants.audit import SYSTEM

pytestmark = [pytest.mark.integration, pytest.mark.django_db]

STALE = '"0123456789abcdef"'


def changes():
    """(operation, method, address) of each change of one object."""
    for address, path in SchemaGenerator().get_schema(request=None, public=True)["paths"].items():
        for method, operation in path.items():
            names = {parameter["name"] for parameter in operation.get("parameters", ())}
            if "If-Match" in names:
                yield operation["operationId"], method, address


@pytest.fixture
def rule(tenant):
    return make_everything(tenant)["rule"]


def kind_of(answer):
    return answer.json()["type"].rsplit("/", 1)[-1]


class TestIfMatch:
    def test_a_change_needs_the_tag_of_the_row_as_it_is(self, operator, rule):
        path = f"/api/v1/rules/{rule.pk}"
        read = operator.get(path)["ETag"]
        changed = operator.send("patch", path, {"order": 3}, headers={"If-Match": read})
        assert changed.status_code == 200
        assert changed["ETag"] == operator.get(path)["ETag"] != read
        late = operator.send("patch", path, {"order": 4}, headers={"If-Match": read})
        assert (late.status_code, kind_of(late)) == (412, "precondition-failed")
        assert late.json()["field"] == "If-Match"
        assert RetentionRule.unscoped.get(pk=rule.pk).order == 3

    @pytest.mark.parametrize("form", ["*", '"x", {}', "W/{}", "{},{}"])
    def test_forms_that_match(self, operator, rule, form):
        path = f"/api/v1/rules/{rule.pk}"
        tag = operator.get(path)["ETag"]
        sent = {"If-Match": form.replace("{}", tag)}
        assert operator.send("patch", path, {"order": 3}, headers=sent).status_code == 200

    @pytest.mark.parametrize("form", ["5f2c", "", '"a" "b"', '"a', "W/", "*, *"])
    def test_a_malformed_one_is_refused_by_name(self, operator, rule, form):
        sent = {"If-Match": form}
        answer = operator.send("patch", f"/api/v1/rules/{rule.pk}", {"order": 3}, headers=sent)
        assert (answer.status_code, answer.json()["field"]) == (400, "If-Match")

    def test_a_repetition_gets_the_first_answer_although_the_row_has_changed_by_it(
        self, operator, rule
    ):
        path = f"/api/v1/rules/{rule.pk}"
        sent = {"If-Match": operator.get(path)["ETag"], "Idempotency-Key": "once"}
        first, second = (operator.send("patch", path, {"order": 3}, headers=sent) for _ in "12")
        assert (first.status_code, second.status_code) == (200, 200)
        assert second["Idempotent-Replayed"] == "true"

    def test_of_a_context_only_the_row_counts_and_not_what_is_told_beside_it(self, team, tenant):
        context = make_context(make_space(tenant))
        path = f"/api/v1/contexts/{context.pk}"
        read = team.get(path)["ETag"]
        pin_of_a_neighbour(context)
        assert team.get(path)["ETag"] != read
        sent = {"If-Match": read}
        assert team.send("post", f"{path}/unpin", headers=sent).status_code != 412

    def test_another_tenants_row_is_404_whatever_the_tag(self, team):
        other = make_context(make_space(make_tenant("other")))
        answer = team.delete(f"/api/v1/contexts/{other.pk}", headers={"If-Match": STALE})
        assert answer.status_code == 404


def pin_of_a_neighbour(context):
    """Part of the answer, not of the row."""
    Pin.unscoped.create(
        context=context,
        tenant=context.tenant,
        owner="key:0",
        owner_name="x",
        until=context.created_at.replace(year=2100),
    )


BODIES = {
    "contexts_pin": {"for": "2h"},
    "contexts_extend": {"for": "2h"},
    "incidents_mute": {"for": "2h"},
    "incidents_update": {"owner": ""},
    "prices_update": {"gpu_hour": "3"},
    "stores_update": {"priority": 5},
    "move_rules_update": {"position": 5},
    "rules_update": {"order": 3},
    "members_update": {"role": "viewer"},
    "policies_update": {"priority": 2},
    "warm_policies_update": {"is_paused": True},
    "webhooks_update": {"is_active": False},
    "tenants_set_quota": {"cold_bytes": 5},
}


@pytest.mark.parametrize("is_early", [True, False], ids=["early", "locked"])
def test_every_change_of_an_object_is_refused_with_a_stale_tag(
    operator, tenant, monkeypatch, is_early
):
    """`locked`: the row changes after the first look at it. A service that fails here does not
    call `base.preconditions.require_unchanged` in its transaction, before its first write."""
    if not is_early:
        monkeypatch.setattr(Tagged, "_is_as_seen", lambda view, row, tags: True)
    make_everything(tenant)
    seen = {}
    for name, method, address in changes():
        resource = address.split("/")[3]
        if resource == "prices":  # no list
            row = operator.get("/api/v1/prices").json()
        else:
            found = operator.get(f"/api/v1/{resource}?page_size=1").json()["results"]
            row = found[0] if found else {}
        key = {"tenants": "slug", "policies": "tenant"}.get(resource, "id")
        path = re.sub(r"\{[a-z]+\}", str(row.get(key)), address, count=1)
        if "{" in path:  # a row inside of another: its own test
            continue
        if method == "delete" and resource in ("tenants", "spaces", "stores"):
            path += f"?confirm={row.get('slug', row.get('name'))}"
        body = BODIES.get(name, {"name": row.get("name")} if method == "patch" else None)
        answer = operator.send(method, path, body, headers={"If-Match": STALE})
        seen[name] = answer.status_code if answer.status_code == 412 else answer.content
    assert len(seen) > 10
    assert {name: answer for name, answer in seen.items() if answer != 412} == {}


@pytest.mark.django_db(transaction=True)
def test_the_check_holds_in_the_transaction_that_changes_the_row(operator, tenant, monkeypatch):
    """Another request changes the row after the first look at it: 412, and its change stays."""
    rule = make_everything(tenant)["rule"]
    path = f"/api/v1/rules/{rule.pk}"
    look = Tagged._is_as_seen

    def look_and_lose(view, row, tags):
        seen = look(view, row, tags)
        change_rule(rule=rule, actor=SYSTEM, order=77)
        return seen

    monkeypatch.setattr(Tagged, "_is_as_seen", look_and_lose)
    sent = {"If-Match": operator.get(path)["ETag"]}
    answer = operator.send("patch", path, {"order": 3}, headers=sent)
    assert (answer.status_code, kind_of(answer)) == (412, "precondition-failed")
    assert RetentionRule.unscoped.get(pk=rule.pk).order == 77


@pytest.mark.django_db(transaction=True)
def test_a_check_outside_of_a_transaction_is_a_bug(tenant):
    expected = preconditions.Expected(type(tenant), tenant.pk, lambda: True)
    with preconditions.expecting(expected):
        assert not connection.in_atomic_block
        with pytest.raises(RuntimeError, match="inside the transaction"):
            preconditions.require_unchanged(tenant)
        with transaction.atomic():
            preconditions.require_unchanged(tenant)
    assert expected.is_checked


class TestIfNoneMatch:
    def test_an_answer_that_the_caller_has_is_not_sent_again(self, team, tenant):
        rule = make_everything(tenant)["rule"]
        path = f"/api/v1/rules/{rule.pk}"
        tag = team.get(path)["ETag"]
        for known in (tag, f'"x", W/{tag}', "*"):
            same = team.get(path, headers={"If-None-Match": known})
            assert (same.status_code, same.content, same["ETag"]) == (304, b"", tag)
        for other in (STALE, "nonsense"):
            assert team.get(path, headers={"If-None-Match": other}).status_code == 200

    def test_of_a_context_the_whole_answer_counts(self, team, tenant):
        context = make_context(make_space(tenant))
        path = f"/api/v1/contexts/{context.pk}"
        whole = team.get(path)["ETag"]
        assert team.get(path, headers={"If-None-Match": whole}).status_code == 304
        pin_of_a_neighbour(context)
        assert team.get(path, headers={"If-None-Match": whole}).status_code == 200
