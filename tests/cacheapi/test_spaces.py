"""Two spaces compared: the fields in which they differ, and what makes them equal."""

import pytest

from catalog import clashes
from catalog.models import Space
from neve.formats.space import SpaceIdentity
from support.caller import Caller
from support.rows import IDENTITY, make_key, make_session, make_space, make_tenant
from tenants.scope import tenant_scope

pytestmark = [pytest.mark.integration, pytest.mark.django_db]

REVISION = {"revision": "commit:1234 settings:aaaa"}


def make(tenant, name, chunk_tokens=256, **fields):
    identity = SpaceIdentity.from_dict({**IDENTITY, **REVISION, **fields})
    with tenant_scope(tenant.pk):
        return Space.objects.create(
            name=name,
            identity=identity.as_dict(),
            chunk_tokens=chunk_tokens,
            fingerprint=identity.fingerprint(tenant_id=tenant.pk, chunk_tokens=chunk_tokens).hex(),
        )


def compare(caller, this, other):
    return caller.get(f"/api/v1/spaces/{this.pk}/compare?with={other.pk}")


def test_each_difference_says_what_to_set(team, tenant):
    this = make(tenant, "a")
    other = make(
        tenant,
        "b",
        chunk_tokens=128,
        kv_dtype="fp8",
        tp_size=2,
        revision="commit:1234 settings:bbbb",
    )
    answer = compare(team, this, other).json()
    assert answer["is_equal"] is False
    assert [(row["field"], row["this"], row["other"]) for row in answer["differences"]] == [
        ("revision.settings", "aaaa", "bbbb"),
        ("kv_dtype", "bfloat16", "fp8"),
        ("tp_size", 1, 2),
        ("chunk_tokens", 256, 128),
    ]
    fixes = {row["field"]: row["fix"] for row in answer["differences"]}
    assert "--kv-cache-dtype" in fixes["kv_dtype"]
    assert "max_chunk_tokens" in fixes["chunk_tokens"]
    assert compare(team, this, this).json() == {"is_equal": True, "differences": []}


def test_revisions_of_another_form_are_compared_as_a_whole(team, tenant):
    answer = compare(team, make(tenant, "a"), make(tenant, "b", revision="main")).json()
    assert [row["field"] for row in answer["differences"]] == ["revision"]


def test_every_field_of_an_identity_has_words(tenant):
    names = set(SpaceIdentity.from_dict(IDENTITY).as_dict())
    assert names <= set(clashes.FIXES)


def test_a_refused_handshake_says_the_same(node, handshake, tenant, clean_hot):
    make(tenant, "named", revision="main", kv_dtype="fp8")
    answer = node.send("post", "/cache/v1/sessions", {**handshake, "space": "named"})
    assert (answer.status_code, answer.json()["field"]) == (409, "kv_dtype")
    assert clashes.FIXES["kv_dtype"] in answer.json()["detail"]


def test_the_spaces_of_one_model_are_listed(team, tenant):
    for name, model in (("a", "org/tiny"), ("b", "org/tiny"), ("c", "org/large")):
        make(tenant, name, model=model, bytes_per_token=len(name) + ord(name))
    found = team.get("/api/v1/spaces?model=org/tiny").json()["results"]
    assert {row["name"] for row in found} == {"a", "b"}


def test_another_tenants_space_is_compared_by_operators_only(team, operator, tenant):
    own, strange = make(tenant, "a"), make_space(make_tenant("other"))
    assert compare(team, own, strange).status_code == 404
    assert compare(team, strange, own).status_code == 404
    assert compare(operator, own, strange).json()["differences"][0]["field"] == "tenant"
    outsider = Caller(make_key(make_tenant(), "team"))
    assert compare(outsider, own, own).status_code == 404


@pytest.mark.parametrize("given", ["", "?with=", "?with=x", "?with=0", "?with=1&with=2", "?wiht=1"])
def test_a_malformed_comparison_is_refused_by_name(team, tenant, given):
    answer = team.get(f"/api/v1/spaces/{make(tenant, 'a').pk}/compare{given}")
    assert answer.status_code == 400
    assert answer.json()["field"] in ("with", "wiht")


@pytest.mark.parametrize("tiny", [5e-324, 1e-300])
def test_a_hostile_nodes_speeds_break_no_page(operator, tenant, tiny):
    space = make(tenant, "measured", bytes_per_token=131_072)
    speeds = {"prefill_s_per_token": 1e-4, "hot_bytes_per_s": tiny, "cold_bytes_per_s": 1e10}
    make_session(space, speeds=speeds)
    found = operator.get(f"/api/v1/spaces/{space.pk}").json()["break_even"]
    assert (found["hot"]["wins"], found["cold"]["wins"]) == (None, True)
    make_session(space, "node-2", speeds={"prefill_s_per_token": tiny})
    assert operator.get(f"/api/v1/spaces/{space.pk}").json()["break_even"]["nodes"] == 2


def test_a_space_says_when_loading_beats_computing(team, tenant):
    space = make(tenant, "measured", bytes_per_token=131_072)
    path = f"/api/v1/spaces/{space.pk}"
    fresh = team.get(path).json()["break_even"]
    assert fresh["hot"] == dict.fromkeys(fresh["hot"])
    assert (fresh["nodes"], fresh["basis"], fresh["prefill_tokens_per_s"]) == (0, "unknown", None)
    assert fresh["decisions_day"] == {"load_all": 0, "load_prefix": 0, "recompute": 0}
    make_session(
        space,
        speeds={"prefill_s_per_token": 1e-4, "hot_bytes_per_s": 13.1072e9},
        totals={"decided_all": 4, "decided_recompute": 1},
    )
    answer = team.get(path)
    found = answer.json()["break_even"]
    assert (found["bytes_per_token"], found["fixed_bytes"]) == (131_072, 0)
    assert found["break_even_bytes_per_s"] == pytest.approx(10_000 * 131_072)
    assert (found["hot"]["wins"], found["hot"]["from_tokens"]) == (True, 256)
    assert found["cold"]["wins"] is None
    assert found["decisions_hour"] == {"load_all": 4, "load_prefix": 0, "recompute": 1}
    assert found["verdict"] == (
        "Loading from the hot tier beats computing from 256 tokens on; the cold tier is not "
        "measured yet."
    )
    assert "break_even" not in team.get("/api/v1/spaces").json()["results"][0]
    # Measurements move; the space is the same row for `If-Match`.
    assert answer["ETag"].partition("-")[0] == team.get(path)["ETag"].partition("-")[0]


def test_measurements_of_another_tenant_stay_theirs(team, tenant):
    make_session(make(make_tenant("globex"), "same"), speeds={"prefill_s_per_token": 1.0})
    space = make(tenant, "same")
    assert team.get(f"/api/v1/spaces/{space.pk}").json()["break_even"]["nodes"] == 0
