"""The routers' environment, and Dynamo's index."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.routers import DynamoIndexer
from support.servers import ROOT

PYTHON = Path(os.environ.get("NEVE_TEST_ROUTERS_PYTHON", ROOT / ".venv-routers/bin/python"))
BLOCK_TOKENS = 16


@pytest.fixture(scope="session")
def routers_python() -> Path:
    if not PYTHON.exists():
        pytest.fail(f"{PYTHON} is missing: run `make routers`")
    return PYTHON


@pytest.fixture(scope="module")
def dynamo(tmp_path_factory, routers_python) -> Iterator[DynamoIndexer]:
    folder = tmp_path_factory.mktemp("dynamo")
    with DynamoIndexer(folder, routers_python, block_tokens=BLOCK_TOKENS) as server:
        yield server
