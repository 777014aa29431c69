"""A tiny model, SGLang's controller and server in processes of their own, a platform for them."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.servers import ControlPlane, S3Server
from support.sglang import SglangController, make_model


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what takes long or a server of its own, unless asked for."""
    if os.environ.get("NEVE_TEST_LONG") != "1":
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(pytest.mark.skip(reason="takes long: run `make test-sglang`"))


@pytest.fixture(scope="session")
def model(sglang_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sglang-model")
    make_model(sglang_python, folder, seed=7)
    return folder


@pytest.fixture(scope="session")
def platform(s3: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A platform for these tests alone: its hot tier gets stopped, killed and wiped."""
    with ControlPlane(tmp_path_factory.mktemp("sglang-platform"), s3) as server:
        yield server


@pytest.fixture(scope="session")
def controller(
    sglang_python: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SglangController]:
    log = tmp_path_factory.mktemp("sglang") / "controller.log"
    with SglangController(sglang_python, log) as process:
        yield process
