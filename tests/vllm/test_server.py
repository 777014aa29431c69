"""vLLM's OpenAI-compatible server: wishes of a request go in, what was reused comes out."""

import json
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from servers import Server, free_port, http_status

pytestmark = pytest.mark.vllm

PROMPT = "Neve keeps what was computed once. " * 8


class VllmServer(Server):
    """`api_server` with the engine in a process of its own, as it runs on a node."""

    name = "vllm"
    start_timeout_s = 120.0

    def __init__(self, folder: Path, python: Path, model: Path, neve: dict, env: dict) -> None:
        super().__init__(folder)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        transfer = {
            "kv_connector": "NeveConnector",
            "kv_role": "kv_both",
            "kv_load_failure_policy": "recompute",
            "kv_connector_extra_config": neve,
        }
        self._env = env
        self._command = [
            *(str(python), "-m", "vllm.entrypoints.openai.api_server"),
            *("--model", str(model), "--served-model-name", "tiny"),
            *("--host", "127.0.0.1", "--port", str(self.port)),
            *("--dtype", "float32", "--block-size", "32", "--max-model-len", "1024"),
            *("--kv-cache-memory-bytes", str(16 << 20)),
            *("--enforce-eager", "--no-enable-prefix-caching"),
            *("--chat-template", "{{ messages[0].content }}"),
            # Without it vLLM kills its engine at once, and nobody ends the session.
            *("--shutdown-timeout", "10"),
            *("--kv-transfer-config", json.dumps(transfer)),
        ]

    def command(self) -> list[str]:
        return self._command

    def environment(self) -> dict[str, str]:
        return self._env

    def ready(self) -> bool:
        return http_status(f"{self.url}/health") == 200

    def complete(self, **more: object) -> dict:
        return json.loads(self._post("completions", {"prompt": PROMPT} | more))

    def stream(self, **more: object) -> list[dict]:
        """The events of a streamed answer."""
        told = self._post("completions", {"prompt": PROMPT, "stream": True} | more)
        lines = [line.removeprefix("data: ") for line in told.splitlines() if line]
        return [json.loads(line) for line in lines if line != "[DONE]"]

    def chat(self, **more: object) -> dict:
        said = {"messages": [{"role": "user", "content": PROMPT}]}
        return json.loads(self._post("chat/completions", said | more))

    def _post(self, path: str, body: dict) -> str:
        request = urllib.request.Request(
            f"{self.url}/v1/{path}",
            json.dumps({"model": "tiny", "max_tokens": 8, "temperature": 0} | body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.read().decode()

    def metric(self, name: str, **labels: str) -> float:
        """A metric's value; `labels` are those that must be there."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=10) as response:
            for line in response.read().decode().splitlines():
                wanted = [f'{label}="{value}"' for label, value in labels.items()]
                if line.startswith(f"vllm:{name}{{") and all(text in line for text in wanted):
                    return float(line.rsplit(" ", 1)[1])
        raise AssertionError(f"no metric {name}")

    def terminate(self) -> None:
        """As an operator does; leaves no process behind."""
        assert self.process is not None
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.kill()
            raise


@pytest.fixture(scope="module")
def server(platform, vllm_python, model, engine_environment, tmp_path_factory):
    # The key comes from the environment, the endpoint from the configuration.
    env = engine_environment(VLLM_ENABLE_V1_MULTIPROCESSING="1", NEVE_API_KEY=platform.node_key)
    neve = {
        "endpoint": platform.url,
        "node": "gpu-07",
        "load": "always",
        "max_chunk_tokens": 64,
        "match_deadline_s": 5,
        "load_deadline_s": 20,
    }
    folder = tmp_path_factory.mktemp("server")
    with VllmServer(folder, vllm_python, model, neve, env) as running:
        yield running


def test_a_request_names_its_context_and_hears_what_was_reused(server):
    asked = {"neve": {"context": "repo-7", "label": "agent"}}
    first = server.complete(kv_transfer_params=asked)
    assert first["kv_transfer_params"]["neve"]["reused_tokens"] == 0
    again = server.complete(kv_transfer_params=asked)
    assert again["kv_transfer_params"]["neve"] == {
        "context": "repo-7", "reused_tokens": 256, "hot": 256, "cold": 0
    }  # fmt: skip
    assert again["choices"][0]["text"] == first["choices"][0]["text"]
    assert server.metric("external_prefix_cache_hits_total") == 256


def test_what_neve_did_is_among_the_metrics_of_vllm(server):
    """Figures travel with the engine's steps, so those of a save come with the next request."""
    server.complete()
    assert server.metric("neve_connected") == 1
    assert server.metric("neve_breaker") == 0
    assert server.metric("neve_hit_tokens_total", tier="hot") >= 256
    assert server.metric("neve_read_bytes_total", tier="hot") > 256 * 1024
    assert server.metric("neve_written_bytes_total") > 256 * 1024
    assert server.metric("neve_decisions_total", decision="load_all") >= 1
    assert server.metric("neve_missed_blocks_total", reason="never_stored") >= 4
    assert server.metric("neve_load_seconds_count") >= 1
    assert server.metric("neve_match_seconds_count") >= 2
    assert server.metric("neve_loads_in_flight") == 0


def test_malformed_wishes_change_nothing(server):
    plain = server.complete()
    assert plain.get("kv_transfer_params") is None
    deep = {"neve": {"context": {"a": [{}]}, "pin": -1, "label": "x" * 10_000, "unknown": None}}
    for wish in ({"neve": 7}, {"neve": {"context": ["x"], "pin": {}, "label": 5}}, {"x": 1}, deep):
        answer = server.complete(kv_transfer_params=wish)
        assert answer["choices"][0]["text"] == plain["choices"][0]["text"]


@pytest.mark.parametrize("wish", ["neve", 7, ["neve"]])
def test_what_is_no_object_is_refused_by_vllm_itself(server, wish):
    with pytest.raises(urllib.error.HTTPError, match="400"):
        server.complete(kv_transfer_params=wish)


def test_a_streamed_request_names_its_context_as_well(server, platform):
    """vLLM's stream has no place for what was reused; the context is reported all the same."""
    asked = {"neve": {"context": "streamed"}}
    events = server.stream(kv_transfer_params=asked)
    assert not any(event.get("kv_transfer_params") for event in events)
    text = "".join(event["choices"][0]["text"] for event in events if event["choices"])
    assert text == server.complete()["choices"][0]["text"]
    deadline = time.monotonic() + 20
    while "streamed" not in platform.manage("shell", "-v", "0", "-c", SHOW_CONTEXTS):
        assert time.monotonic() < deadline


def test_a_chat_hears_what_was_reused(server):
    asked = {"neve": {"context": "chat"}}
    server.chat(kv_transfer_params=asked)
    told = server.chat(kv_transfer_params=asked)["kv_transfer_params"]["neve"]
    assert (told["context"], told["reused_tokens"]) == ("chat", 256)


def test_a_terminated_server_ends_its_session(server, platform):
    assert "gpu-07 live" in platform.manage("shell", "-v", "0", "-c", SHOW_SESSIONS)
    server.terminate()
    assert "gpu-07 ended" in platform.manage("shell", "-v", "0", "-c", SHOW_SESSIONS)


SHOW_CONTEXTS = """
from catalog.models import Context
print([context.name for context in Context.unscoped.all()])
"""
SHOW_SESSIONS = """
from catalog.models import NodeSession
for session in NodeSession.unscoped.all():
    print(session.node, "ended" if session.ended_at else "live")
"""
