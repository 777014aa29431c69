"""`neve login`, `doctor`, `top` and the team's own affairs against a live platform."""

import functools
import json
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from rich.cells import cell_len

from catalog.measures import MEASURES, SPLITS
from neve.cli import explore
from neve.cli.main import main
from neve.datapath.client import Client
from support.chains import ENGINE, IDENTITY, Chain, PatientClient
from support.servers import ControlPlane, wait_until
from support.terminal import Terminal

pytestmark = pytest.mark.integration

Neve = Callable[..., Result]
MAKE_INCIDENT = """
from django.contrib.auth.models import User
from django.utils import timezone
from incidents.levers import Turn
from incidents.models import Incident
from tenants.models import Membership, Tenant
tenant, now = Tenant.objects.get(slug="demo"), timezone.now()
person, _ = User.objects.get_or_create(username="member")
Membership.objects.get_or_create(user=person, tenant=tenant, role="team")
Incident.unscoped.filter(tenant=tenant).delete()
lever = Turn("cold_quota", "cold quota", "1 GiB", "2 GiB", gain=0.3, error=0.01).as_dict()
fields = {"kind": "hit_rate", "cause": "unflushed", "before": 0.8, "value": 0.4, "levers": [lever]}
fields |= {"words": "hit rate −40 points", "since": now, "opened_at": now}
print(Incident.unscoped.create(tenant=tenant, **fields).pk)
"""
NO_CREDENTIALS = {"NEVE_ENDPOINT": None, "NEVE_API_KEY": None, "NEVE_PROFILE": None}


@pytest.fixture(scope="module")
def operator_key(control_plane: ControlPlane) -> str:
    code = (
        "from tenants.services import issue_key; "
        "print(issue_key(tenant=None, role='operator', name='cli-ops')[1])"
    )
    return control_plane.manage("shell", "-v", "0", "-c", code).split()[-1]


@pytest.fixture(scope="module")
def node(control_plane: ControlPlane):
    """An engine that stored and missed something."""
    with PatientClient.connect(
        control_plane.url, control_plane.node_key, IDENTITY, node="cli-node", engine=ENGINE
    ) as client:
        chain = Chain(client, 2, seed=77)
        assert client.match(chain.ids).locations == []
        assert chain.put() == [None] * 2
        yield client


@pytest.fixture
def env(control_plane: ControlPlane, tmp_path: Path) -> dict[str, str]:
    return {
        "NEVE_ENDPOINT": control_plane.url,
        "NEVE_API_KEY": control_plane.team_key,
        "XDG_CONFIG_HOME": str(tmp_path),
    }


@pytest.fixture
def neve(env) -> Neve:
    return lambda *arguments, **options: CliRunner(env={**env, **options.pop("env", {})}).invoke(
        main, arguments, **options
    )


def document(done: Result):
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


# --- login


def test_login_reads_the_key_from_standard_input_and_stores_it_privately(
    control_plane, neve, tmp_path
):
    done = neve("login", control_plane.url, input=f"{control_plane.team_key}\n", env=NO_CREDENTIALS)
    assert done.exit_code == 0, done.output
    assert "role team, tenant demo" in done.stdout
    assert control_plane.team_key not in done.output
    path = tmp_path / "neve/config.toml"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    me = document(neve("whoami", "--json", env=NO_CREDENTIALS))
    assert (me["role"], [each["slug"] for each in me["tenants"]]) == ("team", ["demo"])
    assert "demo team" in neve("keys", "ls", env=NO_CREDENTIALS).stdout
    path.chmod(0o644)
    done = neve("whoami", env=NO_CREDENTIALS)
    assert done.exit_code == 1
    assert f"chmod 600 {path}" in done.stderr


def test_a_key_that_the_platform_refuses_is_not_stored(control_plane, neve, tmp_path):
    done = neve("login", control_plane.url, input="neve_abcdefghij_wrong", env=NO_CREDENTIALS)
    assert done.exit_code == 4
    assert "neve_abcdefghij_wrong" not in done.output
    assert not (tmp_path / "neve").exists()


def test_logout_forgets_one_profile_and_the_next_is_used(control_plane, neve):
    for profile in ("one", "two"):
        done = neve(
            *("login", control_plane.url, "--profile", profile),
            input=control_plane.team_key,
            env=NO_CREDENTIALS,
        )
        assert done.exit_code == 0
    assert "--profile two" in done.stderr
    done = neve("logout", env=NO_CREDENTIALS)
    assert done.stdout == "Profile one is forgotten. two is in use now.\n"
    assert neve("whoami", env=NO_CREDENTIALS).exit_code == 0
    assert neve("whoami", "--profile", "one", env=NO_CREDENTIALS).exit_code == 4


def test_login_in_a_terminal_asks_for_the_key_without_showing_it(control_plane, tmp_path):
    with Terminal("login", env={"XDG_CONFIG_HOME": str(tmp_path)}) as terminal:
        terminal.wait_for("Address of the platform")
        terminal.press(f"{control_plane.url}\n")
        terminal.wait_for("API key (not shown)")
        terminal.press(f"{control_plane.team_key}\n")
        assert terminal.end() == 0, terminal.plain()
    assert "Logged in" in terminal.plain()
    assert control_plane.team_key not in terminal.output


def test_a_question_in_a_terminal_is_answered_there(control_plane, env, node):
    chain = Chain(node, 2, seed=78)
    chain.put()
    node.report_context("cli-asked", chain.ids, tokens=512)
    for answer, code, left in (("n", 1, True), ("y", 0, False)):
        with Terminal("contexts", "rm", "cli-asked", env=env) as terminal:
            terminal.wait_for("Forget 'cli-asked'?")
            terminal.press(f"{answer}\n")
            assert terminal.end() == code, terminal.plain()
        found = subprocess.run(
            [sys.executable, "-m", "neve", "contexts", "show", "cli-asked"],
            env={**env, "PATH": ""},
            capture_output=True,
        )
        assert (found.returncode == 0) is left


# --- a team's own affairs


def test_the_quota_is_shown_with_its_use(neve, node):
    shown = neve("quota").stdout
    for words in ("tenant", "hot (Valkey)", "cold (S3)", "contexts", "nodes"):
        assert words in shown
    assert document(neve("quota", "--json"))["used"]["nodes"] >= 1


TICK = """
from django.utils import timezone
from catalog import slicing
from tenants.models import Tenant
slicing.take(Tenant.objects.get(slug="demo").pk, timezone.now())
"""


def test_a_measure_is_explored_by_its_parts(control_plane, neve, node):
    used = functools.partial(neve, "usage", "--range", "1h", "--json")
    wait_until(lambda: "never_stored" in used().stdout, what="a heartbeat")
    control_plane.manage("shell", "-v", "0", "-c", TICK)  # as a worker does, each 15 s
    done = neve("explore", "miss_blocks", "--split", "reason")
    assert done.exit_code == 0, done.stderr
    assert re.search(r"^never_stored +[1-9]", done.stdout, re.M)
    assert re.search(r"^all +[1-9]", done.stdout, re.M)
    assert document(neve("explore", "--json"))["measure"] == "hit_rate"
    assert neve("explore", "--to", "2026-01-01").exit_code == 64
    assert neve("explore", "--space", "99999").exit_code == 3


def test_what_is_offered_to_explore_is_what_the_platform_knows():
    assert set(explore.MEASURES) == set(MEASURES)
    assert explore.SPLITS == SPLITS


def test_why_says_where_a_context_is_and_what_is_gone(control_plane, neve, node):
    chain = Chain(node, 3, seed=78)
    chain.put()
    node.report_context("cli-why", chain.ids, tokens=3 * 256)
    wait_until(lambda: neve("why", "cli-why").exit_code == 0, what="the context")
    shown = neve("why", "cli-why")
    assert "███" in shown.stdout
    assert "3 of 3 chunks" in shown.stdout
    assert document(neve("why", "cli-why", "--json"))["kind"] == "context"
    assert neve("why", "nothing-of-this-name").exit_code == 3


def test_a_policy_is_tried_and_changed(neve, operator_key):
    tried = neve("policy", "dry-run", "max_age_s=7d")
    assert tried.exit_code == 0, tried.stderr
    assert "Would remove 0 blocks" in tried.stdout
    done = neve("policy", "set", "hot_idle_s=2h", "--yes")
    assert done.exit_code == 4  # a team may look
    as_operator = {"NEVE_API_KEY": operator_key}
    done = neve("policy", "set", "hot_idle_s=2h", "--tenant", "demo", "--yes", env=as_operator)
    assert "2h (7,200 s)" in done.stdout
    done = neve("policy", "set", "hot_idle_s=null", "--tenant", "demo", "--yes", env=as_operator)
    assert "no limit" in done.stdout
    assert document(neve("policy", "show", "--json"))["hot_idle_s"] is None


def test_a_key_is_made_rotated_and_revoked_and_shown_once(neve, operator_key):
    as_operator = {"NEVE_API_KEY": operator_key}
    made = neve(
        *("keys", "create", "cli-made", "--tenant", "demo", "--scope", "read", "--expires-in"),
        "7d",
        env=as_operator,
    )
    assert made.exit_code == 0, made.stderr
    assert made.stdout.startswith("neve_")  # the key alone, for a script to take
    assert neve("contexts", "ls", env={"NEVE_API_KEY": made.stdout.strip()}).exit_code == 0
    done = neve("keys", "rotate", "cli-made", env=as_operator)
    assert done.exit_code == 64  # nobody can answer
    rotated = neve("keys", "rotate", "cli-made", "--overlap", "0s", "--yes", env=as_operator)
    assert rotated.exit_code == 0, rotated.stderr
    assert neve("whoami", env={"NEVE_API_KEY": made.stdout.strip()}).exit_code == 4
    key = {"NEVE_API_KEY": rotated.stdout.strip()}
    assert document(neve("whoami", "--json", env=key))["scopes"] == ["read"]
    number = str(document(neve("whoami", "--json", env=key))["key"]["id"])
    assert neve("keys", "revoke", number, "--yes", env=as_operator).exit_code == 0
    assert neve("whoami", env=key).exit_code == 4


def test_a_job_is_waited_for_with_its_progress_on_standard_error(control_plane, neve, operator_key):
    as_operator = {"NEVE_API_KEY": operator_key}
    code = (
        "from catalog import jobs; from tenants.audit import SYSTEM; "
        "print(jobs.request(kind='reconcile', tenant=None, actor=SYSTEM).pk)"
    )
    job = control_plane.manage("shell", "-v", "0", "-c", code).split()[-1]
    done = neve("jobs", "wait", job, "--timeout", "0s", env=as_operator)
    assert done.exit_code == 6
    assert "goes on" in done.stderr
    assert neve("jobs", "cancel", job[:8], "--yes", env=as_operator).exit_code == 0
    done = neve("jobs", "wait", job, "--json", env=as_operator)
    assert (done.exit_code, done.stdout) == (1, "")
    assert "cancelled" in json.loads(done.stderr)["error"]
    assert "cancelled" in neve("jobs", "show", job, env=as_operator).stdout


def test_events_are_listed_and_followed_behind_the_last_one_seen(
    control_plane, neve, node, env, tmp_path
):
    chain = Chain(node, 2, seed=79)
    chain.put()
    node.report_context("cli-events", chain.ids, tokens=512)

    def pin(duration: str) -> None:
        assert neve("contexts", "pin", "cli-events", "--for", duration).exit_code == 0

    state = tmp_path / "last"
    following = ["events", "--follow", "--json", "--types", "context.pinned", "--state", str(state)]

    def follow() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "neve", *following],
            env=env,
            stdout=subprocess.PIPE,
            text=True,
        )

    pin("1h")
    number = "from events.order import number_all; number_all()"  # as a worker's tick does
    control_plane.manage("shell", "-v", "0", "-c", number)
    # Another process may be numbering them, and then this one leaves them to it.
    wait_until(
        lambda: "cli-events" in neve("events", "--types", "context.pinned").stdout,
        every_s=0.5,
        what="the numbered event",
    )
    # Not splitlines, which divides at more than line feeds: names of contexts may have such.
    lines = neve("events", "--json").stdout.rstrip("\n").split("\n")
    listed = [json.loads(line) for line in lines]
    assert [event["sequence"] for event in listed] == sorted(e["sequence"] for e in listed)
    state.write_text(f"{listed[-1]['sequence']}\n")
    pin("2h")
    first = follow()
    event = json.loads(first.stdout.readline())
    assert event["subject"]["name"] == "cli-events"
    deadline = time.monotonic() + 60
    while state.read_text() != f"{event['sequence']}\n":  # written behind the line
        assert time.monotonic() < deadline
        time.sleep(0.01)
    first.send_signal(signal.SIGINT)
    first.stdout.close()
    assert first.wait(60) == 130
    pin("3h")  # while nobody follows
    second = follow()
    event = json.loads(second.stdout.readline())
    second.kill()
    second.stdout.close()
    second.wait()
    until = datetime.fromisoformat(event["data"]["until"])
    assert (
        timedelta(hours=2, minutes=30) < until - datetime.now(UTC) < timedelta(hours=3, minutes=1)
    )


# --- incidents


@pytest.fixture
def incident(control_plane) -> str:
    """Id of an open incident of the demo tenant, and `member`, who is one of its people."""
    return control_plane.manage("shell", "-v", "0", "-c", MAKE_INCIDENT).split()[-1]


def test_incidents_are_listed_shown_and_looked_after(neve, incident, operator_key):
    assert incident[:8] in neve("incidents", "ls").stdout
    assert [each["id"] for each in document(neve("incidents", "ls", "--json"))] == [incident]
    assert "No ended incident." in neve("incidents", "ls", "--state", "ended").stderr
    shown = neve("incidents", "show", incident[:8]).stdout
    for words in ("hit rate −40 points", "80.0% → 40.0%", "Its cold quota is full"):
        assert words in shown
    assert "cold quota, now 1 GiB: try 2 GiB (hit rate +30.0 points)" in shown
    done = neve("incidents", "ack", incident[:8])
    assert done.stdout == "hit rate −40 points: acknowledged\n"
    assert "acknowledged" in neve("incidents", "ls").stdout
    assert neve("incidents", "own", incident, "member").stdout.endswith("owner member\n")
    refused = neve("incidents", "own", incident, "operator")
    assert (refused.exit_code, "nobody named 'operator'" in refused.stderr) == (64, True)
    as_operator = {"NEVE_API_KEY": operator_key}
    assert neve("incidents", "own", incident, "operator", env=as_operator).exit_code == 0
    assert document(neve("incidents", "own", incident, "--nobody", "--json"))["owner"] == ""
    assert neve("incidents", "own", incident).exit_code == 64


def test_a_mute_is_of_the_side_whose_key_it_is(neve, incident, operator_key):
    assert neve("incidents", "mute", incident, "--for", "2h").exit_code == 0
    muted = document(neve("incidents", "show", incident, "--json"))
    assert muted["muted_until"]
    assert muted["operators_muted_until"] is None
    assert "muted for tenant" in neve("incidents", "show", incident).stdout
    as_operator = {"NEVE_API_KEY": operator_key}
    assert neve("incidents", "mute", incident, "--for", "2h", env=as_operator).exit_code == 0
    assert document(neve("incidents", "unmute", incident, "--json"))["muted_until"] is None
    assert "muted for operators" in neve("incidents", "show", incident).stdout
    assert neve("incidents", "mute", incident, "--for", "90d").exit_code == 64
    assert neve("incidents", "show", "ffff").exit_code == 3


# --- top


def test_one_frame_fits_a_small_terminal(neve, node: Client):
    done = neve("top", "--once")
    assert done.exit_code == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) <= 24
    assert max(map(cell_len, lines)) <= 80
    for words in ("hit rate", "read hot", "read cold", "missed", "demo", "cli-node"):
        assert words in done.stdout
    told = document(neve("top", "--once", "--json"))
    assert "cli-node" in {each["node"] for each in told["nodes"]}
    assert told["tenants"][0]["tenant"] == "demo"


def test_top_fills_the_screen_and_gives_it_back(env, node):
    with Terminal("top", "--interval", "0.5", env=env) as terminal:
        terminal.wait_for("q ends")
        terminal.press("q")
        assert terminal.end() == 0
    assert terminal.output.index("\x1b[?1049h") < terminal.output.index("\x1b[?1049l")
    assert "\x1b[?25h" in terminal.output  # the cursor is shown again


def test_top_without_a_terminal_says_what_to_do(neve):
    done = neve("top")
    assert done.exit_code == 64
    assert "--once" in done.stderr


# --- doctor


def checks(done: Result) -> dict[str, str]:
    return {each["check"]: each["state"] for each in json.loads(done.stdout)["checks"]}


def test_the_doctor_finds_everything_well(control_plane, neve, node, tmp_path):
    key = tmp_path / "node.key"
    key.write_text(control_plane.node_key)
    done = neve("doctor", "--node-key-file", str(key), "--model", IDENTITY.model, "--json")
    assert done.exit_code == 0, done.stdout
    found = checks(done)
    assert {found[name] for name in ("endpoint", "tls", "clock", "key", "version")} == {"ok"}
    assert {found[name] for name in ("node", "valkey", "hot quota", "block", "s3")} == {"ok"}
    assert {"hit rate", "model hits"} <= set(found)
    shown = neve("doctor", "--node-key-file", str(key), "--model", IDENTITY.model)
    assert " 0 FAIL" in shown.stdout


def test_the_doctor_skips_what_a_key_cannot_see(control_plane, neve):
    found = checks(neve("doctor", "--json"))
    assert found["node"] == "skip"
    found = checks(neve("doctor", "--json", env={"NEVE_API_KEY": control_plane.node_key}))
    assert (found["valkey"], found["model"]) == ("ok", "skip")


def test_the_doctor_names_what_is_wrong_and_the_fix(control_plane, neve, tmp_path):
    done = neve("doctor", env={"NEVE_ENDPOINT": "http://127.0.0.1:9"})
    assert done.exit_code == 1
    assert "FAIL  endpoint" in done.stdout
    assert "fix: start the platform" in done.stdout
    done = neve("doctor", env={"NEVE_API_KEY": "neve_abcdefghij_wrong"})
    assert done.exit_code == 1
    assert "FAIL  key" in done.stdout
    key = tmp_path / "node.key"
    key.write_text(control_plane.team_key)
    done = neve("doctor", "--node-key-file", str(key))
    assert done.exit_code == 1
    assert "role node" in done.stdout


def test_the_doctor_says_why_an_engine_does_not_share(neve, node, tmp_path):
    identity = {**IDENTITY.as_dict(), "kv_dtype": "fp8", "engine_block_tokens": 32}
    file = tmp_path / "engine.json"
    file.write_text(json.dumps(identity))
    done = neve("doctor", "--engine-config", str(file))
    assert "kv_dtype: 'fp8' here, 'bfloat16' there" in done.stdout
    assert "engine_block_tokens: 32 here, 16 there" in done.stdout
    done = neve("doctor", "--node", "cli-node", "--json")
    assert done.exit_code == 0, done.stdout
    assert "fingerprint" in checks(done)
    done = neve("doctor", "--model", "no/such-model")
    assert "no space holds model 'no/such-model'" in done.stdout
