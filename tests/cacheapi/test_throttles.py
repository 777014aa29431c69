"""Rate limits of /api/v1: who is counted, how a refusal reads; a dead bus limits nobody."""

import secrets
from contextlib import ExitStack

import pytest
from django.test import Client
from redis import Redis

from cacheapi.base import throttles
from cacheapi.base.throttles import SharedThrottle
from cacheapi.base.viewsets import TURNS
from support.caller import Caller
from support.rows import make_key, make_person, make_tenant

pytestmark = [pytest.mark.integration, pytest.mark.django_db]


@pytest.fixture(autouse=True)
def limits(valkey_bus, monkeypatch):
    """Three requests a day, instead of the settings' rates."""
    rates = {"caller": "3/day", "address": "3/day", "node": "3/day"}
    monkeypatch.setattr(SharedThrottle, "THROTTLE_RATES", rates)
    monkeypatch.setattr(SharedThrottle, "ask_again_at", None)
    return rates


@pytest.fixture
def address():
    """One that no other test has counted."""
    return f"2001:db8::{secrets.token_hex(2)}:{secrets.token_hex(2)}"


def statuses(caller, path="/api/v1/contexts", count=4, **options):
    return [caller.get(path, **options).status_code for _ in range(count)]


def test_a_key_is_refused_beyond_its_rate_and_told_what_to_do(team):
    assert statuses(team) == [200, 200, 200, 429]
    answer = team.get("/api/v1/contexts")
    assert answer["Content-Type"] == "application/problem+json"
    assert 1 <= int(answer["Retry-After"]) <= 86400
    problem = answer.json()
    assert (problem["type"], problem["status"]) == ("/problems/throttled", 429)
    assert answer["Retry-After"] in problem["detail"]


def test_every_answer_to_a_known_caller_says_what_is_left(team, node, tenant):
    answers = [team.get("/api/v1/contexts") for _ in range(4)]
    assert [answer["RateLimit-Remaining"] for answer in answers] == ["2", "1", "0", "0"]
    for answer in answers:
        assert answer["RateLimit-Limit"] == "3"
        assert 1 <= int(answer["RateLimit-Reset"]) <= 86400
    assert answers[3]["RateLimit-Reset"] in (
        answers[3]["Retry-After"],
        str(int(answers[3]["Retry-After"]) + 1),
    )
    strange = type(team)(make_key(tenant, "team"))
    refused = [strange.get("/api/v1/tenants/none") for _ in range(4)]
    assert [answer.status_code for answer in refused] == [403, 403, 403, 429]
    assert [answer["RateLimit-Remaining"] for answer in refused] == ["2", "1", "0", "0"]
    beat = node.send("post", "/cache/v1/sessions", {})
    assert (beat.status_code, beat["RateLimit-Remaining"]) == (400, "2")
    assert "RateLimit-Limit" not in Client().get("/api/v1/contexts")


def test_each_key_and_each_person_has_a_rate_of_its_own(team, operator, tenant):
    assert statuses(team)[-1] == 429
    person = make_person(secrets.token_hex(8), acme="team")
    for other in (
        operator,
        Client(headers={"Authorization": f"Bearer {make_key(tenant, 'team')}"}),
    ):
        assert statuses(other) == [200, 200, 200, 429]
    for _ in range(2):  # two browsers, one person
        browser = Client()
        browser.force_login(person)
        assert statuses(browser, count=2)[0] == 200
    assert statuses(browser, count=1) == [429]


def test_changes_count_too(operator, tenant):
    path = "/api/v1/tenants/acme/quota"
    made = [operator.send("patch", path, {"hot_bytes": 1}).status_code for _ in range(4)]
    assert made == [200, 200, 200, 429]


@pytest.mark.parametrize("header", [{}, {"Authorization": "Bearer neve_x_y"}])
def test_who_fails_to_authenticate_is_told_to_slow_down(header, address):
    stranger = Client(headers=header, REMOTE_ADDR=address)
    assert statuses(stranger) == [401, 401, 401, 429]
    assert stranger.get("/api/v1/contexts")["Retry-After"]


def test_a_good_key_is_not_held_up_by_a_neighbour_and_a_header_is_no_other_address(team, address):
    stranger = Client(REMOTE_ADDR=address)
    answers = [
        stranger.get("/api/v1/jobs", headers={"X-Forwarded-For": f"192.0.2.{n}"}) for n in range(4)
    ]
    assert [answer.status_code for answer in answers] == [401, 401, 401, 429]
    assert team.get("/api/v1/contexts", REMOTE_ADDR=address).status_code == 200


def test_the_schema_which_anybody_may_read_is_limited_by_address(address):
    seen = statuses(Client(REMOTE_ADDR=address), "/api/v1/schema/")
    assert seen == [200, 200, 200, 429]


def test_a_node_key_is_limited_in_each_kind_of_request(node, tenant, handshake, clean_hot):
    def beat(caller, session, seq):
        path = f"/cache/v1/sessions/{session}/heartbeat"
        return caller.send("post", path, {"seq": seq})

    opened = [node.send("post", "/cache/v1/sessions", handshake) for _ in range(4)]
    assert [answer.status_code for answer in opened] == [201, 201, 201, 429]
    assert opened[3]["Retry-After"]
    session = opened[2].json()["session"]
    beats = [beat(node, session, seq).status_code for seq in range(1, 5)]
    assert beats == [200, 200, 200, 429]  # handshakes have not used them up
    other = type(node)(make_key(tenant, "node"))
    assert beat(other, session, 5).status_code == 200


def test_who_has_no_key_of_a_node_is_limited_by_address(address):
    stranger = Client(REMOTE_ADDR=address)
    seen = [stranger.post("/cache/v1/sessions").status_code for _ in range(4)]
    assert seen == [401, 401, 401, 429]


def test_no_rate_is_no_limit(team, limits):
    limits["caller"] = None
    assert set(statuses(team, count=9)) == {200}


def test_a_dead_bus_limits_nobody_says_so_once_and_counts_when_it_is_back(
    team, monkeypatch, caplog
):
    live = throttles._bus
    monkeypatch.setattr(throttles, "QUIET_S", 0.0)
    monkeypatch.setattr(throttles, "_bus", lambda: Redis.from_url("redis://127.0.0.1:1/0"))
    assert set(statuses(team, count=6)) == {200}
    assert caplog.text.count("rate_limits_off") == 1
    monkeypatch.setattr(throttles, "_bus", live)
    assert statuses(team) == [200, 200, 200, 429]


def test_a_bus_that_failed_is_left_alone_for_a_while(team, monkeypatch):
    asked = []

    def fail():
        asked.append(1)
        raise throttles.RedisError

    monkeypatch.setattr(throttles, "_bus", fail)
    assert set(statuses(team, count=6)) == {200}
    assert len(asked) == 1


def test_one_tenant_holds_half_of_the_threads_whatever_its_keys(limits, tenant, operator):
    limits["caller"] = "100/day"
    keys = [Caller(make_key(tenant, "team")) for _ in range(2)]
    other = Caller(make_key(make_tenant("other"), "team"))
    with ExitStack() as under_way:
        for _ in range(TURNS.most):
            under_way.enter_context(TURNS.turn(frozenset({tenant.pk})))
        for key in keys:
            refused = key.get("/api/v1/contexts")
            assert (refused.status_code, refused["Retry-After"]) == (429, "2")
            assert refused.json()["type"] == "/problems/throttled"
        assert other.get("/api/v1/contexts").status_code == 200
        assert operator.get("/api/v1/contexts").status_code == 200
    for path in ("contexts", "contexts/export", "contexts?wrong=1", "keys/0", "events"):
        keys[0].get(f"/api/v1/{path}")
    assert not TURNS._held
