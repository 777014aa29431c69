"""Prefill on one server, decode on another, Neve in between, `neve router` before both."""

import re
import threading
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import httpx
import pytest

from neve.api import Neve
from neve.index.tier import HotTier
from support.router_server import RouterServer
from support.servers import http_status, wait_until
from support.vllm_server import VllmServer, complete, stream

pytestmark = pytest.mark.vllm

# Prompts that no other test stores.
PROMPT = "One computes, the other answers. " * 9
OTHER_PROMPT = "Prefill here, decode over there. " * 9
LATE_PROMPT = "What comes late is waited for. " * 9
HIT_TOKENS = 256
# What vLLM's example proxies send with a prefill (toy_proxy_server.py, disagg_proxy_multiturn.py).
HANDS_OVER = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}


@pytest.fixture(scope="module")
def nodes(platform, vllm_python, model, engine_environment, tmp_path_factory):
    """The prefill and the decode server. Prompts are computed in pieces of 128 tokens."""
    env = engine_environment(VLLM_ENABLE_V1_MULTIPROCESSING="1", NEVE_API_KEY=platform.node_key)
    neve = {
        "load": "always",
        "canary": 0,
        "max_chunk_tokens": 64,
        "match_deadline_s": 5,
        "load_deadline_s": 20,
    }
    neve |= {"endpoint": platform.url, "handover_wait_s": 20}

    def server(role, waits):
        return VllmServer(
            tmp_path_factory.mktemp(role),
            vllm_python,
            model,
            neve | {"node": role},
            env,
            role=role,
            more=("--max-num-batched-tokens", "128"),
            waits=waits,
        )

    with server("kv_producer", False) as prefill, server("kv_consumer", True) as decode:
        wait_until(prefill.healthy, timeout_s=prefill.start_timeout_s, what="prefill")
        yield prefill, decode


@pytest.fixture(scope="module")
def router(platform, nodes, tmp_path_factory):
    """The pool counts as very fast until it is measured, so that it gets a prompt."""
    prefill, decode = nodes
    decode.complete(prompt="Opens a session. " * 9)
    with Neve(platform.url, platform.team_key) as neve:
        (space,) = {each.space for each in neve.nodes.list() if each.node == "kv_consumer"}
    config = f"""
model = "tiny"
space = {space}
lookup_deadline_s = 5
decode = [{{url = "{decode.url}", name = "decode"}}]
[[pool]]
name = "far"
urls = ["{prefill.url}"]
link_mbit = 100000
prefill_tokens_per_s = 1e9
least_tokens = 1
"""
    with RouterServer(tmp_path_factory.mktemp("router"), platform, config) as running:
        yield running


def text(answer):
    return answer["choices"][0]["text"]


def block_keys(platform):
    with platform.hot.client() as client:
        return {key for key in client.scan_iter(count=1000) if b":b:" in key}


def matches(platform):
    """Function calls that Valkey answered: nearly all of them are look-ups here."""
    with platform.hot.client() as client:
        return client.info("commandstats")["cmdstat_fcall"]["calls"]


def expire(platform, keys):
    """Removes blocks from the index as well."""
    tenant_id = int(re.match(rb"\{t(\d+)\.", next(iter(keys)))[1])
    with platform.hot.client() as client:
        hot = HotTier(client.execute_command, tenant_id)
        assert hot.expire([key[-16:] for key in keys]) == (len(keys), 0)


def test_one_computes_the_prompt_and_the_other_answers(platform, nodes, router):
    _, decode = nodes
    before = block_keys(platform)
    decode.complete(prompt=PROMPT)
    assert block_keys(platform) == before  # a consumer saves nothing
    prompts = (f"{n:03} {PROMPT * 3}" for n in range(1000))  # 895 tokens
    wish = {"neve": {"context": "repo-9"}}
    handed = []

    def is_handed_over():
        """Not as long as the platform has no measure of the space's nodes."""
        prompt = next(prompts)
        alone = decode.complete(prompt=prompt)
        asked = {"model": "tiny", "prompt": prompt, "max_tokens": 8, "temperature": 0}
        asked |= {"kv_transfer_params": wish}
        answer = httpx.post(f"{router.url}/v1/completions", json=asked, timeout=60)
        said = answer.json()
        assert text(said) == text(alone)
        handed.append((answer.headers["x-neve-prefill"], said["kv_transfer_params"]["neve"]))
        return handed[-1][0].startswith("handed_over; pool=far")

    wait_until(is_handed_over, timeout_s=240, what="a hand-over")
    said = handed[-1][1]
    assert (said["context"], said["reused_tokens"], said["hot"]) == ("repo-9", 832, 832)


def test_a_stream_passes_through(nodes, router):
    _, decode = nodes
    assert "".join(text(event) for event in stream(router.url, prompt=PROMPT)) == text(
        decode.complete(prompt=PROMPT)
    )


@pytest.mark.parametrize("wrong", [{"max_tokens": -5}, {"kv_transfer_params": 7}])
def test_a_refusal_passes_through(router, wrong):
    with pytest.raises(HTTPError) as refused:
        complete(router.url, prompt=PROMPT, **wrong)
    assert refused.value.code == 400


def test_what_is_no_prompt_is_the_decode_nodes(router):
    assert http_status(f"{router.url}/v1/models") == 200
    nonsense = Request(f"{router.url}/v1/completions", b"[1", {"Content-Type": "application/json"})
    with pytest.raises(HTTPError, match="400"):
        urlopen(nonsense, timeout=60)


def test_a_malformed_wish_changes_nothing(nodes, router):
    answer = complete(router.url, prompt=PROMPT, kv_transfer_params={"neve": 7})
    assert text(answer) == text(nodes[1].complete(prompt=PROMPT))


def test_a_lost_block_is_computed(platform, nodes):
    prefill, decode = nodes
    alone = decode.complete(prompt=OTHER_PROMPT)
    before = block_keys(platform)
    params = prefill.complete(prompt=OTHER_PROMPT, max_tokens=1, kv_transfer_params=HANDS_OVER)[
        "kv_transfer_params"
    ]
    assert params["neve"]["prefilled"]["tokens"] == HIT_TOKENS
    wait_until(lambda: len(block_keys(platform) - before) == 4, what="blocks")
    with platform.hot.client() as client:  # behind the index's back
        client.delete(*(block_keys(platform) - before))
    answer = decode.complete(prompt=OTHER_PROMPT, kv_transfer_params=params)
    assert text(answer) == text(alone)
    assert answer["kv_transfer_params"]["neve"]["reused_tokens"] == 0


def test_blocks_that_come_late_are_waited_for(platform, nodes):
    prefill, decode = nodes
    alone = decode.complete(prompt=LATE_PROMPT)
    one = {"prompt": LATE_PROMPT, "max_tokens": 1, "kv_transfer_params": HANDS_OVER}
    before = block_keys(platform)
    params = prefill.complete(**one)["kv_transfer_params"]
    wait_until(lambda: len(block_keys(platform) - before) == 4, what="blocks")
    expire(platform, block_keys(platform) - before)
    late = {}
    waiting = threading.Thread(
        target=lambda: late.update(decode.complete(prompt=LATE_PROMPT, kv_transfer_params=params))
    )
    asked = matches(platform)
    waiting.start()
    wait_until(lambda: matches(platform) > asked + 20, what="a waiting request")
    # What the producer sent before is gone: it looks, and sends it again.
    prefill.complete(**one)
    waiting.join()
    assert text(late) == text(alone)
    assert late["kv_transfer_params"]["neve"]["reused_tokens"] == HIT_TOKENS


def test_without_a_prefill_node_the_decode_node_computes(nodes, router):
    prefill, decode = nodes
    prefill.kill()
    answer = complete(router.url, prompt="Nobody prefills. " * 9)
    alone = decode.complete(prompt="Nobody prefills. " * 9)
    assert text(answer) == text(alone)
    assert answer["kv_transfer_params"]["neve"]["reused_tokens"] == 0
