"""The audit over REST: caller, address and key of each change; filters; export; sign-ins."""

import json
from datetime import timedelta

import pytest
from django.contrib.auth import authenticate
from django.test import Client, RequestFactory
from django.utils import timezone

from support.rows import make_context, make_person, make_space
from tenants import signing_in
from tenants.models import AuditEvent
from tiering import pruning

pytestmark = [pytest.mark.integration, pytest.mark.django_db]

AUDIT = "/api/v1/audit"


def rows(caller, query=""):
    return caller.get(f"{AUDIT}?{query}").json()["results"]


def delete_a_context(caller, tenant):
    context = make_context(make_space(tenant, f"s{timezone.now().timestamp()}"))
    answer = caller.delete(f"/api/v1/contexts/{context.pk}", REMOTE_ADDR="192.0.2.7")
    assert answer.status_code == 204


def test_a_change_names_its_key_and_address(team, tenant):
    delete_a_context(team, tenant)
    (event,) = rows(team, "action=context.delete")
    assert event["address"] == "192.0.2.7"
    assert event["key_id"] == team.get("/api/v1/me").json()["key"]["id"]
    for query in (f"key_id={event['key_id']}", "address=192.0.2.7", "object_type=context"):
        assert rows(team, query) == [event]
    assert rows(team, "address=192.0.2.8") == []


def test_a_header_that_anybody_can_send_is_not_the_address(team, tenant):
    context = make_context(make_space(tenant))
    forged = {"X-Forwarded-For": "203.0.113.1", "Forwarded": "for=203.0.113.1"}
    assert team.delete(f"/api/v1/contexts/{context.pk}", headers=forged).status_code == 204
    assert rows(team, "action=context.delete")[0]["address"] == "127.0.0.1"


def test_teams_do_not_see_where_operators_sit(team, operator, tenant):
    delete_a_context(operator, tenant)
    assert rows(operator, "action=context.delete")[0]["address"] == "192.0.2.7"
    assert rows(team, "action=context.delete")[0]["address"] == ""
    assert rows(team, "address=192.0.2.7") == []  # nor find out by asking


def test_a_time_is_cut_out(team, tenant):
    delete_a_context(team, tenant)
    event = AuditEvent.unscoped.get(action="context.delete")
    at, later = event.at.isoformat(), (event.at + timedelta(microseconds=1)).isoformat()
    for query, count in (
        ({"from": at, "to": later}, 1),
        ({"from": later}, 0),
        ({"to": at}, 0),
    ):
        found = team.get(AUDIT, {"action": "context.delete", **query}).json()["results"]
        assert len(found) == count
    answer = team.get(AUDIT, {"from": "yesterday"})
    assert (answer.status_code, answer.json()["field"]) == (400, "from")


def test_the_audit_is_exported_as_json_lines_with_the_filters_of_the_list(team, tenant):
    for _ in range(3):
        delete_a_context(team, tenant)
    answer = team.get(f"{AUDIT}/export?format=jsonl&action=context.delete")
    lines = b"".join(answer.streaming_content).splitlines()
    assert [json.loads(line) for line in lines] == rows(team, "action=context.delete")


def test_operators_see_who_signed_in_and_wrong_passwords_teams_do_not(team, operator):
    make_person("ann", acme="team")
    browser = Client(REMOTE_ADDR="192.0.2.9")
    for password in ("wrong", "pw"):
        browser.post("/login/", {"username": "ann", "password": password})
    found = [(row["action"], row["actor_name"], row["address"]) for row in rows(operator)]
    assert found[:2] == [("login", "ann", "192.0.2.9"), ("login.fail", "ann", "192.0.2.9")]
    assert not [row for row in rows(team) if row["action"].startswith("login")]


def test_a_flood_of_wrong_passwords_does_not_fill_the_table(db, monkeypatch):
    monkeypatch.setattr(signing_in, "KEPT_REFUSALS", 3)
    make_person("ann")
    for n in range(6):
        request = RequestFactory().post("/", REMOTE_ADDR=f"192.0.2.{n}")
        assert authenticate(request, username="ann", password="wrong") is None
    refused = AuditEvent.unscoped.filter(action="login.fail")
    pruning.prune()
    assert refused.count() == 6  # the limit on attempts still needs them
    refused.update(at=timezone.now() - 2 * signing_in.WINDOW)
    AuditEvent.unscoped.filter(action="login").update(at=timezone.now() - timedelta(days=1))
    pruning.prune()
    assert sorted(refused.values_list("address", flat=True)) == [
        *("192.0.2.3", "192.0.2.4", "192.0.2.5"),
    ]
