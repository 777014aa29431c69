"""Prefill on one server, decode on another, Neve in between: as behind a proxy in production."""

import re
import sys
import threading
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from neve.index.tier import HotTier
from support.servers import Server, answers, free_port, http_status, wait_until
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


class Proxy(Server):
    name = "proxy"

    def __init__(self, folder, prefill, decode):
        super().__init__(folder)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._nodes = ("--prefill", prefill, "--decode", decode)

    def command(self):
        module = "deploy.prefill_decode_proxy"
        return [sys.executable, "-m", module, "--port", str(self.port), *self._nodes]

    def ready(self):
        return answers(self.port)


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
def proxy(nodes, tmp_path_factory):
    prefill, decode = nodes
    with Proxy(tmp_path_factory.mktemp("proxy"), prefill.url, decode.url) as running:
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


def test_one_computes_the_prompt_and_the_other_answers(platform, nodes, proxy):
    prefill, decode = nodes
    before = block_keys(platform)
    alone = decode.complete(prompt=PROMPT)
    assert block_keys(platform) == before  # a consumer saves nothing
    asked = {"neve": {"context": "repo-9"}}
    answer = complete(proxy.url, prompt=PROMPT, kv_transfer_params=asked)
    assert text(answer) == text(alone)
    said = answer["kv_transfer_params"]["neve"]
    assert (said["context"], said["reused_tokens"], said["hot"]) == ("repo-9", 256, 256)
    assert decode.metric("neve_handovers_total", outcome="complete") == 1
    assert decode.metric("external_prefix_cache_hits_total") == HIT_TOKENS
    assert prefill.metric("prompt_tokens_by_source_total", source="local_compute") == len(PROMPT)


def test_a_stream_passes_through(nodes, proxy):
    _, decode = nodes
    assert "".join(text(event) for event in stream(proxy.url, prompt=PROMPT)) == text(
        decode.complete(prompt=PROMPT)
    )
    assert decode.metric("external_prefix_cache_hits_total") == 3 * HIT_TOKENS


@pytest.mark.parametrize("wrong", [{"max_tokens": -5}, {"kv_transfer_params": 7}])
def test_a_refusal_passes_through(proxy, wrong):
    with pytest.raises(HTTPError) as refused:
        complete(proxy.url, prompt=PROMPT, **wrong)
    assert refused.value.code == 400


def test_what_is_no_prompt_is_the_decode_nodes(proxy):
    assert http_status(f"{proxy.url}/v1/models") == 200
    nonsense = Request(f"{proxy.url}/v1/completions", b"[1", {"Content-Type": "application/json"})
    with pytest.raises(HTTPError, match="400"):
        urlopen(nonsense, timeout=60)


def test_a_malformed_wish_changes_nothing(nodes, proxy):
    answer = complete(proxy.url, prompt=PROMPT, kv_transfer_params={"neve": 7})
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


def test_without_a_prefill_node_the_decode_node_computes(nodes, proxy):
    prefill, decode = nodes
    prefill.terminate()
    answer = complete(proxy.url, prompt="Nobody prefills. " * 9)
    alone = decode.complete(prompt="Nobody prefills. " * 9)
    assert text(answer) == text(alone)
    assert answer["kv_transfer_params"]["neve"]["reused_tokens"] == 0
