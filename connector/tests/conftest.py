"""Fixtures of the tests in the source distribution, which has neither Django nor the platform.

In the repository tests/conftest.py takes its place.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.drift import assert_no_drift
from support.servers import ValkeyServer


@pytest.fixture(scope="session")
def valkey_hot(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyServer]:
    if shutil.which("valkey-server") is None:
        pytest.skip("valkey-server is not on PATH")
    with ValkeyServer(Path(tmp_path_factory.mktemp("hot"))) as server:
        yield server


@pytest.fixture
def clean_hot(valkey_hot: ValkeyServer) -> Iterator[ValkeyServer]:
    """`valkey_hot`, wiped before the test; afterwards its counters are recounted."""
    valkey_hot.wipe()
    yield valkey_hot
    with valkey_hot.client() as client:
        assert_no_drift(client)
