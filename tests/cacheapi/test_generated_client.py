"""A client that openapi-python-client makes from docs/openapi.json, against a live platform.

Its names are those that a person would choose, and its models keep every member.
"""

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from support import testsettings
from support.servers import ROOT, ControlPlane

pytestmark = pytest.mark.integration

STORE_ONE_CONTEXT = """
import json
from support.tenant_world import World
from tenants.services import issue_key
world = World()
world.record("repo-42", world.store(3))
print("TOLD" + json.dumps(issue_key(tenant=world.tenant, role="team", name="generated")[1]))
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """Imports modules of the generated package."""
    folder = tmp_path_factory.mktemp("generated")
    # The tool knows no JSON Lines: an export that has no other format is text to it.
    config = folder / "config.json"
    config.write_text(json.dumps({"content_type_overrides": {"application/jsonl": "text/plain"}}))
    tools = Path(sys.executable).parent
    done = subprocess.run(
        [tools / "openapi-python-client", "generate", "--path", ROOT / "docs/openapi.json",
         "--meta", "none", "--output-path", folder / "neve_rest", "--fail-on-warning",
         "--config", config],
        env={**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"},
        text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    sys.path.insert(0, str(folder))
    yield lambda name: importlib.import_module(f"neve_rest.{name}")
    sys.path.remove(str(folder))


def test_names_are_those_that_a_person_would_choose(package):
    folder = Path(package("api").__file__).parent
    modules = {path.stem for path in folder.glob("*/*.py")} - {"__init__"}
    operations = {
        operation["operationId"]
        for path in json.loads((ROOT / "docs/openapi.json").read_text())["paths"].values()
        for operation in path.values()
    }
    assert modules == operations  # none is left out
    models = {name for name in dir(package("models")) if name[0].isupper()}
    for name in models:
        assert not re.search("RequestRequest|Patched|Paginated|Serializer|[0-9]$", name)
    assert {"Context", "ContextList", "ContextPinRequest", "Pinned", "Residency"} <= models


def test_it_lists_pins_looks_where_blocks_are_and_expires(package, s3):
    api = SimpleNamespace(
        **{
            name: package(f"api.contexts.contexts_{name}")
            for name in ("list", "get", "pin", "residency", "expire")
        }
    )
    models = package("models")
    platform = ControlPlane(Path(testsettings.FOLDER, "generated"), s3)
    with platform:
        code = f"import sys; sys.path.append({str(ROOT / 'tests')!r})\n{STORE_ONE_CONTEXT}"
        output = platform.manage("shell", "--no-imports", "-v0", "-c", code)
        key = json.loads(re.findall(r"^TOLD(.*)$", output, re.M)[-1])
        client = package("client").AuthenticatedClient(base_url=platform.url, token=key)
        listed = api.list.sync(client=client, search="repo", total=True)
        assert (listed.total, listed.next_cursor) == (1, None)
        (context,) = listed.results
        assert context.name == "repo-42"
        body = models.ContextPinRequest(for_="2h", reason="release 4")
        pinned = api.pin.sync(context.id, client=client, body=body)
        assert isinstance(pinned, models.Pinned)
        assert (pinned.kept, pinned.lost, pinned.pin.reason) == (3, 0, "release 4")
        runs = api.residency.sync(context.id, client=client)
        assert (runs.hot, runs.lost) == (3, 0)
        expired = api.expire.sync(context.id, client=client, body=models.ContextExpireRequest())
        assert (expired.removed, expired.dry_run) == (3, False)
        gone = api.pin.sync(context.id, client=client, body=body)
        assert isinstance(gone, models.Problem)
        assert gone.type_ == "/problems/context-gone"
        assert api.get.sync(context.id, client=client).expired_at is not None
