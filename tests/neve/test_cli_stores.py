"""`neve stores` against a live platform: add, list, change, rules, dry run, remove."""

import json

import pytest
from click.testing import CliRunner

from neve.cli.main import main
from support.servers import ControlPlane

pytestmark = pytest.mark.integration


@pytest.fixture
def neve(control_plane: ControlPlane, tmp_path):
    code = (
        "from tenants.services import issue_key; "
        "print(issue_key(tenant=None, role='operator', name='cli-stores')[1])"
    )
    env = {
        "NEVE_ENDPOINT": control_plane.url,
        "NEVE_API_KEY": control_plane.manage("shell", "-v", "0", "-c", code).split()[-1],
        "NEVE_SECRET": control_plane.s3.secret_key,
        "XDG_CONFIG_HOME": str(tmp_path),
    }

    def run(*arguments, told=False, code=0, **changes):
        """Returns standard output; with `told` standard error. `changes`: of the environment."""
        done = CliRunner(env=env | changes).invoke(main, arguments)
        assert done.exit_code == code, done.stderr
        return done.stderr if told else done.stdout

    return run


def test_stores_and_rules_from_the_first_to_the_last_word(control_plane, neve):
    s3 = control_plane.s3
    where = ("--s3", s3.endpoint, "--bucket", s3.bucket("cli"))
    neve("stores", "add", "archive", *where, "--access-key", s3.access_key, "--priority", "200")
    mistyped = (*where[:2], "--bucket", "mistyped", "--access-key", s3.access_key)
    refused = neve("stores", "add", "other", *mistyped, told=True, code=64)
    assert "has no bucket 'mistyped'" in refused
    assert "Correct --bucket." in refused
    neve("stores", "set", "archive", "--gib-month", "0.01", "--move-mb-per-s", "50")
    neve("stores", "set", "archive", "--put-1000", "0.5")
    neve("stores", "set", "archive", "--put-1000", "null")
    asked = ("stores", "set", "archive", "--access-key", "AK")
    assert "set NEVE_SECRET" in neve(*asked, told=True, code=64, NEVE_SECRET="")
    shown = neve("stores", "ls")
    assert "archive" in shown
    assert "default" in shown
    rows = {row["name"]: row for row in json.loads(neve("stores", "ls", "--json"))}
    assert (rows["archive"]["gib_month"], rows["archive"]["put_1000"]) == ("0.01", None)
    assert rows["archive"]["move_bytes_per_s"] == 50_000_000
    way = ("--from", "default", "--to", "archive", "--idle-for", "7d", "--payback-days", "60")
    neve("stores", "rule-add", "cold", *way, "--off")
    assert "idle for 7" in neve("stores", "rules")
    assert json.loads(neve("stores", "dry-run", "cold", "--json"))["ways"] == []
    assert "no segment outside the target is old" in neve("stores", "dry-run", "cold", told=True)
    neve("stores", "rule-set", "cold", "--idle-for", "null", "--payback-days", "null")
    assert "It has no condition" in neve("stores", "rule-set", "cold", "--off", told=True)
    (rule,) = json.loads(neve("stores", "rules", "--json"))
    assert (rule["least_idle_s"], rule["payback_days"]) == (None, None)
    assert "null: no such condition" in neve(
        *("stores", "rule-set", "cold", "--older-than", "soon"), told=True, code=64
    )
    neve("stores", "rule-set", "cold", "--on", "--idle-for", "9d")
    (rule,) = json.loads(neve("stores", "rules", "--json"))
    assert (rule["is_active"], rule["least_idle_s"]) == (True, 9 * 86400)
    neve("stores", "rule-set", "cold", "--off")
    (rule,) = json.loads(neve("stores", "rules", "--json"))
    assert (rule["is_active"], rule["least_idle_s"]) == (False, 9 * 86400)
    assert json.loads(neve("stores", "moves", "--json")) == []
    broken = "from catalog.models import Store; Store.objects.update(error='no route to it')"
    control_plane.manage("shell", "-v", "0", "-c", broken)
    assert "archive: no route to it" in neve("stores", "ls", told=True)
    neve("stores", "rule-rm", "cold")
    neve("stores", "rule-add", "back", "--from", "archive", "--to", "default")
    assert "0 segments given up, rules removed: back" in neve("stores", "rm", "archive", "--yes")
    assert "archive" not in neve("stores", "ls")
