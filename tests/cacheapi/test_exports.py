"""Exports of lists: CSV and JSON Lines with the list's filters and order, in bounded steps."""

import asyncio
import csv
import io
import json
import threading
from contextlib import ExitStack

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.core.handlers.asgi import ASGIRequest
from django.test import RequestFactory
from rest_framework.test import force_authenticate

from base import exports as streams
from base.problems import Problem
from cacheapi.base import exports
from cacheapi.base.exports import Exported
from cacheapi.teams.contexts.filters import ContextFilter
from cacheapi.teams.contexts.serializers import ContextSerializer
from cacheapi.teams.contexts.view import ContextsView as Listed
from catalog.models import Context
from support.rows import make_context, make_space, make_tenant
from tenants.principal import Principal

pytestmark = [pytest.mark.integration, pytest.mark.django_db]


class ExportedContexts(Exported):
    model = Context
    orderings = ("-created_at", "name")
    select = Listed.select
    defer = Listed.defer
    serializer_class = ContextSerializer
    filterset_class = ContextFilter


view = ExportedContexts.as_view({"get": "export"}, **ExportedContexts.export.kwargs)


@pytest.fixture
def export(tenant):
    """GET of an export by a key of the tenant; returns the response."""

    def send(query="", **headers):
        request = RequestFactory().get(f"/api/v1/contexts/export{query}", headers=headers)
        ids = frozenset({tenant.pk})
        force_authenticate(request, Principal("key:1", "key:x", "team", ids, ids))
        return view(request)

    return send


def text_of(answer):
    return b"".join(answer.streaming_content).decode()


@pytest.fixture
def space(tenant, monkeypatch):
    monkeypatch.setattr(exports, "STEP", 2)
    make_context(make_space(make_tenant("other")), "of-another-tenant")
    return make_space(tenant)


def test_csv_has_a_header_and_each_row_of_the_tenant_once_in_order(export, space):
    [make_context(space, f"c{n}") for n in range(5)]
    answer = export("?ordering=name")
    assert answer["Content-Type"] == "text/csv; charset=utf-8"
    assert answer["Content-Disposition"] == 'attachment; filename="contexts.csv"'
    rows = list(csv.DictReader(io.StringIO(text_of(answer))))
    assert [row["name"] for row in rows] == ["c0", "c1", "c2", "c3", "c4"]
    assert rows[0]["tenant"] == "acme"
    assert rows[0]["pinned_until"] == ""


def test_json_lines_are_the_rows_of_the_list_by_format_or_accept(export, space, team):
    [make_context(space, f"c{n}") for n in range(4)]
    listed = team.get("/api/v1/contexts").json()["results"]
    for answer in (export("?format=jsonl"), export(Accept="application/jsonl")):
        assert answer["Content-Type"].startswith("application/jsonl")
        assert [json.loads(line) for line in text_of(answer).splitlines()] == listed


def test_the_lists_filters_apply(export, space):
    make_context(space, "kept-1"), make_context(space, "left-out"), make_context(space, "kept-2")
    text = text_of(export("?format=jsonl&search=kept&ordering=name"))
    assert [json.loads(line)["name"] for line in text.splitlines()] == ["kept-1", "kept-2"]


@pytest.mark.parametrize("query", ["?format=xml", "?serach=a", "?page_size=5", "?ordering=blocks"])
def test_a_parameter_that_it_does_not_know_is_refused(export, space, query):
    assert export(query).status_code == 400


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@SUM(A1)", "=cmd|' /C calc'!A0"])
def test_a_name_that_a_spreadsheet_takes_for_a_formula_is_made_text(export, space, name):
    make_context(space, name)
    (row,) = csv.DictReader(io.StringIO(text_of(export())))
    assert row["name"] == f"'{name}"


def test_memory_is_bounded_by_the_step_and_no_statement_reads_more(
    export, space, django_assert_num_queries
):
    [make_context(space, f"c{n}") for n in range(6)]
    answer = export("?format=jsonl")
    steps = iter(answer.streaming_content)
    for _ in range(3):
        with django_assert_num_queries(1):
            assert next(steps).count(b"\n") == 2
    assert next(steps, None) is None


@pytest.mark.django_db(transaction=True)  # read by another thread
def test_under_asgi_the_first_rows_are_sent_before_the_last_are_read(tenant, space):
    """Django would collect a plain iterator before it sends the first byte."""
    [make_context(space, f"c{n}") for n in range(4)]
    scope = {
        **{"type": "http", "method": "GET", "path": "/api/v1/contexts/export", "headers": []},
        **{"query_string": b"format=jsonl"},
    }
    request = ASGIRequest(scope, io.BytesIO())
    ids = frozenset({tenant.pk})
    force_authenticate(request, Principal("key:1", "key:x", "team", ids, ids))
    answer = view(request)
    assert getattr(answer, "is_async", False)

    async def first_step():
        return await anext(aiter(answer))

    assert async_to_sync(first_step)().count(b"\n") == 2


async def test_a_slow_step_holds_up_no_other_request():
    """Django's signals, which every request waits for, run on asgiref's own thread."""
    go_on = threading.Event()

    def steps():
        assert go_on.wait(30)
        yield b"rows"

    sent = streams._sent_by_asgi(steps(), None)
    first = asyncio.ensure_future(anext(sent))
    await asyncio.sleep(0)
    async with asyncio.timeout(10):
        assert await sync_to_async(lambda: True)()  # as a signal's receiver
    assert not first.done()
    go_on.set()
    assert await first == b"rows"


async def test_exports_that_nobody_reads_are_few():
    tenant = frozenset({7})
    waiting = [streams._sent_by_asgi(iter([b"1", b"2"]), tenant) for _ in range(9)]
    for each in waiting[:8]:
        assert await anext(each) == b"1"
    with pytest.raises(Problem, match="8 exports of your tenant"):
        await anext(waiting[8])
    streams.TURNS.require(frozenset({8}))
    await waiting[0].aclose()  # the client is gone
    streams.TURNS.require(tenant)
    for each in waiting:
        await each.aclose()
    assert not streams.TURNS._held


def test_a_tenant_is_told_that_it_has_too_many_exports(export, tenant):
    with ExitStack() as under_way:
        for _ in range(streams.TURNS.most):
            under_way.enter_context(streams.TURNS.turn(frozenset({tenant.pk})))
        answer = export()
        assert (answer.status_code, answer["Retry-After"]) == (429, "2")
    assert export().status_code == 200
