"""Look-ups that must never delay or fail a request, over sockets."""

import asyncio
import threading
from decimal import Decimal

import pytest

from neve.gateway import Found, Prompt, Store
from support.engine_api import EngineApi

TEXT, TOKENS = Prompt(text="rules"), Prompt(tokens=[1, 2, 3])
FOUND = {
    **{"tokens": 500, "tail_tokens": 0, "hot_tokens": 256, "cold_tokens": 0, "lost_tokens": 0},
    **{"usable_tokens": 256, "usable_hot_tokens": 256, "contexts": []},
    "cost": {"load_s": 0.5, "compute_s": 2.0, "verdict": "load", "basis": "", "nodes": 1},
}


def problem(kind, status):
    return lambda _: (status, {"type": f"/problems/{kind}", "title": "", "detail": "as told"})


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def api():
    with EngineApi() as server:
        server.answers["/api/v1/lookup"] = lambda _: (200, FOUND)
        yield server


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
async def store(api, clock):
    store = Store(api.url, "neve_key", deadline_s=30, clock=clock)
    yield store
    await store.close()


async def found(store, prompt=TOKENS):
    lookup = await store.look_up(3, prompt)
    return None if lookup is None else lookup.found


async def test_neve_says_what_it_holds(store, api):
    assert await found(store) == Found(500, 256, 256, 0.5, 2.0)
    assert await found(store, Prompt(text="rules", options={"add_special_tokens": False}, salt="s"))
    assert api.bodies("/api/v1/lookup") == [
        {"space": 3, "tokens": [1, 2, 3]},
        {"space": 3, "text": "rules", "add_special_tokens": False, "salt": "s"},
    ]


async def test_after_three_failures_nothing_is_asked_for_a_while(store, api, clock, caplog):
    api.answers["/api/v1/lookup"] = problem("internal", 500)
    assert [await found(store) for _ in range(5)] == [None] * 5
    assert len(api.bodies("/api/v1/lookup")) == 3
    assert "neve.gateway.rests" in caplog.text
    clock.now = 1.5  # one is the probe
    assert [await found(store) for _ in range(2)] == [None] * 2
    assert len(api.bodies("/api/v1/lookup")) == 4
    api.answers["/api/v1/lookup"] = lambda _: (200, FOUND)
    clock.now = 10
    assert all([await found(store) for _ in range(5)])


@pytest.mark.parametrize(("kind", "status"), [("throttled", 429), ("unauthorized", 401)])
async def test_a_refusal_of_the_key_is_no_question_to_repeat(store, api, kind, status):
    api.answers["/api/v1/lookup"] = problem(kind, status)
    assert [await found(store) for _ in range(3)] == [None] * 3
    assert len(api.bodies("/api/v1/lookup")) == 1


async def test_without_an_engine_only_tokens_are_looked_up(store, api, clock):
    api.answers["/api/v1/lookup"] = problem("no-engine", 409)
    assert await found(store, TEXT) is None
    api.answers["/api/v1/lookup"] = lambda _: (200, FOUND)
    assert await found(store, TEXT) is None
    assert await found(store, TOKENS)
    clock.now = 11
    assert await found(store, TEXT)


@pytest.mark.parametrize("answer", [{}, [], None, {"tokens": "x"}, FOUND | {"cost": None}])
async def test_an_answer_of_another_form_is_none(store, api, answer):
    api.answers["/api/v1/lookup"] = lambda _: (200, answer)
    assert await found(store) is None


async def test_a_late_answer_is_not_waited_for_and_counts_when_it_comes(api):
    answers = threading.Event()
    api.answers["/api/v1/lookup"] = lambda _: (answers.wait(60), (200, FOUND))[1]
    store = Store(api.url, "neve_key", deadline_s=0.01)
    try:
        lookups = [await store.look_up(3, TOKENS) for _ in range(3)]
        assert [each.found for each in lookups] == [None] * 3
        assert not store.is_open  # three were slow
        answers.set()
        await asyncio.wait({each.task for each in lookups}, timeout=60)
        assert all(each.found for each in lookups)
    finally:
        answers.set()
        await store.close()


async def test_a_background_look_up_that_is_late_is_no_failure(api):
    answers = threading.Event()
    api.answers["/api/v1/lookup"] = lambda _: (answers.wait(60), (200, FOUND))[1]
    store = Store(api.url, "neve_key", deadline_s=0.01)
    try:
        lookups = [await store.look_up(3, TOKENS, waits=False) for _ in range(6)]
        assert [each is None for each in lookups] == [False] * 4 + [True] * 2  # four at a time
        assert store.is_open
    finally:
        answers.set()
        await store.close()


async def test_prices_and_engines_are_read_in_the_background(store, api):
    def page(*rows):
        told = {"results": rows, "next": None, "previous": None}
        return 200, told | {"next_cursor": None, "previous_cursor": None}

    engine = {
        **{"id": 1, "tenant": "acme", "name": "gpu", "base_url": "http://gpu:8000"},
        **{"model": "tiny", "spaces": [3], "gpus": None, "has_api_key": False},
        **{"source": "node", "state": "healthy", "error": "", "checked_at": None},
        **{"created_at": "2027-01-01T00:00:00Z", "updated_at": "2027-01-01T00:00:00Z"},
    }
    asked = api.calls
    api.answers["/api/v1/prices"] = lambda _: (
        200,
        {"valid_from": "2027-01-01", "currency": "EUR", "gpu_hour": "3.6", "hot_gib_hour": "0",
         "cold_gib_month": "0", "put_1000": "0", "get_1000": "0", "egress_gb": "0", "versions": []},
    )  # fmt: skip
    api.answers["/api/v1/engines"] = lambda _: page(engine)
    api.answers["/api/v1/spaces/3"] = lambda _: (
        200,
        {"id": 3, "tenant": "acme", "name": "s", "identity": {"tp_size": 4, "pp_size": 2}},
    )
    await store.facts()
    if store._facts is not None:
        await store._facts
    assert store.gpu_second == (Decimal("0.001"), "EUR")
    assert [(each.url, each.space) for each in store.engines] == [("http://gpu:8000", 3)]
    count = len(asked)
    await store.facts()
    assert len(asked) == count  # not again so soon
