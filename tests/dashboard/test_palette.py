"""Ctrl-K finds what a person may see, of each kind a few, with statements that stay few."""

from uuid import UUID

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from catalog.models import Job
from dashboard.palette import EACH
from support.rows import make_context, make_key, make_session, make_space
from tenants.scope import tenant_scope

pytestmark = [pytest.mark.integration, pytest.mark.django_db]


@pytest.fixture
def stage(acme, globex, people):
    for tenant in (acme, globex):
        space = make_space(tenant, f"{tenant.slug}-llama")
        make_session(space, f"gpu-{tenant.slug}")
        for n in range(10):
            make_context(space, f"repo-{tenant.slug}-{n:02}")
        make_key(tenant, "team")
        with tenant_scope(tenant.pk):
            Job.objects.create(pk=UUID(int=tenant.pk << 96), kind="flush")
    return people


def found(browser, typed: str) -> list[dict[str, str]]:
    answer = browser.get("/palette.json", {"q": typed})
    assert answer.status_code == 200, answer.content
    return answer.json()["results"]


def labels(browser, typed: str, kind: str) -> list[str]:
    return [one["label"] for one in found(browser, typed) if one["kind"] == kind]


def test_objects_are_found_by_name_or_id(stage, acme):
    operator = stage["operator"]
    assert labels(operator, "acm", "Tenants") == ["acme"]
    assert labels(operator, "globex-ll", "Spaces") == ["globex-llama"]
    assert labels(operator, "gpu-acme", "Nodes") == ["gpu-acme"]
    assert labels(operator, "repo-acme-03", "Contexts") == ["repo-acme-03"]
    assert labels(operator, "team key", "API keys") == ["team key", "team key"]
    job = str(UUID(int=acme.pk << 96))
    for typed in (job, job[:8]):
        assert labels(operator, typed, "Jobs") == [f"flush {job[:8]}"]
    assert len(labels(operator, "flush", "Jobs")) == 2


def test_a_word_inside_of_a_name_finds_it_too(stage):
    assert labels(stage["operator"], "globex-07", "Contexts") == ["repo-globex-07"]


def test_a_kind_has_few_results_and_the_same_statements_for_many_rows(stage, acme):
    with CaptureQueriesContext(connection) as few:
        assert len(labels(stage["operator"], "repo", "Contexts")) == EACH
    space = make_space(acme, "another")
    for n in range(30):
        make_context(space, f"repo-{n}")
    with CaptureQueriesContext(connection) as many:
        found(stage["operator"], "repo")
    assert len(many) == len(few)


def test_members_find_nothing_of_others(stage):
    for typed in ("globex", "gpu", "repo", "team", "flush", "llama"):
        assert "globex" not in str(found(stage["team"], typed)), typed
    assert found(stage["stranger"], "acme") == []
    assert labels(stage["team"], "repo-acme-01", "Contexts") == ["repo-acme-01"]


def test_pages_and_actions_stand_there_before_anything_is_typed(stage):
    kinds = {one["kind"] for one in found(stage["viewer"], "")}
    assert kinds == {"Pages", "Actions"}
    assert "Make a tenant" not in labels(stage["viewer"], "", "Actions")
    assert "Make a tenant" in labels(stage["operator"], "", "Actions")


@pytest.mark.parametrize("typed", ["%", "_", "'", "\U0010ffff", "x" * 3000, "🦆"])
def test_any_text_is_only_text(stage, typed):
    assert labels(stage["operator"], typed, "Contexts") == []


def test_every_result_leads_to_a_page(stage):
    results = [
        one
        for typed in ("", "acme", "repo-acme-01", "gpu-acme", "flush", "team key")
        for one in found(stage["operator"], typed)
    ]
    for url in {one["url"] for one in results if not one["does"]}:
        assert stage["operator"].get(url).status_code == 200, url
