"""Lists: what an address asks for, of rows in the database and of rows in memory."""

import csv
import io
from dataclasses import dataclass

import pytest
from django.http import Http404
from django.test import RequestFactory

from catalog.models import Space
from dashboard.lists import Choice, Column, List
from dashboard.scope import scope_of
from support.rows import make_person, make_space
from tenants.principal import principal_of_person, rows_of

pytestmark = pytest.mark.django_db


@dataclass(frozen=True)
class Row:
    name: str
    hits: int | None
    state: str = "live"


class RowList(List):
    name = "rows"
    columns = (
        Column("name", "Name", link=lambda row, scope: scope.link("nodes", q=row.name)),
        Column("hits", "Hits", kind="count"),
        Column("state", "State", kind="state", shown=False),
        Column("fixed", "Fixed", value=lambda row: "x", order=""),
    )
    filters = (Choice("state", "State", (("live", "Live"), ("silent", "Silent"))),)
    search = ("name",)
    default_sort = "-hits"
    rows = 2


class SpaceList(List):
    name = "spaces"
    columns = (Column("name", "Space"), Column("tenant", "Tenant", path="tenant.slug"))
    search = ("name", "tenant.slug")
    default_sort = "name"


ROWS = (Row("b", 3), Row("A", 30), Row("=1+1", None, "silent"))


@pytest.fixture
def ask(acme):
    person = principal_of_person(make_person("operator", staff=True))

    def ask(kind=RowList, rows=ROWS, **query):
        request = RequestFactory().get("/nodes/", query)
        return kind(request, scope_of(request, person), rows)

    return ask


def names(listing: List) -> list[str]:
    return [row.name for row in listing.page]


def test_rows_are_sorted_with_the_unknown_last(ask):
    assert names(ask()) == ["A", "b"]
    assert names(ask(sort="hits")) == ["b", "A"]
    assert names(ask(sort="hits", page="2")) == ["=1+1"]
    assert names(ask(sort="name")) == ["=1+1", "A"]  # without regard to case


def test_search_and_filters_leave_rows_out(ask):
    assert names(ask(q="a")) == ["A"]
    assert names(ask(state="silent")) == ["=1+1"]
    listing = ask(q="nobody")
    assert (names(listing), listing.is_narrowed) == ([], True)


def test_the_database_searches_and_sorts(ask, acme, globex):
    for tenant, name in ((acme, "llama"), (acme, "qwen"), (globex, "gemma")):
        make_space(tenant, name=name)
    rows = rows_of(Space, (acme, globex)).select_related("tenant")
    assert names(ask(SpaceList, rows)) == ["gemma", "llama", "qwen"]
    assert names(ask(SpaceList, rows, sort="-tenant")) == ["gemma", "qwen", "llama"]
    assert names(ask(SpaceList, rows, q="ACME", sort="-name")) == ["qwen", "llama"]


@pytest.mark.parametrize(
    "query",
    [
        {"sort": "secret"},
        {"sort": "--hits"},
        {"sort": "fixed"},
        {"sort": "__class__"},
        {"cols": "name,password"},
        {"state": "dead"},
        {"page": "-1"},
        {"page": "1" * 10},
        {"page": "٣"},
        {"format": "xlsx"},
        {"q": "x" * 201},
        {"q": "a\0"},
    ],
)
def test_what_is_unknown_is_not_found(ask, query):
    with pytest.raises(Http404):
        _ = ask(**query).page


def test_a_page_past_the_last_is_the_last(ask):
    assert ask(page="999999999").page.number == 2


def test_each_head_turns_the_order_and_keeps_the_rest(ask):
    listing = ask(q="a", state="live", range="6h", page="1")
    urls = {head["column"].name: head["url"] for head in listing.heads}
    assert urls == {
        "name": "/nodes/?q=a&state=live&range=6h&sort=name",
        "hits": "/nodes/?q=a&state=live&range=6h&sort=hits",
        "fixed": "",
    }
    assert [head["sorted"] for head in listing.heads] == ["", "descending", ""]


def test_columns_are_chosen_one_by_one(ask):
    listing = ask(cols="name,state")
    assert [column.name for column in listing.shown] == ["name", "state"]
    assert {each["column"].name: each["url"] for each in listing.toggles} == {
        "hits": "/nodes/?cols=name%2Chits%2Cstate",
        "state": "/nodes/?cols=name",
        "fixed": "/nodes/?cols=name%2Cstate%2Cfixed",
    }


def test_two_lists_of_a_page_go_their_own_ways(ask):
    class Second(RowList):
        prefix = "b-"

    query = {"sort": "name", "b-sort": "-name", "b-q": "b"}
    assert (names(ask(**query)), names(ask(Second, **query))) == (["=1+1", "A"], ["b"])
    listing = ask(Second, **query)
    assert listing.kept == [("sort", "name"), ("b-sort", "-name")]
    assert listing.heads[1]["url"].endswith("b-q=b&b-sort=-hits")
    assert Second.takes() == ("b-q", "b-sort", "b-cols", "b-page", "b-format", "b-state")


def test_csv_has_all_rows_and_columns_and_no_formula(ask):
    answer = ask(format="csv", page="2").csv()
    assert answer["Content-Disposition"] == 'attachment; filename="rows.csv"'
    read = list(csv.reader(io.StringIO(b"".join(answer.streaming_content).decode())))
    assert read == [
        ["name", "hits", "state", "fixed"],
        ["A", "30", "live", "x"],
        ["b", "3", "live", "x"],
        ["'=1+1", "", "silent", "x"],
    ]
