"""Prefill pools behind neve.litellm, in a real proxy before light engines and a light Neve."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.responses import JSONResponse

from support.light_engines import CHUNK, LightEngine, LightNeve, World, answer_of, tokens_of
from support.litellm_proxy import LitellmProxy
from support.servers import wait_until

pytestmark = pytest.mark.integration

_numbers = count()


@dataclass
class Served:
    """`decode`: the deployment's node; `pool`: the engine of its prefill pool."""

    proxy: LitellmProxy
    neve: LightNeve
    decode: LightEngine
    pool: LightEngine

    def ask(self, text: str, path: str = "chat/completions", **more: Any) -> httpx.Response:
        prompt = (
            {"prompt": text}
            if path == "completions"
            else {"messages": [{"role": "user", "content": text}]}
        )
        return httpx.post(
            f"{self.proxy.url}/v1/{path}",
            json={"model": "tiny", "max_tokens": 4} | prompt | more,
            headers={"Authorization": "Bearer sk-acme-0123456789"},
            timeout=60,
        )


def long_text() -> str:
    """40 chunks that no other test has."""
    return f"{next(_numbers)} is computed far away. ".ljust(40 * CHUNK, "x")


@pytest.fixture(scope="module")
def running(litellm_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    world = World()
    with ExitStack() as stack:
        neve = stack.enter_context(LightNeve(world, prefill_tokens_per_s=1000.0))
        decode, pool = (stack.enter_context(LightEngine(world)) for _ in range(2))
        pool.key = "far-secret"
        models = [
            {
                "model_name": name,
                "litellm_params": {
                    "model": f"hosted_vllm/{served}",
                    "api_base": f"{decode.url}/v1",
                    "api_key": "none",
                },
                "model_info": {"neve": {"space": neve.space}},
            }
            for name, served in (("tiny", "tiny"), ("lora", "an-adapter"))
        ]
        far = {
            **{"name": "far", "space": neve.space, "model": "tiny", "urls": [f"{pool.url}/v1"]},
            **{"api_key": "os.environ/FAR_KEY", "link_mbit": 8000, "prefill_tokens_per_s": 1e6},
        }
        settings = {
            **{"endpoint": neve.url, "lookup_deadline_s": 2},
            "tenants": [
                {"name": "acme", "api_key": neve.key, "is_default": True, "pools": [far]},
            ],
        }
        proxy = stack.enter_context(
            LitellmProxy(
                tmp_path_factory.mktemp("pools"),
                litellm_python,
                models,
                settings,
                env={"FAR_KEY": pool.key},
            )
        )
        served = Served(proxy, neve, decode, pool)
        wait_until(lambda: outcome(served.ask(long_text())) == "handed_over", what="the speeds")
        yield served


@pytest.fixture
def served(running: Served) -> Iterator[Served]:
    for engine in (running.decode, running.pool):
        engine.calls.clear()
    yield running
    running.pool.fails = None
    running.neve.hangs = False
    wait_until(lambda: outcome(running.ask(long_text())) == "handed_over", what="the pool again")


def outcome(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return answer.headers.get("x-neve-prefill", "").partition(";")[0]


def test_a_pool_computes_long_prompts_and_the_deployment_answers(served):
    text = long_text()
    answer = served.ask(text, cache_salt="s")
    assert outcome(answer) == "handed_over"
    assert "; pool=far; uncached=" in answer.headers["x-neve-prefill"]
    [computed] = served.pool.bodies()
    [asked] = served.decode.bodies("/v1/chat/completions")
    tokens = tokens_of(asked)
    assert computed["prompt"] == tokens
    assert (computed["max_tokens"], computed["cache_salt"]) == (1, "s")
    whole = len(tokens) // CHUNK * CHUNK
    assert asked["kv_transfer_params"]["neve"]["prefilled"]["tokens"] == whole
    said = answer.json()["choices"][0]["message"]["content"]
    assert said == "".join(answer_of(tokens, 4))
    # Now Neve holds it.
    assert outcome(served.ask(text, cache_salt="s")) == "short"
    assert len(served.pool.bodies()) == 1


def test_prompts_as_text_and_streams_are_prefilled_too(served):
    assert outcome(served.ask(long_text(), "completions")) == "handed_over"
    answer = served.ask(long_text(), stream=True)
    assert outcome(answer) == "handed_over"
    assert answer.text.rstrip().endswith("[DONE]")
    assert len(served.pool.bodies()) == 2

    def told():
        rows = [row["metadata"]["spend_logs_metadata"] or {} for row in served.proxy.rows()]
        return [row for row in rows if row.get("neve_prefill") == "handed_over"]

    wait_until(lambda: told()[-1:], what="rows of spend logs")
    assert told()[-1]["neve_prefill_pool"] == "far"


def test_short_prompts_and_other_models_never_go_to_a_pool(served):
    assert outcome(served.ask("short")) == ""
    assert outcome(served.ask(long_text(), model="lora")) == ""
    assert outcome(served.ask(long_text(), "completions", echo=True)) == ""
    assert not served.pool.calls
    assert len(served.decode.bodies("/v1/chat/completions")) == 2


def test_a_lost_pool_means_prefill_at_the_deployment(served):
    served.pool.fails = lambda path, body: JSONResponse({}, 503)
    found = [served.ask(long_text()) for _ in range(3)]
    assert outcome(found[0]) == "failed"
    assert "lost" in {outcome(each) for each in found[1:]}
    asked = served.decode.bodies("/v1/chat/completions")
    assert len(asked) == 3
    assert not any("prefilled" in (each["kv_transfer_params"]["neve"]) for each in asked)


def test_without_neve_the_deployment_computes(served):
    served.neve.hangs = True
    assert outcome(served.ask(long_text())) == "unreachable"
    assert not served.pool.calls


def test_keys_are_in_no_log(served):
    served.ask(long_text())
    log = served.proxy.log.read_text(errors="replace")
    assert served.pool.key not in log
    assert served.neve.key not in log
    assert "is computed far away" not in log
    # The pool's key goes to the pool alone, and the deployment's not to the pool.
    assert {headers["authorization"] for _, _, headers in served.pool.calls} == {
        f"Bearer {served.pool.key}"
    }
    assert served.pool.key not in str(served.decode.calls)
