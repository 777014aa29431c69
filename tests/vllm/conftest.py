"""Tiny models, real engines in processes of their own, and a platform for them alone."""

import json
import os
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from support.servers import ControlPlane, S3Server

HERE = Path(__file__).parent
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


def _environment(**extra: str) -> dict[str, str]:
    """The environment of a vLLM process: nothing of ours but what is given."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("NEVE_", "DJANGO_"))}
    return inherited | ENGINE_ENV | extra


class EngineProcess:
    """A fresh process with a vLLM engine (see run_engine.py). Use as a context manager."""

    def __init__(self, python: Path, model: Path, log: Path, **environment: str) -> None:
        self._command = ["setpriv", "--pdeathsig", "KILL", str(python), str(HERE / "run_engine.py")]
        self._model = model
        self._environment = environment
        self.log = log

    def __enter__(self) -> Self:
        self._log = self.log.open("ab")
        self._process = subprocess.Popen(
            self._command,
            env=_environment(**self._environment),
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


@pytest.fixture(scope="session")
def engine_environment() -> Callable[..., dict[str, str]]:
    return _environment


@pytest.fixture(scope="session")
def models(vllm_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one model a shape (see make_model.py)."""
    folder = tmp_path_factory.mktemp("models")
    command = [str(vllm_python), str(HERE / "make_model.py"), str(folder), "7"]
    subprocess.run(command, check=True, env=_environment(), capture_output=True)
    return folder


@pytest.fixture(scope="session")
def model(models: Path) -> Path:
    return models / "llama"


@pytest.fixture(scope="session")
def pairs(vllm_python: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models that share `model`'s KV or nearly do (see support.pairs)."""
    folder = tmp_path_factory.mktemp("pairs")
    command = [str(vllm_python), str(HERE.parent / "support/pairs.py"), str(model), str(folder)]
    subprocess.run(command, check=True, env=_environment(), capture_output=True)
    return folder


@pytest.fixture(scope="session")
def icarus(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A PYTHONPATH on which vLLM finds the plug-in of examples/icarus as if it were installed."""
    source = HERE.parents[1] / "examples/icarus"
    project = tomllib.loads((source / "pyproject.toml").read_text())["project"]
    folder = tmp_path_factory.mktemp("plugins")
    described = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    described.mkdir()
    (described / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    points = "".join(
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in each.items())
        for group, each in project["entry-points"].items()
    )
    (described / "entry_points.txt").write_text(points)
    return f"{source}:{folder}"


@pytest.fixture(scope="session")
def fresh_process(
    vllm_python: Path, model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., EngineProcess]:
    logs = tmp_path_factory.mktemp("engines")

    def make(name: str, **environment: str) -> EngineProcess:
        return EngineProcess(vllm_python, model, logs / f"{name}.log", **environment)

    return make


@pytest.fixture(scope="session")
def platform(s3: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A platform for these tests alone: its hot tier gets wiped and damaged."""
    with ControlPlane(tmp_path_factory.mktemp("platform"), s3) as server:
        yield server
