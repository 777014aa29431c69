"""Schemathesis finds nothing: a short form with a fixed seed; `make fuzz-api` is the long one."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support import testsettings
from support.fuzz_api import PATHS, fuzz, keys_of, unlimited
from support.servers import ControlPlane

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def platform(s3) -> Iterator[tuple[ControlPlane, dict[str, Any]]]:
    server = ControlPlane(Path(testsettings.FOLDER, "fuzzed"), s3)
    server.settings |= unlimited()
    with server:
        yield server, keys_of(server)


@pytest.mark.parametrize("role", PATHS)
def test_no_request_is_answered_otherwise_than_documented(platform, tmp_path, role):
    """No 5xx; every answer is as the committed schema says; what breaks the schema is refused."""
    server, keys = platform
    # A node has few operations. The systematic phase takes minutes: `make fuzz-api`.
    examples = 25 if role == "node" else 2
    report = fuzz(
        tmp_path, server.url, keys, role, examples=examples, seed=1, phases="fuzzing,stateful"
    )
    assert report.is_clean, report.output
    assert report.cases >= 100
