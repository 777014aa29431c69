"""LiteLLM's proxy as its own process, with `neve.litellm` as callback.

Two files lie beside its configuration: who may ask (`custom_auth`), and a callback that writes the
rows of spend logs as LiteLLM would put them into its database, which needs more than PyPI has.
"""

import json
import os
from pathlib import Path
from typing import Any

from support.servers import Server, free_port, http_status

MASTER_KEY = "sk-0123456789abcdef0123456789abcdef"

# A key names its team: sk-<team>-…
AUTH = """
from litellm.proxy._types import UserAPIKeyAuth

async def user_api_key_auth(request, api_key):
    return UserAPIKeyAuth(api_key=api_key, team_id=api_key.split("-")[1] + "-team")
"""

ROWS = """
import json, os
from litellm.integrations.custom_logger import CustomLogger
from litellm.proxy.spend_tracking.spend_tracking_utils import get_logging_payload

class Rows(CustomLogger):
    async def async_log_success_event(self, kwargs, response_obj, start_time, end_time):
        row = get_logging_payload(kwargs, response_obj, start_time, end_time)
        with open(os.environ["SPEND_ROWS"], "a") as file:
            file.write(json.dumps(row, default=str) + chr(10))

plugin = Rows()
"""


class LitellmProxy(Server):
    """`models`: `model_list`. `neve`: `callback_settings.neve`; None: without the plug-in.

    `modules`: more files beside the configuration, by name of the module; each has a callback
    `plugin`.
    """

    name = "litellm"
    start_timeout_s = 240.0  # its imports take 10 s, a minute on a busy machine

    def __init__(
        self,
        folder: Path,
        python: Path,
        models: list[dict[str, Any]],
        neve: dict[str, Any] | None,
        *,
        router: dict[str, Any] | None = None,
        env: dict[str, str] | None = None,
        modules: dict[str, str] | None = None,
    ) -> None:
        super().__init__(folder)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._python, self._env = python, env or {}
        self.spend_rows = folder / "spend.jsonl"
        self._modules = {"auth": AUTH, "rows": ROWS} | (modules or {})
        plugins = [] if neve is None else ["neve.litellm.plugin"]
        more = [f"{name}.plugin" for name in modules or {}]
        self._config = {
            "model_list": models,
            "litellm_settings": {"callbacks": [*plugins, "rows.plugin", *more]},
            "router_settings": router or {},
            "general_settings": {"custom_auth": "auth.user_api_key_auth"},
            "callback_settings": {"neve": neve},
        }

    def command(self) -> list[str]:
        config = self.folder / "config.json"  # YAML, too
        config.write_text(json.dumps(self._config))
        for name, source in self._modules.items():
            (self.folder / f"{name}.py").write_text(source)
        proxy = str(self._python.with_name("litellm"))
        return [proxy, "--config", str(config), "--host", "127.0.0.1", "--port", str(self.port)]

    def environment(self) -> dict[str, str]:
        others = {k: v for k, v in os.environ.items() if not k.startswith("NEVE_")}
        own = {
            **{"LITELLM_MASTER_KEY": MASTER_KEY, "LITELLM_TELEMETRY": "False"},
            **{"LITELLM_LOCAL_MODEL_COST_MAP": "True", "SPEND_ROWS": str(self.spend_rows)},
        }
        return others | own | self._env

    def ready(self) -> bool:
        return http_status(f"{self.url}/health/liveliness") == 200

    def rows(self) -> list[dict[str, Any]]:
        """Of spend logs so far; `metadata` as JSON values."""
        if not self.spend_rows.exists():
            return []
        rows = [json.loads(line) for line in self.spend_rows.read_text().splitlines()]
        return [{**row, "metadata": json.loads(row["metadata"])} for row in rows]
