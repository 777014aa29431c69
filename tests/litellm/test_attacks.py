"""What a client of the proxy may try against others of its tenant, other tenants, and the proxy."""

import json
from typing import Any

import pytest

from support.servers import wait_until

pytestmark = pytest.mark.integration


def prompt(name: str) -> str:
    return f"The secrets of {name}: " + f"{name} tells nobody. " * 24


def sent_by(world, answer) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    return world.node_of(answer).prompts[-1]


@pytest.mark.parametrize(
    "body",
    [
        {"extra_body": {"cache_salt": "mine"}},
        {"extra_body": {"cache_salt": None, "kv_transfer_params": {"neve": {"context": "yours"}}}},
        {"model_info": {"neve": False}},
        {"model_info": {"neve": {"space": 999, "tenant": "other"}}},
        {"custom_llm_provider": "openai"},
        {"metadata": {"neve_request": "0" * 32}},
        {"litellm_metadata": {"neve_request": "0" * 32}},
        {"metadata": {"user_api_key_team_id": "two-team", "user_api_key_hash": "x"}},
        {"litellm_metadata": {"user_api_key_team_id": "two-team"}},
        {"user_api_key_dict": {"team_id": "two-team"}},
        {"team_id": "two-team"},
        {"litellm_params": {"api_base": "http://127.0.0.1:9"}},
        {"kv_transfer_params": None},
        {"kv_transfer_params": "x"},
        {"cache_salt": 7},
    ],
    ids=json.dumps,
)
def test_no_body_takes_a_clients_salt_off(world, body):
    """Whatever LiteLLM says to such a body: the node gets the team's salt, or nothing."""
    text = prompt("the team")
    usual = sent_by(world, world.chat(text, team="one"))["cache_salt"]
    other = sent_by(world, world.chat(text, team="two"))["cache_salt"]
    assert usual != other
    for node in (world.a, world.b):
        node.calls.clear()
    world.chat(text, team="one", **body)
    for sent in (*world.a.prompts, *world.b.prompts):
        assert sent["cache_salt"] == usual
        named = (sent["kv_transfer_params"].get("neve") or {}).get("context", "")
        assert named.startswith("prefix-") or not named


def test_forms_that_lose_the_salt_are_refused(world):
    asked = {"model": "tiny", "input": prompt("interaction")}
    refused = world.send("v1beta/interactions", asked, team="one")
    assert refused.status_code == 400, refused.text
    assert "cache_salt" in refused.text
    assert not world.a.prompts
    assert not world.b.prompts


@pytest.mark.parametrize("how", ["header", "body", "session", "user"])
def test_teams_that_share_no_kv_share_no_context(world, how):
    """Neither to write into it, nor to be told of it."""
    session = "e96634a3-fa28-4083-b354-55542e2dca01"
    more: dict[str, Any] = {
        "header": {"headers": {"x-neve-context": "repo-42"}},
        "body": {"kv_transfer_params": {"neve": {"context": "repo-42"}}},
        "session": {"headers": {"x-session-id": session}},
        "user": {"user": "ann"},
    }[how]
    named = {}
    for team in ("one", "two", "acme"):
        sent = sent_by(world, world.chat(prompt(how), team=team, **more))
        named[team] = sent["kv_transfer_params"]["neve"]["context"]
    assert len(set(named.values())) == 3
    again = sent_by(world, world.chat(prompt("again"), team="one", **more))
    assert again["kv_transfer_params"]["neve"]["context"] == named["one"]
    if how in ("header", "body"):
        assert named["acme"] == "repo-42"
        assert named["one"].startswith("repo-42.")


def test_nobodys_requests_reach_no_tenants_node(world):
    before = len(world.a.prompts) + len(world.b.prompts)
    assert world.chat(prompt("guarded"), model="guarded", team="stranger").status_code >= 400
    assert world.post("embeddings", {"model": "guarded", "input": "x"}, team="stranger").is_error
    assert len(world.a.prompts) + len(world.b.prompts) == before
    assert world.chat(prompt("guarded"), model="guarded").status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"x-neve-context": "c" * 30_000},
        {"x-neve-context": "c" * 200},
        {"x-neve-context": 'a, b; c="d" %0d%0aset-cookie: e'},
        {"x-session-id": "s" * 30_000},
        {f"x-{n}-session-id": "\u00e9".encode("latin-1").decode("latin-1") for n in range(50)},
        {"user-agent": "codex" * 5_000, "session-id": "../../etc"},
    ],
    ids=["huge", "longest", "quoted", "huge-session", "many", "codex"],
)
def test_odd_headers_name_no_context_or_a_clean_one(world, headers):
    answer = world.post(
        "chat/completions",
        {"messages": [{"role": "user", "content": "x"}]},
        **{k: v.encode("latin-1") for k, v in headers.items()},
    )
    assert answer.status_code == 200, answer.text
    assert "set-cookie" not in answer.headers
    assert len(answer.headers.get("x-neve-context", "")) <= 600
    context = sent_by(world, answer)["kv_transfer_params"]["neve"].get("context", "")
    assert len(context) <= 200


def nested(depth: int) -> Any:
    return json.loads('{"a":' * depth + "1" + "}" * depth)


@pytest.mark.parametrize(
    "body",
    [
        {"metadata": "x"},
        {"metadata": ["x"]},
        {"metadata": {"session_id": {"a": 1}, "user_id": 5}},
        {"metadata": {"user_id": "u_session_" + "x" * 5_000}},
        {"litellm_metadata": "x"},
        {"litellm_session_id": ["x"]},
        {"user": 5},
        {"kv_transfer_params": {"neve": {"context": ["x"], "pin": nested(100)}}},
        {"messages": [{"role": "user", "content": nested(150)}]},
        {"messages": [{"role": "user", "content": [nested(150)]}]},
        {"messages": "x"},
        {"tools": [nested(150)]},
        {"cache_salt": nested(50)},
        {"user": "\ud800"},
    ],
    ids=lambda body: json.dumps(body)[:40],
)
def test_odd_bodies_are_answered_as_without_neve(world, body):
    """The stranger's requests pass without it."""
    asked = {"messages": [{"role": "user", "content": "x"}]} | body
    without = world.post("chat/completions", asked, team="stranger").status_code
    with_neve = world.post("chat/completions", asked).status_code
    assert with_neve == without
    assert world.chat("x").headers["x-neve-node"]  # the plug-in goes on


def test_neither_keys_nor_salts_are_in_logs_or_spend_rows(world):
    text = prompt("logged")
    salt = sent_by(world, world.chat(text, team="one", user="logged"))["cache_salt"]
    rows = []
    wait_until(
        lambda: (
            rows.extend(r for r in world.proxy.rows() if r.get("team_id") == "one-team") or rows
        ),
        what="a row of spend logs",
    )
    log = world.proxy.log.read_text(errors="replace")
    for where in (log, world.proxy.spend_rows.read_text()):
        assert world.key not in where
        assert salt not in where
    assert "tells nobody" not in log
