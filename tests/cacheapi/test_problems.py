"""Whatever goes wrong under /api and /cache is a problem document."""

import re
from pathlib import Path

import pytest
from django.test import Client

from base import problems
from cacheapi.nodes import sessions
from cacheapi.teams.rules import RulesView
from retention.models import RetentionRule
from support.rows import make_everything

pytestmark = [pytest.mark.integration, pytest.mark.django_db]

ROOT = Path(__file__).resolve().parents[2]


def document(answer, status):
    assert answer.status_code == status
    assert answer["Content-Type"] == "application/problem+json"
    assert answer["X-Request-ID"]
    problem = answer.json()
    assert set(problem) >= {"type", "title", "status", "detail"}
    assert problem["status"] == status
    return problem


@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize(
    "path", ["/api/v1/nothing", "/api/", "/cache/v2/x", "/cache/v1/sessions/x"]
)
def test_an_unknown_address_is_404(client, settings, path, debug):
    settings.DEBUG = debug
    assert document(client.get(path), 404)["type"] == "/problems/not-found"


def test_a_wrong_method_is_405(team, node):
    answer = team.delete("/api/v1/contexts")
    assert document(answer, 405)["type"] == "/problems/method-not-allowed"
    assert answer["Allow"]
    document(node.get("/cache/v1/sessions"), 405)


def test_a_page_that_cannot_be_is_406(team):
    document(team.get("/api/v1/contexts", headers={"Accept": "application/xml"}), 406)


@pytest.mark.parametrize("debug", [False, True])
def test_a_bug_is_500_without_its_text(node, handshake, monkeypatch, settings, log_lines, debug):
    settings.DEBUG = debug

    def fail(*args, **kwargs):
        raise RuntimeError("the secret of the bug")

    monkeypatch.setattr(sessions, "checked", fail)
    node.raise_request_exception = False
    answer = node.send("post", "/cache/v1/sessions", handshake)
    problem = document(answer, 500)
    assert "secret" not in str(problem)
    (line,) = [line for line in log_lines() if "request_failed" in line]
    assert f"request_id={answer['X-Request-ID']}" in line
    assert re.search(r" key=[a-z0-9]{10} .* tenant=\S+ tenant_id=\d+", line)


def test_a_row_that_another_request_removed_meanwhile_is_404(operator, tenant, monkeypatch):
    """Between the look at it and the lock for its change."""
    rule = make_everything(tenant)["rule"]
    find = RulesView.get_object

    def find_and_lose(view):
        found = find(view)
        RetentionRule.unscoped.filter(pk=found.pk).delete()
        return found

    monkeypatch.setattr(RulesView, "get_object", find_and_lose)
    answer = operator.send("patch", f"/api/v1/rules/{rule.pk}", {"order": 3})
    assert document(answer, 404)["type"] == "/problems/not-found"


def test_a_request_keeps_its_callers_id_when_it_is_a_plain_one(client):
    answer = client.get("/api/v1/x", headers={"X-Request-ID": "trace-1.a_b"})
    assert answer["X-Request-ID"] == "trace-1.a_b"
    answer = client.get("/api/v1/x", headers={"X-Request-ID": "a b\nc" * 30})
    assert len(answer["X-Request-ID"]) == 32


def test_other_addresses_keep_their_html(client):
    assert client.get("/nothing-here/")["Content-Type"].startswith("text/html")


def test_each_kind_has_a_page_that_says_what_to_do():
    client = Client()
    for kind, (status, title, remedy) in problems.KINDS.items():
        text = client.get(f"/problems/{kind}").content.decode()
        assert title in text
        assert str(status) in text
        assert remedy in text
    assert client.get("/problems/none").status_code == 404


def test_only_registered_kinds_are_raised():
    import re

    used = set()
    for folder in ("platform", "cacheapi", "dashboard", "metrics", "workers"):
        for path in (ROOT / folder).rglob("*.py"):
            used |= set(re.findall(r"Problem\(\s*\"([a-z-]+)\"", path.read_text()))
    assert used
    assert used <= set(problems.KINDS)


@pytest.mark.parametrize("method", ["get", "post"])
def test_an_address_with_a_slash_too_many_is_a_problem_that_says_so(method):
    client = Client(enforce_csrf_checks=True)  # as a browser or curl without a token meets it
    response = getattr(client, method)("/api/v1/contexts/")
    assert response.status_code == 404
    assert response["Content-Type"] == "application/problem+json"
    assert "end without a slash" in response.json()["detail"]
