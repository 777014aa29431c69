"""Tiny models, real engines in processes of their own, and a platform for them alone."""

import subprocess
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.servers import ControlPlane, S3Server
from support.vllm_engine import EngineProcess
from support.vllm_engine import engine_environment as environment_of_engines

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def engine_environment() -> Callable[..., dict[str, str]]:
    return environment_of_engines


@pytest.fixture(scope="session")
def models(vllm_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one model a shape (see make_model.py)."""
    folder = tmp_path_factory.mktemp("models")
    command = [str(vllm_python), str(HERE / "make_model.py"), str(folder), "7"]
    subprocess.run(command, check=True, env=environment_of_engines(), capture_output=True)
    return folder


@pytest.fixture(scope="session")
def model(models: Path) -> Path:
    return models / "llama"


@pytest.fixture(scope="session")
def pairs(vllm_python: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models that share `model`'s KV or nearly do (see support.pairs)."""
    folder = tmp_path_factory.mktemp("pairs")
    command = [str(vllm_python), str(HERE.parent / "support/pairs.py"), str(model), str(folder)]
    subprocess.run(command, check=True, env=environment_of_engines(), capture_output=True)
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
