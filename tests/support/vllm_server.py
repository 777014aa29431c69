"""vLLM's OpenAI-compatible server on CPU, for tests."""

import json
import subprocess
import urllib.request
from pathlib import Path

from support.servers import Server, free_port, http_status

PROMPT = "Neve keeps what was computed once. " * 8  # 280 tokens


def post(url: str, path: str, **more: object) -> str:
    """Send one request; return the response. Greedy, 8 tokens, unless `more` overrides it."""
    request = urllib.request.Request(
        f"{url}/v1/{path}",
        json.dumps({"model": "tiny", "max_tokens": 8, "temperature": 0} | more).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        return response.read().decode()


def complete(url: str, **more: object) -> dict:
    """One completion, of PROMPT unless `more` overrides it."""
    return json.loads(post(url, "completions", **{"prompt": PROMPT} | more))


def stream(url: str, path: str = "completions", **more: object) -> list[dict]:
    """Events of a streamed response; a completion of PROMPT by default."""
    asked = {"prompt": PROMPT} if path == "completions" else {}
    told = post(url, path, **asked | {"stream": True} | more).splitlines()
    lines = [line.removeprefix("data: ") for line in told if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


class VllmServer(Server):
    """`api_server` with the engine in a process of its own, as on a node.

    `more`: extra arguments. `announces`: tells the platform its address. `waits` False: entering
    does not wait for readiness.
    """

    name = "vllm"
    start_timeout_s = 300.0  # importing vLLM takes minutes on a busy machine

    def __init__(
        self,
        folder: Path,
        python: Path,
        model: Path,
        neve: dict,
        env: dict,
        *,
        role: str = "kv_both",
        more: tuple[str, ...] = (),
        waits: bool = True,
        announces: bool = False,
    ) -> None:
        super().__init__(folder)
        self._waits = waits
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        if announces:
            neve = neve | {"engine_url": self.url}
        transfer = {
            "kv_connector": "NeveConnector",
            "kv_role": role,
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
            *("--chat-template", "{% for message in messages %}{{ message.content }} {% endfor %}"),
            # Otherwise vLLM kills its engine at once, and the session is never ended.
            *("--shutdown-timeout", "10"),
            *("--kv-transfer-config", json.dumps(transfer)),
            *more,
        ]

    def command(self) -> list[str]:
        return self._command

    def environment(self) -> dict[str, str]:
        return self._env

    def ready(self) -> bool:
        return not self._waits or self.healthy()

    def healthy(self) -> bool:
        return http_status(f"{self.url}/health") == 200

    def complete(self, **more: object) -> dict:
        return complete(self.url, **more)

    def stream(self, **more: object) -> list[dict]:
        return stream(self.url, **more)

    def respond(self, **more: object) -> list[dict]:
        """Events of a streamed response of the Responses API."""
        return stream(self.url, "responses", input=PROMPT, **more)

    def chat(self, **more: object) -> dict:
        said = {"messages": [{"role": "user", "content": PROMPT}]}
        return json.loads(post(self.url, "chat/completions", **said | more))

    def metric(self, name: str, **labels: str) -> float:
        """Value of a metric's series that has all `labels`."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=10) as response:
            for line in response.read().decode().splitlines():
                wanted = [f'{label}="{value}"' for label, value in labels.items()]
                if line.startswith(f"vllm:{name}{{") and all(text in line for text in wanted):
                    return float(line.rsplit(" ", 1)[1])
        raise AssertionError(f"no metric {name}")

    def terminate(self) -> None:
        """Send SIGTERM, as an operator does, and wait for all its processes."""
        assert self.process is not None
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
