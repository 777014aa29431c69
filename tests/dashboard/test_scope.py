"""The scope: what an address names, and what it may not."""

from datetime import UTC, datetime

import pytest
from django.http import Http404
from django.test import RequestFactory

from base.problems import Problem
from dashboard.scope import scope_of
from support.rows import make_person, make_space
from tenants.principal import principal_of_person

pytestmark = pytest.mark.django_db


@pytest.fixture
def read(acme, globex):
    person = make_person("team", acme="team")

    def read(path="/nodes/", cookies=None, user=person, **query):
        request = RequestFactory().get(path, query)
        request.COOKIES.update(cookies or {})
        return scope_of(request, principal_of_person(user))

    return read


def test_links_keep_the_scope_and_only_it(read, acme):
    space = make_space(acme)
    scope = read(tenant="acme", space=str(space.pk), node="gpu-1", range="6h", q="x", page="3")
    query = f"tenant=acme&space={space.pk}&node=gpu-1"
    assert scope.link("contexts") == f"/contexts/?{query}&range=6h"
    assert scope.link("contexts", range=None, sort="-name") == f"/contexts/?{query}&sort=-name"
    assert scope.here(page=4) == f"/nodes/?q=x&{query}&range=6h&page=4"
    assert read().link("contexts") == "/contexts/"


def test_a_space_narrows_to_its_tenant(read, acme, globex):
    operator = make_person("operator", staff=True)
    space = make_space(acme)
    scope = read(user=operator, space=str(space.pk))
    assert (scope.tenant, scope.tenants, scope.space) == ("all", (acme,), space)
    # The form keeps the space when somebody chooses another tenant.
    scope = read(user=operator, space=str(space.pk), tenant="globex")
    assert (scope.tenants, scope.space, scope.link("nodes")) == (
        (globex,),
        None,
        "/nodes/?tenant=globex",
    )


def test_what_the_person_does_not_see_is_not_there(read, globex):
    with pytest.raises(Http404):
        read(space=str(make_space(globex).pk))
    with pytest.raises(Problem, match="no such tenant"):
        read(tenant="globex")


@pytest.mark.parametrize(
    "query",
    [
        {"space": "-1"},
        {"space": "9" * 30},
        {"space": "x"},
        {"node": "x" * 201},
        {"label": "a\0b"},
        {"range": "5y"},
        {"zone": "../etc/passwd"},
        {"zone": "Mars/Base"},
        {"from": "yesterday"},
        {"from": "99999999999999"},
        {"from": "2026-01-02", "to": "2026-01-01"},
        {"from": "2999-01-01"},
    ],
)
def test_hostile_parameters_are_not_found(read, query):
    with pytest.raises((Http404, Problem)):
        read(**query)


def test_hostile_parameters_are_not_found_by_pages_either(people):
    for query in ("space=x", "range=5y", "zone=Mars/Base", "from=0&to=0", "node=a&node=b", "x=1"):
        assert people["team"].get(f"/nodes/?{query}").status_code == 404, query


def test_a_window_is_named_by_its_ends(read):
    end = int(datetime.now(UTC).timestamp()) - 3_600
    scope = read(**{"from": str(end - 1_800), "to": str(end)})
    assert (scope.window.start_ts, scope.window.end_ts) == (
        (end - 1_800) // 10 * 10,
        -(-end // 10) * 10,
    )
    assert not scope.is_live
    assert len(scope.window.steps()) <= 182
    assert "range" not in scope.link("nodes")


def test_times_without_an_offset_are_the_readers(read):
    query = {"from": "2026-06-01T12:00", "to": "2026-06-02T12:00", "zone": "Europe/Berlin"}
    scope = read(**query)
    assert scope.start == datetime(2026, 6, 1, 10, tzinfo=UTC)
    assert scope.start.hour == 12
    assert "zone=Europe%2FBerlin" in scope.link("nodes")


def test_the_browser_says_the_zone_and_a_wrong_one_is_utc(read):
    assert read(cookies={"neve_zone": "Asia/Tokyo"}).zone.key == "Asia/Tokyo"
    assert read(cookies={"neve_zone": "../../etc/passwd"}).zone.key == "UTC"
    assert read(cookies={"neve_zone": "Asia/Tokyo"}, zone="UTC").zone.key == "UTC"
