"""docs/gateways.md: its commands, run as they stand."""

import json
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from neve.api import Neve
from support.chains import ENGINE, IDENTITY, PatientClient
from support.light_node import LightNode
from support.servers import ROOT

PAGE = (ROOT / "docs/gateways.md").read_text()
HEAD, *COMMANDS = re.findall(r"^```(?:bash)?\n(.*?)^```$", PAGE, re.M | re.S)
MESSAGES = [{"role": "user", "content": "Neve keeps what was computed once. " * 20}]

pytestmark = pytest.mark.integration


def printed(text: str) -> dict:
    return json.loads(text.strip().splitlines()[-1])


def test_the_recipes_commands_do_what_the_page_says(control_plane, tmp_path: Path):
    (tmp_path / "team.key").write_text(control_plane.team_key)
    head = HEAD.replace("http://127.0.0.1:8000", control_plane.url)
    identity = replace(IDENTITY, model="recipe/tiny")
    with (
        LightNode() as node,
        PatientClient.connect(
            control_plane.url, control_plane.node_key, identity, node="recipe", engine=ENGINE
        ) as client,
        Neve(control_plane.url, control_plane.team_key) as neve,
    ):
        space = client.session.space_id
        neve.engines.create(name="recipe", base_url=node.url, model="tiny", spaces=[space])
        given = {
            **{"SPACE": str(space), "MESSAGES": json.dumps(MESSAGES), "MODEL": "tiny"},
            **{"NODE": node.url, "DEADLINE": "30", "PATH": "/usr/bin:/bin"},
        }

        def run(command: str, **more: str) -> str:
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", head + command],
                cwd=tmp_path, env=given | more, capture_output=True, text=True,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            return done.stdout

        engines, lookup, answer, prices = COMMANDS
        rows = printed(run(engines))["results"]
        assert (node.url, "tiny", [space]) in [
            (row["base_url"], row["model"], row["spaces"]) for row in rows
        ]
        found = printed(run(lookup))
        assert (found["tokens"], found["usable_tokens"], found["contexts"]) == (
            len(json.dumps(MESSAGES)), 0, []
        )  # fmt: skip
        assert set(found["cost"]) >= {"compute_s", "load_s"}
        assert printed(run(lookup, SPACE="0")) == {}  # a failure is no error
        told = printed(run(answer))
        assert told["kv_transfer_params"]["neve"]["reused_tokens"] == 256
        assert told["usage"]["prompt_tokens_details"]["cached_tokens"] == 256
        assert node.prompts[-1]["kv_transfer_params"] == {"neve": {"context": "repo-42"}}
        assert set(printed(run(prices))) >= {"gpu_hour", "currency"}
