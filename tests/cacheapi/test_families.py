"""Families as nodes and operators see them over HTTP."""

import pytest

from catalog import families
from catalog.models import FamilyMember
from support.rows import make_space, make_tenant

pytestmark = [pytest.mark.integration, pytest.mark.django_db(transaction=True)]


@pytest.fixture
def family(clean_hot, node, operator, tenant, handshake):
    """The producer's space, as a family."""
    space = node.send("post", "/cache/v1/sessions", handshake).json()["space"]
    body = {"tenant": tenant.slug, "name": "one", "space": space["id"]}
    answer = operator.send("post", "/api/v1/families", body)
    assert answer.status_code == 201, answer.content
    return answer.json()


@pytest.fixture
def join(node, handshake):
    def ask(device="cpu", version="0.32.0", **identity):
        return node.send(
            "post",
            "/cache/v1/sessions",
            handshake
            | {
                "node": "gpu-08",
                "instance": f"{device} {version} {identity}"[:64],
                "engine": {"name": "vllm", "version": version},
                "identity": handshake["identity"] | {"model": "twin", "revision": "v2"} | identity,
                "family": {"name": "one", "device": device},
            },
        )

    return ask


@pytest.fixture
def report(node):
    def send(session, state, **found):
        path = f"/cache/v1/sessions/{session['session']}/attestation"
        answer = node.send("post", path, {"state": state, **found})
        assert answer.status_code == 200, answer.content
        return answer.json()["state"]

    return send


@pytest.fixture
def beat(node):
    def send(session, seq=1, **counters):
        path = f"/cache/v1/sessions/{session['session']}/heartbeat"
        answer = node.send("post", path, {"seq": seq, "counters": counters})
        assert answer.status_code == 200, answer.content
        return answer.json()["topology"]

    return send


def members(operator):
    return operator.get("/api/v1/family-members").json()["results"]


def test_an_engine_gets_the_producers_space_and_has_to_prove_itself(family, join, handshake):
    session = join().json()
    assert session["space"]["id"] == family["space"]
    assert (session["family"]["name"], session["family"]["state"]) == ("one", "attesting")
    assert session["family"]["producer"].items() >= handshake["identity"].items()


def test_the_producer_is_known_by_its_identity(family, join, handshake, operator):
    own = {name: handshake["identity"][name] for name in ("model", "revision")}
    assert join(**own).json()["family"]["state"] == "producer"
    (row,) = members(operator)
    answer = operator.send("post", f"/api/v1/family-members/{row['id']}/try-again", {})
    assert answer.status_code == 409


def test_another_layout_is_refused_with_the_field(family, join):
    problem = join(kv_dtype="fp8").json()
    assert (problem["status"], problem["field"], problem["got"]) == (409, "kv_dtype", "fp8")
    assert "the producer" in join(tp_size=2, tp_rank=1).json()["detail"].lower()


def test_a_family_that_is_not_there_is_not_found(clean_hot, join):
    answer = join()
    assert (answer.status_code, answer.json()["field"]) == (404, "family")


def test_a_space_and_a_family_exclude_each_other(family, node, handshake):
    body = handshake | {"space": "mine", "family": {"name": "one"}}
    assert node.send("post", "/cache/v1/sessions", body).status_code == 400


def test_a_verdict_holds_for_a_restart_but_not_for_another_device_or_version(family, join, report):
    assert report(join().json(), "attached", blocks=9) == "attached"
    assert join().json()["family"]["state"] == "attached"
    assert join(device="other").json()["family"]["state"] == "attesting"
    assert join(version="0.33.0").json()["family"]["state"] == "attesting"
    assert join(revision="v3").json()["family"]["state"] == "attesting"


def test_a_refusal_holds_until_an_operator_lets_the_member_try_again(
    family, join, report, operator, beat
):
    session = join().json()
    before = beat(session)
    found = {"layer": "layer.3", "first_token": 64, "end_token": 96}
    assert report(session, "refused", **found) == "refused"
    assert report(session, "attached", blocks=99) == "refused"
    assert join().json()["family"]["state"] == "refused"
    (row,) = members(operator)
    assert row.items() >= {"state": "refused", "blocks": 0, **found}.items()
    session = join().json()
    path = f"/api/v1/family-members/{row['id']}/try-again"
    assert operator.send("post", path).json()["state"] == "attesting"
    assert beat(session) != before  # so that running engines make a handshake
    assert join().json()["family"]["state"] == "attesting"


def test_engines_of_a_member_that_is_detached_learn_it(family, join, report, beat):
    first, second = join().json(), join(device="other").json()
    report(first, "attached")
    before, others = beat(first), beat(second)
    report(first, "refused")
    assert beat(first, 2) != before
    assert beat(second, 2) == others


def test_weights_changed_in_place_are_another_member(family, join, report, operator):
    session = join().json()
    assert report(session, "attached") == "attached"
    assert report(session, "attesting", weights="ab" * 16) == "attesting"
    assert report(session, "attached", weights="ab" * 16) == "attached"
    assert [row["weights"] for row in members(operator)] == ["ab" * 16, ""]


def test_hits_are_counted_by_model(family, join, beat, operator, handshake):
    twin, other = join().json(), join(model="other").json()
    beat(twin, family_hit_tokens=640)
    beat(twin, family_hit_tokens=640)  # said twice, counted once
    beat(twin, 2, family_hit_tokens=64)
    beat(other, family_hit_tokens=128)
    assert {row["model"]: row["hit_tokens"] for row in members(operator)} == {
        "twin": 704,
        "other": 128,
    }


def test_a_session_of_no_family_reports_nothing(clean_hot, node, handshake):
    session = node.send("post", "/cache/v1/sessions", handshake).json()
    path = f"/cache/v1/sessions/{session['session']}/attestation"
    assert node.send("post", path, {"state": "attached"}).status_code == 409
    assert node.send("post", path, {"state": "producer"}).status_code == 400


def test_members_end_with_their_family_and_the_producer_stays(family, join, node, operator):
    session = join().json()
    assert operator.delete(f"/api/v1/families/{family['id']}").status_code == 204
    path = f"/cache/v1/sessions/{session['session']}/heartbeat"
    assert node.send("post", path, {"seq": 1}).status_code == 404
    assert operator.get(f"/api/v1/spaces/{family['space']}").status_code == 200
    assert not FamilyMember.unscoped.exists()
    actions = {row["action"] for row in operator.get("/api/v1/audit").json()["results"]}
    assert actions >= {"family.create", "family.remove"}


def test_a_family_never_crosses_tenants(family, operator, tenant):
    other = make_tenant("other")
    body = {"tenant": "other", "name": "two", "space": family["space"]}
    answer = operator.send("post", "/api/v1/families", body)
    assert (answer.status_code, answer.json()["field"]) == (400, "space")
    body["space"] = make_space(other).pk
    assert operator.send("post", "/api/v1/families", body).status_code == 201
    again = {"tenant": tenant.slug, "name": "three", "space": family["space"]}
    assert operator.send("post", "/api/v1/families", again).status_code == 409


def test_a_family_has_so_many_members(family, join, monkeypatch):
    monkeypatch.setattr(families, "MEMBERS_MOST", 1)
    assert join().status_code == 201
    assert join().status_code == 201
    assert join(model="more").json()["limit"] == "family_members"
