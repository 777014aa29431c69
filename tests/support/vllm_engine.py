"""A vLLM engine in a process of its own, driven line by line (see tests/vllm/run_engine.py)."""

import os
from pathlib import Path
from typing import Any

from support.script_process import ScriptProcess
from support.servers import ROOT

SCRIPTS = ROOT / "tests/vllm"
ENGINE_ENV = {
    "HF_HUB_OFFLINE": "1",
    # Without it, asking for logprobs compiles for 22 s.
    "TORCHDYNAMO_DISABLE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
    # A tiny model gains nothing from more, and on a busy machine threads spin for each other.
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "TOKENIZERS_PARALLELISM": "false",
}


def engine_environment(**extra: str) -> dict[str, str]:
    """The environment of a vLLM process: nothing of ours but what is given."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("NEVE_", "DJANGO_"))}
    return inherited | ENGINE_ENV | extra


class EngineProcess(ScriptProcess):
    """A fresh process with a vLLM engine (see run_engine.py). Use as a context manager."""

    def __init__(self, python: Path, model: Path, log: Path, **environment: str) -> None:
        script = SCRIPTS / "run_engine.py"
        super().__init__(python, script, log, engine_environment(**environment))
        self._model = model

    def start(self, neve: dict[str, Any] | None, **options: Any) -> float:
        """Starts an engine; returns the seconds that took."""
        return self.ask("start", **{"model": str(self._model), "neve": neve} | options)["took_s"]

    def generate(self, *requests: dict[str, Any]) -> list[dict[str, Any]]:
        return self.ask("generate", requests=list(requests))["outputs"]
