"""The Explorer over REST: parts, what changed most, and what people changed."""

import time

import pytest

from catalog.models import Slice
from support.rows import make_space, make_tenant

pytestmark = [pytest.mark.integration, pytest.mark.django_db]


def put(tenant, kind, back_s, *, space=None, name="", **counts):
    Slice.unscoped.create(
        tenant=tenant,
        kind=kind,
        resolution_s=60,
        bucket_ts=int(time.time() - back_s) // 60 * 60,
        space_number=0 if space is None else space.pk,
        name=name,
        **counts,
    )


def ask(caller, **query):
    answer = caller.get("/api/v1/explore", query)
    assert answer.status_code == 200, answer.content
    return answer.json()


@pytest.fixture
def space(tenant):
    space = make_space(tenant)
    for name, then, now in (("gpu-1", 80, 40), ("gpu-2", 50, 52)):
        for back_s, hits in ((1500, then), (300, now)):
            for kind, where in (("place", {"space": space, "name": name}),):
                put(
                    tenant,
                    kind,
                    back_s,
                    prompt_tokens=100,
                    hit_tokens=hits,
                    load_ms={"<=1": 1, "+Inf": 1},
                    misses={"never_stored": 9, **({"quota": 8} if hits == 40 else {})},
                    **where,
                )
    return space


def test_what_changed_most_comes_first(team, tenant, space):
    found = ask(team, split="node", measure="hit_rate", space=space.pk)
    assert [
        (row["name"], row["value"], row["before"], row["prompt_tokens"], row["main_reason"])
        for row in found["groups"]
    ] == [
        ("gpu-1", 0.4, 0.8, 100, "quota"),
        ("gpu-2", 0.52, 0.5, 100, "never_stored"),
    ]
    assert [row["change"] for row in found["groups"]] == pytest.approx([-0.4, 0.02])
    assert (found["total"]["hit_tokens"], found["total"]["prompt_tokens"]) == (92, 200)
    assert {row["tenant"] for row in found["groups"]} == {tenant.slug}
    steps = len(found["groups"][0]["points"])
    assert steps == len(found["total"]["points"])
    assert 15 <= steps <= 16
    assert found["window"]["start"] == found["before"]["end"]


def test_percentiles_say_what_is_clipped(team, space):
    found = ask(team, split="node", measure="load_p99")["groups"][0]["latency"]
    assert (found["loads"], found["beyond"], found["within"]) == (2, 0.5, 0.5)
    assert (found["p99_ms"], found["p99_is_beyond"]) == (5000, True)


def test_what_nobody_counts_is_said(team, space):
    found = ask(team, split="label", measure="load_p99")
    assert found["why_not"] == "Load p99 is not counted by label."
    assert found["groups"] == []


def test_changes_stand_beside(team, tenant, space):
    (first, *_) = ask(team)["changes"]
    assert first["kind"] in ("key", "tenant")
    assert first["tenant"] == tenant.slug


def test_another_tenant_s_space_does_not_exist(team):
    foreign = make_space(make_tenant("globex"))
    assert team.get("/api/v1/explore", {"space": foreign.pk}).status_code == 404
    assert team.get("/api/v1/explore", {"tenant": "globex"}).status_code == 404


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"measure": "luck"}, "measure"),
        ({"split": "star"}, "split"),
        ({"against": "ever"}, "against"),
        ({"space": "x"}, "space"),
        ({"to": "2027-01-01T00:00:00Z"}, "to"),
        ({"from": "2027-01-02T00:00:00Z", "to": "2027-01-01T00:00:00Z"}, "from"),
        ({"by": "tenant"}, "by"),
    ],
)
def test_nonsense_is_refused_by_name(team, query, field):
    answer = team.get("/api/v1/explore", query)
    assert (answer.status_code, answer.json()["field"]) == (400, field)


def test_a_window_of_thousands_of_years_costs_no_more_than_the_longest_one_kept(team, space):
    found = ask(team, **{"from": "0001-01-01T00:00:00Z", "to": "9999-01-01T00:00:00Z"})
    assert len(found["total"]["points"]) <= 250
    old = {"from": "0001-01-01T00:00:00Z", "to": "0001-02-01T00:00:00Z"}
    assert team.get("/api/v1/explore", old).status_code == 400
