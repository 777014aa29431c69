"""LMCache's processes, over a Valkey and a small cache endpoint or over a whole platform."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.lmcache_process import LMCACHE_PYTHON, LmcacheProcess


@pytest.fixture(scope="session")
def lmcache_python() -> Path:
    if not LMCACHE_PYTHON.exists():
        pytest.skip(f"LMCache is not installed ({LMCACHE_PYTHON}): run `make lmcache`")
    return LMCACHE_PYTHON


@pytest.fixture(scope="module")
def lmcache(
    lmcache_python: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LmcacheProcess]:
    """One process for all tests of a file: LMCache takes seconds to import."""
    with LmcacheProcess(tmp_path_factory.mktemp("lmcache") / "lmcache.log") as process:
        yield process
