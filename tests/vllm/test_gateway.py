"""A real engine behind LiteLLM's real proxy with `neve.litellm`; two with `make test-litellm`.

Which of several nodes is chosen: `tests/litellm`.
"""

import itertools
import json
import os
import re
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from neve.api import Neve
from support.litellm_proxy import LitellmProxy
from support.servers import wait_until
from support.vllm_server import PROMPT, VllmServer

pytestmark = [pytest.mark.vllm, pytest.mark.usefixtures("nodes")]

NODES = ("gateway-1", "gateway-2")[: 2 if os.environ.get("NEVE_TEST_LONG") == "1" else 1]
SESSION = "e96634a3-fa28-4083-b354-55542e2dca01"


@pytest.fixture(scope="module")
def starting(platform, vllm_python, model, engine_environment, tmp_path_factory):
    env = engine_environment(VLLM_ENABLE_V1_MULTIPROCESSING="1", NEVE_API_KEY=platform.node_key)
    neve = {
        "endpoint": platform.url,
        "load": "always",
        "canary": 0,
        "max_chunk_tokens": 64,
        "match_deadline_s": 5,
        "load_deadline_s": 20,
    }
    folder = tmp_path_factory.mktemp("gateway")
    with ExitStack() as stack:
        servers = [
            stack.enter_context(
                VllmServer(
                    folder / name,
                    vllm_python,
                    model,
                    neve | {"node": name},
                    env,
                    more=("--enable-prompt-tokens-details",),
                    waits=False,
                )
            )
            for name in NODES
        ]
        yield servers


@pytest.fixture(scope="module")
def nodes(platform, proxy, starting):
    for server in starting:
        wait_until(server.healthy, timeout_s=300, what=server.url)
        server.complete(prompt="Opens a session. " * 9)
    with Neve(platform.url, platform.team_key) as neve:
        [space] = {each.space for each in neve.nodes.list() if each.node in NODES}
        for server in starting:  # checked at once: those that nodes announce wait for a worker
            neve.engines.create(
                name=f"engine-{server.port}", base_url=server.url, model="tiny", spaces=[space]
            )
    wait_until(lambda: "x-neve-node" in ask(proxy, "x").headers, what="the engines")
    return starting


@pytest.fixture(scope="module")
def proxy(platform, starting, litellm_python, tmp_path_factory):
    """Starts while the engines do."""
    models = [
        {
            "model_name": "tiny",
            "litellm_params": {
                "model": "hosted_vllm/tiny",
                "api_base": f"{node.url}/v1",
                "api_key": "none",
            },
        }
        for node in starting
    ]
    tenant = {"name": "demo", "api_key": platform.team_key, "is_default": True}
    settings = {
        **{"endpoint": platform.url, "lookup_deadline_s": 10, "piece_bytes": 64},
        "tenants": [tenant],
    }
    folder: Path = tmp_path_factory.mktemp("litellm")
    with LitellmProxy(folder, litellm_python, models, settings) as running:
        yield running


def ask(proxy: LitellmProxy, text: str, *said: str, stream: bool = False, **headers: str):
    roles = ("user", "assistant")
    messages = [{"role": roles[n % 2], "content": each} for n, each in enumerate((text, *said))]
    return httpx.post(
        f"{proxy.url}/v1/chat/completions",
        json={"model": "tiny", "messages": messages, "max_tokens": 8, "temperature": 0}
        | ({"stream": True} if stream else {}),
        headers={"Authorization": "Bearer sk-demo-0123456789"} | headers,
        timeout=120,
    )


def test_a_conversation_stays_at_its_node_which_reuses_what_it_stored(proxy, nodes, platform):
    session = {"x-claude-code-session-id": SESSION}
    first = ask(proxy, PROMPT, **session)
    again = ask(proxy, PROMPT, **session)
    assert again.headers["x-neve-node"] == first.headers["x-neve-node"]
    assert first.headers["x-neve-reused-tokens"] == "0"
    assert again.headers["x-neve-reused-tokens"] == again.headers["x-neve-cached-tokens"] == "256"
    assert again.headers["x-neve-context"] == f"session-{SESSION}"
    answers = [each.json()["choices"][0]["message"] for each in (first, again)]
    assert answers[0] == answers[1]
    home = next(node for node in nodes if node.url.endswith(again.headers["x-neve-node"]))
    assert home.metric("external_prefix_cache_hits_total") == 256
    listed = f"{platform.url}/api/v1/contexts?search={SESSION}"
    key = {"Authorization": f"Bearer {platform.team_key}"}
    wait_until(
        lambda: httpx.get(listed, headers=key).json()["results"], what="the context on the platform"
    )


def test_what_was_saved_is_told_once_nodes_have_measured(proxy):
    """Prefill and the tier's speed; the tiny model's load is slower than computing it."""
    found = {}
    fresh = itertools.count()

    def is_told():
        ask(proxy, f"{next(fresh)} {PROMPT}")  # nodes measure prefills of 64 tokens and more
        headers = ask(proxy, PROMPT).headers
        found.update(headers)
        return "x-neve-saved" in headers

    wait_until(is_told, what="measured speeds", every_s=0.5)
    assert re.fullmatch(r"-?\d+\.\d{9} USD", found["x-neve-saved"])
    assert int(found["x-neve-found-tokens"]) == 256


def test_a_streams_cached_tokens_are_in_the_spend_log(proxy):
    answer = ask(proxy, PROMPT, "So it is.", "And then?", stream=True, **{"x-neve-context": "s"})
    events = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    assert all(json.loads(event)["choices"] for event in events[:-1])

    def rows():
        told = [row["metadata"]["spend_logs_metadata"] or {} for row in proxy.rows()]
        return [each for each in told if each.get("neve_context") == "s"]

    wait_until(rows, what="a row of spend logs")
    assert rows()[0]["neve_cached_tokens"] == 256
