"""SGLang on CPU for tests: its controller in a process of its own, and its server."""

import json
import os
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

from support.script_process import ScriptProcess
from support.servers import ROOT, ControlPlane, Server, free_port, http_status

SCRIPTS = ROOT / "tests/sglang"
PROMPT = "Neve keeps what was computed once. " * 14  # 490 tokens
PAGE = 16
WHOLE_PAGES = 480  # tokens of PROMPT that whole pages hold, without its last token
_ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def sglang_environment(**extra: str) -> dict[str, str]:
    """The environment of an SGLang process: nothing of ours but what is given."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("NEVE_", "DJANGO_"))}
    return inherited | _ENVIRONMENT | extra


def make_model(python: Path, folder: Path, *, seed: int) -> None:
    command = [str(python), str(SCRIPTS / "make_model.py"), str(folder), str(seed)]
    subprocess.run(command, check=True, env=sglang_environment(), capture_output=True)


def neve_config(platform: ControlPlane, **more: object) -> dict[str, Any]:
    """`--hicache-storage-backend-extra-config`, with deadlines that a busy machine keeps."""
    named = {
        "backend_name": "neve",
        "module_path": "neve.sglang",
        "class_name": "NeveStorage",
        "interface_v1": 1,
        "endpoint": platform.url,
        "api_key": platform.node_key,
        "match_deadline_s": 10,
        "load_deadline_s": 30,
    }
    return {name: value for name, value in (named | more).items() if value is not None}


class SglangController(ScriptProcess):
    """See tests/sglang/run_controller.py."""

    def __init__(self, python: Path, log: Path, **environment: str) -> None:
        script = SCRIPTS / "run_controller.py"
        super().__init__(python, script, log, sglang_environment(**environment))


class SglangServer(Server):
    """`sglang.launch_server` with a tiny model. `config`: of the storage backend; None: without."""

    name = "sglang"
    start_timeout_s = 300.0  # importing SGLang takes long on a busy machine

    def __init__(
        self,
        folder: Path,
        python: Path,
        model: Path,
        config: dict[str, Any] | None,
        *,
        backend: str = "dynamic",
        more: tuple[str, ...] = (),
        **environment: str,
    ) -> None:
        super().__init__(folder)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._environment = environment
        storage: tuple[str, ...] = ()
        if config is not None:
            config = {"prefetch_threshold": PAGE, "hicache_storage_pass_prefix_keys": True} | config
            storage = (
                *("--hicache-storage-backend", backend),
                *("--hicache-storage-backend-extra-config", json.dumps(config)),
                # A load that is late on a busy machine is awaited.
                *("--hicache-storage-prefetch-policy", "wait_complete"),
            )
        self._command = [
            *(str(python), str(SCRIPTS / "serve.py"), "--model-path", str(model)),
            *("--served-model-name", "tiny", "--host", "127.0.0.1", "--port", str(self.port)),
            *("--device", "cpu", "--attention-backend", "torch_native"),
            *("--grammar-backend", "none", "--skip-server-warmup", "--disable-overlap-schedule"),
            *("--mem-fraction-static", "0.9", "--max-total-tokens", "4096"),
            *("--context-length", "2048", "--page-size", str(PAGE)),
            *("--enable-hierarchical-cache", "--hicache-ratio", "2"),
            *storage,
            *more,
        ]

    def command(self) -> list[str]:
        return self._command

    def environment(self) -> dict[str, str]:
        return sglang_environment(**self._environment)

    def ready(self) -> bool:
        return http_status(f"{self.url}/health") == 200

    def post(self, path: str, body: object = None, *, key: str = "", method: str = "POST") -> str:
        headers = {"Content-Type": "application/json"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(
            self.url + path, json.dumps(body or {}).encode(), headers, method=method
        )
        with urllib.request.urlopen(request, timeout=120) as response:
            return response.read().decode()

    def generate(self, text: str = PROMPT, **more: object) -> tuple[str, dict[str, Any]]:
        """Greedy text of 8 tokens, and where the prompt's tokens came from."""
        sampling = {"max_new_tokens": 8, "temperature": 0}
        asked = {"text": text, "sampling_params": sampling} | more
        answer = json.loads(self.post("/generate", asked))
        return answer["text"], answer["meta_info"].get("cached_tokens_details") or {}

    def flush(self, *, key: str = "") -> None:
        """Empties the caches of device and host, once no request is under way."""
        self.post("/flush_cache?timeout=60", key=key)

    def attach(self, config: dict[str, Any], *, key: str) -> None:
        """Gives the running server a storage backend. Raises `HTTPError` if it is refused."""
        body = {
            "hicache_storage_backend": "dynamic",
            "hicache_storage_backend_extra_config_json": json.dumps(config),
        }
        self.post("/hicache/storage-backend", body, key=key, method="PUT")
