"""neve.litellm in a real proxy: which node, which context, what is told."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from support.servers import wait_until

pytestmark = pytest.mark.integration

SESSION = "e96634a3-fa28-4083-b354-55542e2dca01"


def prompt(name: str) -> str:
    """Long enough for some pieces, and shared by nobody else."""
    return f"The rules of {name}: " + f"{name} keeps what was computed once. " * 16


def test_requests_with_a_prefix_go_to_the_node_that_had_it(world):
    """Four conversations of four turns, interleaved."""
    spoken = {name: [prompt(name)] for name in ("red", "blue", "green", "grey")}
    homes = {}
    for _ in range(4):
        for name, texts in spoken.items():
            answer = world.chat(*texts)
            assert answer.status_code == 200, answer.text
            node = world.node_of(answer)
            assert homes.setdefault(name, node) is node
            texts += ["xxx", f"And {name}?"]
    assert {id(node) for node in homes.values()} == {id(world.a), id(world.b)}  # both have some
    assert len(world.a.prompts) == len(world.b.prompts) == 8


def test_the_context_is_named_by_header_session_user_and_prefix(world):
    text = prompt("naming")
    body = {"messages": [{"role": "user", "content": text}]}
    path = "chat/completions"

    def named(answer):
        sent = world.node_of(answer).prompts[-1]["kv_transfer_params"]["neve"].get("context")
        assert answer.headers.get("x-neve-context") == sent
        return sent

    assert named(world.post(path, body)) is None  # nobody shares it yet
    assert named(world.post(path, body)).startswith("prefix-")
    assert named(world.post(path, body, **{"x-neve-context": "repo-42"})) == "repo-42"
    session = {"x-claude-code-session-id": SESSION}
    assert named(world.post(path, body, **session)) == f"session-{SESSION}"
    assert named(world.post(path, body | {"user": "ann@example.com"})).startswith("user-")
    given = {"neve": {"context": "mine", "pin": "2h"}}
    answer = world.post(path, body | {"kv_transfer_params": given}, **{"x-neve-context": "no"})
    assert world.node_of(answer).prompts[-1]["kv_transfer_params"] == given


def test_what_neve_holds_and_what_was_reused_is_told(world):
    messages = [{"role": "user", "content": prompt("telling") * 2}]
    stored = world.store(json.dumps(messages))
    assert stored >= 256

    # The answer of `lookup` comes while the node computes; how soon depends on the machine.
    for computes_s in (0.1, 1, 3, 9, 27):
        for node in (world.a, world.b):
            node.goes_on.clear()
            threading.Timer(computes_s, node.goes_on.set).start()
        headers = world.post(
            "chat/completions", {"messages": messages}, **{"x-neve-context": "tell"}
        ).headers
        if "x-neve-found-tokens" in headers:
            break
    assert int(headers["x-neve-found-tokens"]) == stored
    assert int(headers["x-neve-prompt-tokens"]) == len(json.dumps(messages))
    assert headers["x-neve-reused-tokens"] == "256"
    rows = []
    wait_until(
        lambda: rows.extend(
            row
            for row in world.proxy.rows()
            if row["request_id"] and (row["metadata"]["spend_logs_metadata"] or {}).get(
                "neve_context") == "tell"
        ) or rows,
        what="a row of spend logs",
    )  # fmt: skip
    told = rows[-1]["metadata"]["spend_logs_metadata"]
    assert told == told | {
        "neve_node": headers["x-neve-node"],
        "neve_named_by": "header",
        "neve_reused_tokens": 256,
        "neve_cached_tokens": 256,
    }
    assert rows[-1]["team_id"] == "acme-team"
    assert "keeps what was computed" not in json.dumps(told)


@pytest.mark.parametrize("path", ["chat/completions", "completions"])
def test_streams_pass_event_by_event(world, path):
    """The first event comes while the node still computes the others."""
    for node in (world.a, world.b):
        node.goes_on.clear()
    text = prompt(f"stream {path}")
    asked = (
        {"messages": [{"role": "user", "content": text}]} if "chat" in path else {"prompt": text}
    )
    with ThreadPoolExecutor() as threads:
        events = []

        def read():
            with httpx.stream(
                "POST",
                f"{world.proxy.url}/v1/{path}",
                json={"model": "tiny", "stream": True, "user": path} | asked,
                headers={"Authorization": "Bearer sk-acme-0123456789"},
                timeout=60,
            ) as answer:
                events.extend(line[6:] for line in answer.iter_lines() if line)
                return answer

        reading = threads.submit(read)
        wait_until(lambda: len(events) == 1, what="the first event")
        assert world.a.waiting + world.b.waiting == 1
        for node in (world.a, world.b):
            node.goes_on.set()
        answer = reading.result(60)
    assert answer.headers["x-neve-route"] == "new"
    assert events[-1] == "[DONE]"
    parts = [json.loads(event)["choices"][0] for event in events[:-1]]
    said = [
        (each.get("delta") or each).get("content" if "chat" in path else "text") for each in parts
    ]
    assert "".join(each or "" for each in said) == "xxx"


def test_a_streams_spend_row_says_what_the_nodes_caches_had(world):
    world.chat(prompt("row"), stream=True, headers={"x-neve-context": "streamed"})
    told = {}

    def is_written():
        for row in world.proxy.rows():
            metadata = row["metadata"]["spend_logs_metadata"] or {}
            if metadata.get("neve_context") == "streamed":
                told.update(metadata)
        return told

    wait_until(is_written, what="a row of spend logs")
    assert told["neve_cached_tokens"] == 256
    assert "neve_reused_tokens" not in told  # vLLM's streams have no place for it


def test_a_busy_holder_is_left_and_found_again(world):
    """Its margin is two requests."""
    text = prompt("busy")
    holder = world.node_of(world.chat(text))
    holder.goes_on.clear()
    with ThreadPoolExecutor(8) as threads:
        waiting = [threads.submit(world.chat, text, f"{n}") for n in range(2)]
        wait_until(lambda: holder.waiting == 2, what="two requests at the holder")
        third = threads.submit(world.chat, text, "third")
        wait_until(lambda: holder.waiting == 3, what="a third one")
        fourth = world.chat(text, "fourth")
        assert (world.node_of(fourth), fourth.headers["x-neve-route"]) == (
            world.other(holder),
            "load",
        )
        holder.goes_on.set()
        assert all(each.result(60).status_code == 200 for each in (*waiting, third))
    wait_until(lambda: world.node_of(world.chat(text, "0")) is holder, what="the holder again")


def test_clients_that_leave_do_not_count_as_load(world):
    """More of them than the margin allows."""
    text = prompt("leaving")
    holder = world.node_of(world.chat(text))
    for _ in range(6):
        holder.goes_on.clear()
        with httpx.stream(
            "POST",
            f"{world.proxy.url}/v1/chat/completions",
            json={
                **{"model": "tiny", "stream": True},
                "messages": [{"role": "user", "content": text}],
            },
            headers={"Authorization": "Bearer sk-acme-0123456789"},
        ):
            pass  # gone before the second event
        holder.goes_on.set()
        wait_until(lambda: holder.waiting == 0, what="the end of the node's answer")
    wait_until(lambda: world.node_of(world.chat(text)) is holder, what="the holder")


def test_a_node_that_fails_is_replaced_at_once_and_holds_nothing(world):
    text = prompt("failing")
    holder = world.node_of(world.chat(text))
    holder.fails = 503
    answer = world.chat(text)
    assert answer.status_code == 200
    assert world.node_of(answer) is world.other(holder)
    holder.fails = None
    for _ in range(3):  # the other one has it now
        assert world.node_of(world.chat(text)) is world.other(holder)


def test_what_a_node_refuses_is_passed_on(world):
    for node in (world.a, world.b):
        node.fails = 400
    answer = world.chat(prompt("refused"))
    assert answer.status_code == 400
    assert "as told" in answer.text
    for node in (world.a, world.b):
        node.fails = None
    assert world.chat(prompt("refused")).status_code == 200  # no node rests because of it


def test_tenants_share_neither_names_nor_nodes(world):
    """`other` shares the model group, but sees no engine: its requests pass without Neve."""
    text = prompt("tenants")
    assert [world.chat(text).status_code for _ in range(2)] == [200, 200]
    for _ in range(4):
        answer = world.chat(text, team="other")
        assert answer.status_code == 200
        assert not [name for name in answer.headers if name.startswith("x-neve")]
    assert world.chat(text, team="stranger").status_code == 200
    sent = [body for node in (world.a, world.b) for body in node.prompts]
    assert len([body for body in sent if "kv_transfer_params" in body]) == 2


def test_a_node_kept_for_a_tenant_is_nobody_elses(world):
    own = world.chat(prompt("guarded"), model="guarded")
    assert own.status_code == 200
    assert own.headers["x-neve-node"]
    before = len(world.a.prompts) + len(world.b.prompts)
    assert world.chat(prompt("guarded"), model="guarded", team="other").status_code >= 400
    assert len(world.a.prompts) + len(world.b.prompts) == before


def test_teams_of_a_salted_tenant_share_no_kv(world):
    text = prompt("salted")
    salts = []
    for team, given in (("one", None), ("one", None), ("two", None), ("one", "own")):
        more = {} if given is None else {"cache_salt": given}
        answer = world.chat(text, team=team, **more)
        salts.append(world.node_of(answer).prompts[-1]["cache_salt"])
    assert salts[0] == salts[1]
    assert len(set(salts)) == 3
    assert "own" not in salts
    plain = world.chat(text)
    assert "cache_salt" not in world.node_of(plain).prompts[-1]


def test_servers_without_neve_get_nothing_of_it(world):
    answer = world.chat(prompt("plain"), model="plain", user="ann")
    assert answer.status_code == 200
    assert "kv_transfer_params" not in world.plain.prompts[-1]
    assert "x-neve-node" not in answer.headers


def test_of_a_mixed_group_the_first_server_keeps_a_prefix(world):
    """LiteLLM's own strategy chooses as long as nobody holds it."""
    for n in range(4):
        text = prompt(f"mixed {n}")
        for node in (world.a, world.plain):
            node.calls.clear()
        assert {world.chat(text, model="mixed").status_code for _ in range(4)} == {200}
        assert sorted([len(world.a.prompts), len(world.plain.prompts)]) == [0, 4]
    assert not any("kv_transfer_params" in body for body in world.plain.prompts)


def test_embeddings_pass(world):
    answer = world.post("embeddings", {"input": "text"})
    assert answer.json()["data"][0]["embedding"] == [0.5]
    bodies = [body for node in (world.a, world.b) for body in node.bodies("/v1/embeddings")]
    assert [set(body) & {"kv_transfer_params", "cache_salt"} for body in bodies] == [set()]


def test_other_apis_that_litellm_translates_are_routed(world):
    text = prompt("translated")
    asked = {"max_tokens": 3, "system": "s", "messages": [{"role": "user", "content": text}]}
    homes = set()
    for _ in range(3):
        answer = world.post("messages", asked)
        assert answer.status_code == 200, answer.text
        homes.add(id(world.node_of(answer)))
    assert len(homes) == 1


@pytest.mark.parametrize("streams", [False, True])
def test_geminis_form_is_routed_and_salted(world, streams):
    text = prompt(f"gemini {streams}")
    for team in ("acme", "acme", "one"):
        answer = world.gemini(text, streams=streams, team=team)
        assert answer.status_code == 200, answer.text
        assert "xxx" in answer.text or answer.text.count('"x"') == 3
    sent = [body for node in (world.a, world.b) for body in node.prompts]
    salted = [body for body in sent if "cache_salt" in body]
    assert (len(sent), len(salted)) == (3, 1)
    assert all("neve" in body["kv_transfer_params"] for body in sent)
    named = [body["kv_transfer_params"]["neve"].get("context") or "" for body in sent]
    assert sum(name.startswith("prefix-") for name in named) == 1  # the second shares the first's


def test_without_the_platform_requests_are_answered_and_routed(world):
    """It stands still: look-ups get no answer, and soon none is sent."""
    text = prompt("frozen")
    holder = world.node_of(world.chat(text))
    world.platform.freeze()
    try:
        for n in range(6):
            answer = world.chat(text, "xxx", f"{n}")
            assert answer.status_code == 200
            assert world.node_of(answer) is holder
    finally:
        world.platform.thaw()


def test_no_prompt_is_in_a_log(world):
    world.chat(prompt("mentioned"))
    assert "mentioned keeps" not in world.proxy.log.read_text(errors="replace")
