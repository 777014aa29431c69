"""`neve what-if` against a live platform with workers."""

import json

import pytest
from click.testing import CliRunner

from neve.cli.main import main
from support.sampled_tenant import SLUG, assert_verdict, seed
from support.servers import ControlPlane

pytestmark = pytest.mark.integration


def test_the_command_waits_and_prints_a_table(control_plane: ControlPlane, tmp_path):
    env = {
        "NEVE_ENDPOINT": control_plane.url,
        "NEVE_API_KEY": seed(control_plane),
        "XDG_CONFIG_HOME": str(tmp_path),
    }

    def neve(*args: str) -> str:
        done = CliRunner().invoke(main, ["what-if", *args], env=env)
        assert done.exit_code == 0, done.output
        return done.stdout

    with control_plane.workers():
        table = neve("--hot", "x2", "--cold-lifetime", "1h")
        document = json.loads(neve("--eviction", "lru", "--window", "2h", "--json"))
    assert "hot quota 700 MiB → 1.367 GiB, lifetime unlimited → 1 h" in table
    assert_verdict(" ".join(table.split()))
    assert "1 in 4 blocks" in table
    assert [each["change"] for each in document["changes"]] == [{"eviction": "lru"}]
    advice = json.loads(neve("--json"))
    assert advice["tenant"] == SLUG
    assert advice["words"] in neve()
    refused = CliRunner().invoke(main, ["what-if", "--hot", "x1"], env=env)
    assert refused.exit_code != 0
    assert "changes nothing" in refused.output
