"""`neve router` in a process of its own."""

import os
import sys
import urllib.request
from pathlib import Path

from support.servers import ControlPlane, Server, answers, free_port


class RouterServer(Server):
    """`config`: its file, without ports. Answers have `x-neve-prefill`."""

    name = "router"

    def __init__(self, folder: Path, platform: ControlPlane, config: str) -> None:
        super().__init__(folder)
        self.port, self._metrics_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._platform = platform
        self._config = f"metrics_port = {self._metrics_port}\ntells_outcome = true\n{config}"

    def environment(self) -> dict[str, str]:
        return os.environ | {
            "NEVE_ENDPOINT": self._platform.url,
            "NEVE_API_KEY": self._platform.team_key,
        }

    def command(self) -> list[str]:
        path = self.folder / "router.toml"
        path.write_text(self._config)
        return [
            *(sys.executable, "-m", "neve", "router", "--config", str(path)),
            *("--port", str(self.port)),
        ]

    def ready(self) -> bool:
        return answers(self.port)

    def metric(self, name: str) -> float | None:
        """Of the pool; None: not there."""
        with urllib.request.urlopen(
            f"http://127.0.0.1:{self._metrics_port}/metrics", timeout=30
        ) as response:
            for line in response.read().decode().splitlines():
                if line.startswith(f"neve_router_{name}{{pool="):
                    return float(line.rsplit(" ", 1)[1])
        return None
