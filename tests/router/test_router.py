"""`neve router` before light engines: what clients get, whatever pools and Neve do."""

import concurrent.futures
import http.client
import json
import re
import socket
import threading
import time
from typing import Any

import httpx
import pytest
from starlette.responses import JSONResponse, Response, StreamingResponse

import neve.router.router as router_module
from neve.errors import Misuse
from support.light_engines import CHUNK, LightEngine, answer_of, tokens_of
from support.servers import free_port, wait_until

LONG = "What was computed once is kept. " * 80  # 2,560 tokens
CHAT = {"messages": [{"role": "user", "content": LONG}]}


def post(router: Any, path: str = "/v1/completions", **body: Any) -> httpx.Response:
    asked = {"model": "tiny", "max_tokens": 8} | body
    headers = asked.pop("headers", {})
    return httpx.post(f"{router.url}{path}", json=asked, headers=headers, timeout=30)


def text(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["text"]


def expected(prompt: Any = LONG, count: int = 8) -> str:
    return "".join(answer_of(tokens_of({"prompt": prompt}), count))


def outcome(answer: httpx.Response) -> str:
    return answer.headers["x-neve-prefill"].partition(";")[0]


def metric(router: Any, name: str, **labels: str) -> float:
    for line in httpx.get(f"{router.watching}/metrics").text.splitlines():
        if line.startswith(f"neve_router_{name}") and all(
            f'{key}="{value}"' in line for key, value in labels.items()
        ):
            return float(line.rsplit(" ", 1)[1])
    return 0.0


# ---- the way of a request


def test_a_pool_computes_a_long_prompt_and_the_decode_node_answers(start, pool, decode, engine):
    router = start(pool)
    answer = post(router, prompt=LONG)
    assert text(answer) == expected()
    assert outcome(answer) == "handed_over"
    assert re.fullmatch(
        r"handed_over; pool=far; uncached=2560; threshold=\d+; took=[\d.]+",
        answer.headers["x-neve-prefill"],
    )
    assert engine.computed == [2560]
    assert decode.computed == [1]  # the last token; the rest was loaded
    (body,) = decode.bodies()
    assert body["kv_transfer_params"]["neve"]["prefilled"]["tokens"] == 2560
    assert metric(router, "prompts_total", pool="far", outcome="handed_over") == 1
    assert metric(router, "sent_bytes_total", pool="far") == 2_560_000


def test_what_is_stored_is_not_computed_again(start, pool, decode, engine):
    router = start(pool)
    post(router, prompt=LONG)
    again = post(router, prompt=LONG)
    assert (text(again), outcome(again)) == (expected(), "short")
    assert len(engine.bodies()) == 1


def test_a_short_prompt_goes_to_the_decode_node_alone(start, pool, decode, engine):
    router = start(pool)
    assert text(post(router, prompt="Short.")) == expected("Short.")
    assert not engine.calls


@pytest.mark.parametrize("salt", ["", "pepper"])
def test_chats_are_tokenised_by_the_engine(start, pool, decode, engine, salt):
    router = start(pool)
    more = {"cache_salt": salt} if salt else {}
    answer = post(router, "/v1/chat/completions", **CHAT, **more)
    assert answer.json()["choices"][0]["message"]["content"]
    assert outcome(answer) == "handed_over"
    (body,) = engine.bodies()
    assert body["prompt"] == tokens_of(CHAT)
    assert body.get("cache_salt", "") == salt


def test_token_ids_need_no_tokeniser(start, pool, decode, engine):
    router = start(pool)
    ids = list(range(2000))
    assert text(post(router, prompt=ids)) == expected(ids)
    assert not decode.bodies("/tokenize")
    assert engine.computed == [2000]


def test_the_clients_wish_reaches_the_decode_node(start, pool, decode, engine):
    router = start(pool)
    post(router, prompt=LONG, kv_transfer_params={"neve": {"context": "repo", "pin": "2h"}})
    wish = decode.bodies()[0]["kv_transfer_params"]["neve"]
    assert (wish["context"], wish["pin"]) == ("repo", "2h")
    assert engine.bodies()[0]["kv_transfer_params"] == {"do_remote_decode": True}


def test_a_session_names_the_context(start, pool, decode):
    router = start(pool)
    post(router, prompt=LONG, headers={"x-session-id": "session-42"})
    assert decode.bodies()[0]["kv_transfer_params"]["neve"]["context"] == "session-session-42"


def test_other_prompts_are_the_decode_nodes(start, pool, decode, engine):
    router = start(pool)
    decode.fails = lambda path, body: JSONResponse({"choices": [{"text": "as it is"}]})
    for more in (
        {"model": "other"},
        {"prompt_logprobs": 1},
        {"truncate_prompt_tokens": 100},
        {"prompt": [LONG, LONG]},
        {"echo": True},
    ):
        assert text(post(router, **{"prompt": LONG} | more)) == "as it is"
    assert not engine.calls


# ---- answers pass unharmed


def test_a_stream_passes_as_it_comes(start, pool, decode):
    decode.token_s = 0.2
    router = start(pool)
    asked = {"model": "tiny", "prompt": LONG, "max_tokens": 5, "stream": True}
    with httpx.stream("POST", f"{router.url}/v1/completions", json=asked, timeout=30) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = answer.iter_lines()
        first = next(line for line in lines if line)
        assert decode.cancelled == 0
        rest = [line for line in lines if line]
    events = [json.loads(line[6:]) for line in [first, *rest] if line != "data: [DONE]"]
    assert "".join(event["choices"][0]["text"] for event in events) == expected(count=5)
    assert rest[-1] == "data: [DONE]"


def test_statuses_headers_and_errors_are_the_engines_own(start, pool, decode):
    router = start(pool)
    refused = post(router, prompt="x", max_tokens=-1)
    assert (refused.status_code, refused.json()) == (
        *(400, {"error": {"message": "max_tokens must be positive"}}),
    )
    assert post(router, prompt=LONG).headers["x-engine"] == "tiny"
    for status in (401, 404, 429, 500, 503):
        decode.fails = lambda path, body, status=status: Response(
            b"own words", status, {"Retry-After": "7", "X-Own": "1"}
        )
        answer = post(router, prompt="x")
        assert (answer.status_code, answer.content) == (status, b"own words")
        assert (answer.headers["retry-after"], answer.headers["x-own"]) == ("7", "1")
    assert metric(router, "answers_total", status="429") == 1


def test_nonsense_is_refused_by_the_engine(start, pool, decode):
    router = start(pool)
    decode.fails = lambda path, body: JSONResponse({"error": "nonsense"}, 400)
    for raw in (b"[1", b"7", b"{}", b'{"prompt": {}}', b"\xff", b"[" * 100_000):
        answer = httpx.post(f"{router.url}/v1/completions", content=raw, timeout=30)
        assert answer.status_code == 400


def test_a_wish_that_is_no_object_is_refused_by_the_engine(start, pool, decode):
    router = start(pool)
    post(router, prompt=LONG, kv_transfer_params=7)
    assert decode.bodies()[0]["kv_transfer_params"] == 7


def test_an_answer_that_breaks_off_breaks_off_for_the_client(start, pool, decode):
    async def broken():
        yield b"data: {}\n\n"
        raise RuntimeError("the engine dies")

    router = start(pool)
    decode.fails = lambda path, body: StreamingResponse(broken(), media_type="text/event-stream")
    with pytest.raises(httpx.RemoteProtocolError):
        post(router, prompt="x", stream=True)
    assert post(router, "/v1/nothing").status_code == 404  # the router itself goes on


def test_what_is_no_prompt_passes(start, pool, decode):
    router = start(pool)
    assert httpx.get(f"{router.url}/v1/models").json()["data"][0]["id"] == "tiny"
    assert post(router, "/tokenize", prompt="ab").json()["tokens"] == [97, 98]


def test_paths_that_change_engines_do_not(start, pool, decode):
    router = start(pool)
    for path in ("/reset_prefix_cache", "/sleep", "/", "/v2/x", "/pings", "/v1/%2e%2e/sleep",
                 "/v1/..%2Fsleep"):  # fmt: skip
        assert post(router, path).status_code == 404
    assert not decode.calls


def test_what_a_client_sends_wrong_is_no_fault_of_a_node(start, pool, decode):
    router = start(pool)
    for line in ("X-A: foo ", "X-A:\tfoo\t", "X-A: f\x0bo"):
        with socket.create_connection(("127.0.0.1", router.port), timeout=30) as sock:
            sock.sendall(f"GET /v1/models HTTP/1.1\r\nHost: x\r\n{line}\r\n\r\n".encode())
            status = int(sock.recv(4096).split()[1])
        assert status in (200, 400)
    assert httpx.get(f"{router.watching}/health").json()["decode"] == {"a": True}


def test_no_pool_computes_while_nobody_knows_whether_a_key_is_wanted(start, pool, engine):
    router = start(pool, decode=[{"url": "http://127.0.0.1:1", "name": "a"}], model="tiny")
    assert post(router, prompt=list(LONG.encode())).status_code == 502
    assert "/v1/completions" not in [path for path, *_ in engine.calls]


# ---- bounds


def test_a_body_beyond_the_bound_is_refused(start, pool, decode):
    router = start(pool, most_body_bytes=1000)
    answer = post(router, prompt=LONG)
    assert answer.status_code == 413
    assert "1000 bytes (most_body_bytes)" in answer.json()["error"]["message"]
    assert not decode.calls


def begin_body(router: Any, size: int, sent: bytes) -> socket.socket:
    """A request of which the rest of the body does not come."""
    sock = socket.create_connection(("127.0.0.1", router.port), timeout=30)
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n"
    sock.sendall(head.encode() + sent)
    return sock


def refusal(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["message"].rpartition(" ")[2]


def test_a_body_that_does_not_come_is_given_up(start, decode):
    router = start(body_s=0.3)
    with begin_body(router, 1000, b"{") as sock:
        said = b""
        while b"0.3 s (body_s)" not in said and (part := sock.recv(4096)):
            said += part
    assert said.startswith(b"HTTP/1.1 408")
    assert b"0.3 s (body_s)" in said
    assert text(post(router, prompt="x")) == expected("x")


def test_requests_and_bodies_at_a_time_have_bounds(start, decode):
    router = start(most_requests=2, most_body_bytes=4000, most_held_bytes=5000)
    with begin_body(router, 4000, b" " * 3990):
        wait_until(
            lambda: refusal_of(router, prompt="x" * 2000) == (503, "(most_held_bytes)"),
            what="a refusal for the other body's sake",
        )
        assert text(post(router, prompt="x")) == expected("x")
        with begin_body(router, 100, b"{"):
            wait_until(
                lambda: refusal_of(router, prompt="x") == (503, "(most_requests)"),
                what="a refusal for the other requests' sake",
            )
    wait_until(lambda: post(router, prompt="x" * 2000).status_code == 200, what="room again")


def refusal_of(router: Any, **body: Any) -> tuple[int, str] | None:
    answer = post(router, **body)
    return None if answer.status_code == 200 else refusal(answer)


def test_others_are_answered_while_a_large_body_is_read(start, pool, decode, monkeypatch):
    is_read, goes_on = threading.Event(), threading.Event()
    read = router_module._prompted

    def slow(asked: Any) -> Any:
        if len(asked.body) > 4096:
            is_read.set()
            assert goes_on.wait(60)
        return read(asked)

    monkeypatch.setattr(router_module, "_prompted", slow)
    monkeypatch.setattr(router_module, "_SMALL_BYTES", 4096)
    router = start(pool)
    large = LONG * 2
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        asked = thread.submit(post, router, prompt=large)
        assert is_read.wait(60)
        assert text(post(router, prompt=LONG)) == expected()
        assert not asked.done()
        goes_on.set()
        assert text(asked.result()) == expected(large)
    assert outcome(asked.result()) == "handed_over"


def test_no_prompt_beyond_the_model_is_looked_up(start, pool, decode, engine, neve):
    router = start(pool)
    router.inner.router.prefills.most_tokens = 2000
    decode.fails = lambda path, body: (
        JSONResponse({"choices": [{"text": "refused"}]}) if path != "/tokenize" else None
    )
    for prompt in (LONG, list(range(2001)), "x" * 400_000):  # the last one is not even read
        assert text(post(router, prompt=prompt)) == "refused"
    assert not engine.calls
    assert not neve.lookups
    assert "kv_transfer_params" not in decode.bodies()[-1]


# ---- what clients may know


def test_clients_learn_nothing_of_others(start, pool, decode, engine):
    router = start(pool, tells_outcome=False)
    answers = [post(router, prompt=LONG) for _ in range(2)]
    assert len(engine.bodies()) == 1  # the second one was stored
    assert not [name for each in answers for name in each.headers if name.startswith("x-neve")]
    health = httpx.get(f"{router.url}/health")
    assert (health.status_code, health.json()) == (200, {"status": "ok"})
    assert httpx.get(f"{router.url}/metrics").status_code == 404
    assert httpx.get(f"{router.watching}/health").json()["pools"] == {"far": "free"}
    assert httpx.get(f"{router.watching}/v1/models").status_code == 404


def test_a_port_for_operators_that_is_taken_ends_the_start(start, pool, decode):
    with pytest.raises(Misuse, match="metrics_port: cannot listen at 127"):
        start(pool, metrics_port=decode.port)


# ---- clients that go away


def gone_after(router: Any, ready: Any, **body: Any) -> None:
    """Sends a request, and closes the connection once `ready`."""
    client = http.client.HTTPConnection("127.0.0.1", router.port)
    asked = {"model": "tiny", "prompt": LONG, "max_tokens": 500} | body
    client.request("POST", "/v1/completions", json.dumps(asked))
    wait_until(ready, what="the request in the engine")
    client.close()


def test_a_client_that_goes_away_ends_the_prefill(start, pool, decode, engine):
    engine.s_per_token = 0.01
    router = start(pool)
    gone_after(router, lambda: engine.running == 1)
    wait_until(lambda: engine.cancelled == 1, what="the end of the prefill")
    assert not decode.bodies()


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_ends_the_answer(start, pool, decode, stream):
    decode.s_per_token = 0.0 if stream else 0.01
    decode.token_s = 0.05
    router = start()
    gone_after(router, lambda: bool(decode.bodies()), stream=stream)
    wait_until(lambda: decode.cancelled == 1, what="the end of the answer")
    assert metric(router, "node_in_flight", node="a") == 0


# ---- whatever fails, the client gets its answer


def test_a_lost_pool_means_local_prefill(start, pool, decode, monkeypatch):
    monkeypatch.setattr("neve.gateway.nodes.REST_S", 30.0)  # the machine may be busy
    router = start(pool | {"urls": [f"http://127.0.0.1:{free_port()}"]})
    answers = [post(router, prompt=LONG) for _ in range(2)]
    assert [text(each) for each in answers] == [expected()] * 2
    assert [outcome(each) for each in answers] == ["failed", "short"]
    assert metric(router, "pool_lost_engines", pool="far") == 1
    assert httpx.get(f"{router.watching}/health").json()["pools"] == {"far": "lost"}


def test_a_pool_that_dies_during_the_prefill_means_local_prefill(start, pool, decode, world):
    with LightEngine(world, s_per_token=1.0) as dying:
        router = start(pool | {"urls": [dying.url]})
        with concurrent.futures.ThreadPoolExecutor(1) as thread:
            asked = thread.submit(post, router, prompt=LONG)
            wait_until(lambda: dying.running == 1, what="the prefill")
            dying.__exit__()
            assert text(asked.result()) == expected()


def test_a_slow_pool_means_local_prefill(start, pool, decode, engine):
    engine.s_per_token = 1.0
    router = start(pool | {"prefill_s": 0.3})
    answer = post(router, prompt=LONG)
    assert (text(answer), outcome(answer)) == (expected(), "slow")
    wait_until(lambda: engine.cancelled == 1, what="the end of the prefill")


def test_a_full_pool_means_local_prefill(start, pool, decode, engine):
    engine.s_per_token = 1e-3
    router = start(pool | {"most_waiting": 1, "prefill_tokens_per_s": 1e5})
    prompts = [f"{n}{LONG}" for n in range(3)]
    with concurrent.futures.ThreadPoolExecutor(3) as threads:
        answers = list(threads.map(lambda each: post(router, prompt=each), prompts))
    assert [text(each) for each in answers] == [expected(each) for each in prompts]
    assert "full" in {outcome(each) for each in answers}


def test_blocks_that_do_not_come_mean_local_prefill(start, pool, decode, engine):
    engine.stores_nothing = True
    router = start(pool | {"wait_s": 0.2})
    answer = post(router, prompt=LONG)
    assert (text(answer), outcome(answer)) == (expected(), "late")
    assert decode.computed == [2560]


@pytest.mark.parametrize("how", ["away", "hangs", "refuses", "dead"])
def test_without_neve_the_decode_node_computes(start, pool, decode, engine, neve, how):
    router = start(pool, lookup_deadline_s=0.2)
    if how == "away":
        neve.is_away = True
    elif how == "hangs":
        neve.hangs = True
    elif how == "refuses":
        neve.key = "another"
    else:
        neve.__exit__()
    answers = [post(router, prompt=LONG) for _ in range(4)]
    assert [text(each) for each in answers] == [expected()] * 4
    assert {outcome(each) for each in answers} == {"unreachable"}
    assert not engine.bodies()
    neve.hangs = False


def test_neve_that_goes_away_during_the_prefill_does_no_harm(start, pool, decode, engine, neve):
    engine.s_per_token = 2e-4
    router = start(pool)
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        asked = thread.submit(post, router, prompt=LONG)
        wait_until(lambda: engine.running == 1, what="the prefill")
        neve.is_away = True
        answer = asked.result()
    assert (text(answer), outcome(answer)) == (expected(), "late")
    # The decode node waits for these blocks by itself.
    assert decode.bodies()[0]["kv_transfer_params"]["neve"]["prefilled"]["tokens"] == 2560


def test_a_router_without_neve_starts_and_learns_later(start, pool, decode, engine, neve):
    neve.is_away = True
    router = start(pool)
    assert httpx.get(f"{router.watching}/health").json()["space"] is None
    assert text(post(router, prompt=LONG)) == expected()
    neve.is_away = False
    wait_until(
        lambda: httpx.get(f"{router.watching}/health").json()["space"] == 3, what="the space"
    )
    wait_until(lambda: outcome(post(router, prompt=f"{time.time()}{LONG}")) == "handed_over",
               what="a hand-over")  # fmt: skip


def test_a_speed_that_nodes_measure_later_is_known_soon(start, pool, neve, monkeypatch):
    monkeypatch.setattr("neve.router.app.REFRESH_S", 1e9)
    neve.prefill_tokens_per_s = None
    del pool["prefill_tokens_per_s"]
    router = start(pool)
    assert outcome(post(router, prompt=LONG)) == "unknown"
    neve.prefill_tokens_per_s = 1000.0
    wait_until(lambda: outcome(post(router, prompt=f"{time.time()}{LONG}")) != "unknown",
               what="a speed")  # fmt: skip


def test_another_decode_node_answers_for_one_that_does_not(start, pool, decode, world):
    away = f"http://127.0.0.1:{free_port()}"
    with LightEngine(world) as other:
        nodes = [{"url": away, "name": "a"}, {"url": other.url, "name": "b"}]
        router = start(pool, decode=nodes)
        for n in range(3):
            assert text(post(router, prompt=f"{n}")) == expected(f"{n}")
        health = httpx.get(f"{router.watching}/health")
        assert (health.status_code, health.json()["decode"]) == (200, {"a": False, "b": True})
        assert metric(router, "node_healthy", node="a") == 0


def test_without_decode_nodes_the_client_is_told(start, pool):
    router = start(pool, decode=[{"url": f"http://127.0.0.1:{free_port()}", "name": "a"}])
    answer = post(router, prompt="x")
    assert answer.status_code == 502
    assert answer.json()["error"]["message"].startswith("a does not answer")
    health = httpx.get(f"{router.watching}/health")
    assert (health.status_code, health.json()["status"]) == (503, "no decode node answers")


# ---- keys


def test_a_pool_computes_only_for_clients_whose_key_the_decode_nodes_take(
    start, pool, decode, engine, neve
):
    decode.key = "sk-client"
    router = start(pool, engine_key_env="KEY", env={"KEY": "sk-client"})
    assert post(router, prompt=LONG).status_code == 401
    wrong = {"Authorization": "Bearer sk-wrong"}
    assert post(router, prompt=LONG, headers=wrong).status_code == 401
    assert not engine.calls
    assert not neve.lookups
    right = {"Authorization": "Bearer sk-client"}
    answer = post(router, prompt=LONG, headers=right)
    assert (text(answer), outcome(answer)) == (expected(), "handed_over")
    (_, _, headers), *_ = [each for each in engine.calls if each[0] == "/v1/completions"]
    assert "authorization" not in headers  # a client's key is the decode nodes' alone


# ---- the threshold


def test_the_threshold_follows_the_link(start, pool, engine, decode):
    router = start(pool | {"link_mbit": 400, "least_tokens": 1})

    def state() -> tuple[float, float]:
        speed, threshold = (
            metric(router, f"{name}{{", pool="far")
            for name in ("link_bytes_per_second", "threshold_tokens")
        )
        return speed, threshold

    before = state()
    assert before[0] == 50e6
    assert before[1] > 0
    engine.link = 2e6

    def has_moved() -> bool:
        post(router, prompt=f"{time.time()}{LONG}")
        speed, threshold = state()
        return speed < before[0] / 4 and threshold > before[1]

    wait_until(has_moved, what="a higher threshold")


def test_chunks_of_the_last_piece_are_the_decode_nodes(start, pool, decode, engine):
    router = start(pool)
    prompt = LONG + "x" * (CHUNK - 1)
    assert text(post(router, prompt=prompt)) == expected(prompt)
    assert decode.computed == [CHUNK - 1]
