"""Fixtures that every test may use: real servers, started when first asked for, stopped at the end.

valkey_hot, valkey_bus, s3   the servers that Django's settings of the tests point at
clean_hot                    valkey_hot, wiped before the test, recounted after it
control_plane                the web process with database, Valkeys and bucket of its own
vllm_python, sglang_python   the interpreter that has vLLM, and SGLang
litellm_python               and LiteLLM's proxy
log_lines                    lines as the platform writes them, so far
"""

import io
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from channels.layers import channel_layers
from hypothesis import HealthCheck, settings

from support import testsettings
from support.drift import assert_no_drift
from support.on_postgres import runs_here_only
from support.servers import ROOT, ControlPlane, S3Server, ValkeyServer

KINDS = ("integration", "browser", "lmcache", "vllm", "sglang")
LITELLM_PYTHON = ROOT / ".venv-litellm/bin/python"
SGLANG_PYTHON = Path(os.environ.get("NEVE_TEST_SGLANG_PYTHON", ROOT / ".venv-sglang/bin/python"))
VLLM_PYTHON = Path(os.environ.get("NEVE_TEST_VLLM_PYTHON", ROOT / ".venv-vllm/bin/python"))

# An example is not wrong because the machine was busy.
settings.register_profile(
    "neve", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("neve")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Marks tests without a kind as unit tests, and sorts by kind: the cheap ones run first.

    With pytest-xdist the vLLM tests come first: one worker has them all. NEVE_TEST_POSTGRES=later
    leaves out what `make test` runs on PostgreSQL alone, `never` leaves all others out.
    """
    if when := os.environ.get("NEVE_TEST_POSTGRES"):
        left_out = {item for item in items if runs_here_only(item) is (when == "later")}
        config.hook.pytest_deselected(items=list(left_out))
        items[:] = [item for item in items if item not in left_out]
    for item in items:
        if not any(item.get_closest_marker(kind) for kind in KINDS):
            item.add_marker("unit")
    items.sort(key=lambda item: [bool(item.get_closest_marker(kind)) for kind in reversed(KINDS)])
    if hasattr(config, "workerinput"):
        engines = ("vllm", "sglang")
        items.sort(key=lambda item: not any(map(item.get_closest_marker, engines)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """One worker runs the engines' tests: no more engines live at a time than with one worker.

    The others take the other files one by one, in the order of a run without workers: files share
    the platform of `control_plane`, and later ones may find what earlier ones stored.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            if nodeid.startswith(("tests/vllm/", "tests/sglang/")):
                return "engines"
            if nodeid.startswith("tests/litellm/"):  # they share a proxy
                return "litellm"
            return nodeid.partition("::")[0]

    return Scheduling(config, log)


def pytest_unconfigure() -> None:
    shutil.rmtree(testsettings.FOLDER, ignore_errors=True)


@pytest.fixture(scope="session")
def valkey_hot() -> Iterator[ValkeyServer]:
    with ValkeyServer(Path(testsettings.FOLDER, "hot"), port=testsettings.HOT_PORT) as server:
        yield server


@pytest.fixture
def clean_hot(valkey_hot: ValkeyServer) -> Iterator[ValkeyServer]:
    """Wiped before the test; whatever the test did, it must not have made the counters wrong."""
    valkey_hot.wipe()
    yield valkey_hot
    with valkey_hot.client() as client:
        assert_no_drift(client)


@pytest.fixture(autouse=True)
def fresh_channel_layer() -> None:
    """Each test has an event loop of its own; a layer's locks belong to the loop that met them."""
    channel_layers.backends.clear()


@pytest.fixture(scope="session")
def valkey_bus() -> Iterator[ValkeyServer]:
    with ValkeyServer(Path(testsettings.FOLDER, "bus"), port=testsettings.BUS_PORT) as server:
        yield server


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    keys = os.environ["NEVE_S3_ACCESS_KEY"], os.environ["NEVE_S3_SECRET_KEY"]
    folder = Path(testsettings.FOLDER, "s3")
    with S3Server(folder, port=testsettings.S3_PORT, keys=keys) as server:
        yield server


@pytest.fixture(scope="session")
def control_plane(s3: S3Server) -> Iterator[ControlPlane]:
    """A live platform with servers of its own; `with control_plane.workers():` adds Celery."""
    folder = Path(testsettings.FOLDER, "control_plane")
    with ControlPlane(folder, s3, postgres_url=testsettings.POSTGRES_URL) as server:
        yield server


@pytest.fixture(scope="session")
def litellm_python() -> Path:
    if not LITELLM_PYTHON.exists():
        pytest.fail(f"{LITELLM_PYTHON} is missing: run `make litellm`")
    return LITELLM_PYTHON


@pytest.fixture(scope="session")
def vllm_python() -> Path:
    if not VLLM_PYTHON.exists():
        pytest.fail(f"{VLLM_PYTHON} is missing: run `make vllm`")
    return VLLM_PYTHON


@pytest.fixture(scope="session")
def sglang_python() -> Path:
    if not SGLANG_PYTHON.exists():
        pytest.skip(f"SGLang is not installed ({SGLANG_PYTHON}): run `make sglang`")
    return SGLANG_PYTHON


@pytest.fixture
def log_lines() -> Iterator[Callable[[], list[str]]]:
    """Call it for the lines that this test's process logged so far, in the console's form."""
    from base.logs import LineFormatter

    handler = logging.StreamHandler(io.StringIO())
    handler.setFormatter(LineFormatter("console"))
    logging.getLogger().addHandler(handler)
    yield lambda: handler.stream.getvalue().splitlines()
    logging.getLogger().removeHandler(handler)
