"""A vLLM engine in a process of its own, driven line by line (see tests/vllm/run_engine.py)."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any, Self

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


class EngineProcess:
    """A fresh process with a vLLM engine (see run_engine.py). Use as a context manager."""

    def __init__(self, python: Path, model: Path, log: Path, **environment: str) -> None:
        self._command = [
            "setpriv",
            "--pdeathsig",
            "KILL",
            str(python),
            str(SCRIPTS / "run_engine.py"),
        ]
        self._model = model
        self._environment = environment
        self.log = log

    def __enter__(self) -> Self:
        self._log = self.log.open("ab")
        self._process = subprocess.Popen(
            self._command,
            env=engine_environment(**self._environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        return self

    def __exit__(self, *exc: object) -> None:
        """Ends the process as a user would: no more input."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def ask(self, do: str, **command: Any) -> Any:
        """One command. Raises RuntimeError with the engine's error."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"do": do, **command}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the engine's process ended:\n{self.log.read_text()[-4000:]}")
        answer = json.loads(line)
        if isinstance(answer, dict) and "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    def start(self, neve: dict[str, Any] | None, **options: Any) -> float:
        """Starts an engine; returns the seconds that took."""
        return self.ask("start", **{"model": str(self._model), "neve": neve} | options)["took_s"]

    def generate(self, *requests: dict[str, Any]) -> list[dict[str, Any]]:
        return self.ask("generate", requests=list(requests))["outputs"]
