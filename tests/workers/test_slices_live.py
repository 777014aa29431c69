"""The Explorer's numbers are those of the clients, while a replay runs and a worker is killed."""

import json
import secrets
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from support.servers import ControlPlane, wait_until

pytestmark = pytest.mark.integration

# A worker that is killed takes a tick with it: beat sends that one again after three times its
# period (workers.ticks). And a busy machine takes its time.
LOST_TICK_S = 240


def explore(platform: ControlPlane, **query: str) -> dict[str, Any]:
    asked = "&".join(f"{name}={value}" for name, value in {"range": "1h", **query}.items())
    request = urllib.request.Request(
        f"{platform.url}/api/v1/explore?{asked}",
        headers={"Authorization": f"Bearer {platform.team_key}"},
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        found: dict[str, Any] = json.load(response)
    return found


def tokens_of(platform: ControlPlane, node: str) -> tuple[int, int]:
    """Prompt tokens of a node and those from the cache, as the Explorer has them."""
    groups = explore(platform, split="node")["groups"]
    row = next((row for row in groups if row["name"] == node), None)
    return (0, 0) if row is None else (row["prompt_tokens"], row["hit_tokens"])


def test_numbers_agree_with_the_clients_while_a_worker_is_killed(
    control_plane: ControlPlane, tmp_path: Path
):
    node = f"exact-{secrets.token_hex(3)}"
    report = tmp_path / "replay.json"
    before = explore(control_plane, split="tenant")["total"]["prompt_tokens"]
    command = [str(Path(sys.executable).with_name("neve")), "replay", "--requests", "60"]
    command += ["--rate", "6", "--quiet", "--salt", secrets.token_hex(4), "--node", node]
    command += ["--endpoint", control_plane.url, "--api-key", control_plane.node_key]
    worker = control_plane.workers()
    with worker:
        replay = subprocess.Popen(
            [*command, "--json", str(report)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        try:
            wait_until(
                lambda: tokens_of(control_plane, node)[0] > 0,
                timeout_s=LOST_TICK_S,
                every_s=0.5,
                what="the first slices",
            )
        finally:
            worker.kill()  # in the midst of its work
            _, said = replay.communicate(timeout=240)
    assert replay.returncode == 0, said.decode()[-1000:]
    counted = json.loads(report.read_text())["tokens"]
    known, _ = tokens_of(control_plane, node)
    assert 0 < known <= counted["asked"]
    wanted = counted["asked"], counted["hit"]
    with control_plane.workers():
        wait_until(
            lambda: tokens_of(control_plane, node) == wanted,
            timeout_s=LOST_TICK_S,
            every_s=0.5,
            what=f"{wanted} tokens",
        )
    # Nothing is counted twice, and the tenant's own row has the same.
    after = explore(control_plane, split="tenant")["total"]["prompt_tokens"]
    assert after - before >= counted["asked"]
    assert sum(tokens_of(control_plane, node)) == sum(wanted)
