"""The command `neve` as a whole: what it loads, how it is helped, completed and refused."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from neve.cli import exits
from neve.cli.main import SECTIONS, main
from neve.cli.plan import COMMANDS as PLANS
from neve.cli.plan import plan

COMMANDS = [name for section in SECTIONS.values() for name in section]
NO_PLATFORM = {"NEVE_ENDPOINT": None, "NEVE_API_KEY": None, "NEVE_PROFILE": None}


def neve(*arguments: str, **options) -> Result:
    return CliRunner(env=NO_PLATFORM).invoke(main, arguments, **options)


def all_commands(group: click.Group, path: tuple[str, ...] = ()):
    with click.Context(group) as ctx:
        for name in group.list_commands(ctx):
            command = group.get_command(ctx, name)
            yield (*path, name), command
            if isinstance(command, click.Group):
                yield from all_commands(command, (*path, name))


@pytest.mark.parametrize("arguments", [["--help"], ["version"]])
def test_help_and_version_load_no_library(arguments):
    code = (
        "import sys\nfrom neve.cli.main import main\n"
        f"try: main({arguments!r})\nexcept SystemExit: pass\n"
        "heavy = {'httpx', 'rich', 'numpy', 'urllib3', 'tqdm', 'neve._core', 'neve.api'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_help_has_each_command_in_80_columns():
    lines = neve("--help").output.splitlines()
    assert all(len(line) <= 80 for line in lines)
    for name in COMMANDS:
        assert any(line.startswith(f"  {name} ") for line in lines), name


@pytest.mark.parametrize("name", COMMANDS)
def test_the_words_of_help_are_the_commands_own(name):
    words = {each: said for section in SECTIONS.values() for each, (_, said) in section.items()}
    with click.Context(main) as ctx:
        command = main.get_command(ctx, name)
    own = command.get_short_help_str(200).rstrip(".")
    assert words[name].rstrip(".").split()[0] == own.split()[0]


@pytest.mark.parametrize("name", PLANS)
def test_the_words_of_plan_are_the_commands_own(name):
    with click.Context(plan) as ctx:
        assert plan.get_command(ctx, name).get_short_help_str(200) == PLANS[name]


@pytest.mark.parametrize(
    ("path", "command"), list(all_commands(main)), ids=lambda each: " ".join(each)
    if isinstance(each, tuple) else ""
)  # fmt: skip
def test_each_command_explains_itself(path, command):
    done = neve(*path, "--help")
    assert done.exit_code == 0
    assert command.help, path
    assert done.output.startswith("Usage: ")


def test_commands_of_the_platform_take_json_profile_and_endpoint():
    own = (
        *("login", "logout", "mcp", "ping", "replay", "plan", "simulate", "codec-check"),
        *("router", "completion", "version"),
    )
    for path, command in all_commands(main):
        if isinstance(command, click.Group) or path[0] in own:
            continue
        names = {option for each in command.params for option in each.opts}
        assert {"--json", "--profile", "--endpoint"} <= names, path
        assert not {"--api-key", "--key", "--token"} & names, path


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--nonsense"], 64, "No such option"),
        (["nonsense"], 64, "No such command"),
        (["contexts", "nonsense"], 64, "No such command"),
        (["contexts", "pin", "x"], 64, "--for or --until"),
        (["contexts", "ls", "--limit", "0"], 64, "--limit"),
        (["events", "--after", "3"], 64, "--follow"),
        (["policy", "set", "max_age_s"], 64, "FIELD=VALUE"),
        (["contexts", "ls"], 4, "neve login"),
        (["contexts", "ls", "--profile", "x"], 4, "neve login --profile x"),
        (["contexts", "ls", "--endpoint", "http://127.0.0.1:9"], 4, "no key"),
        (["contexts", "ls", "--endpoint", "nowhere"], 1, "http://127.0.0.1:8000"),
    ],
)
def test_a_wrong_command_line_is_told_from_a_missing_key(arguments, code, says, tmp_path):
    done = CliRunner(env={**NO_PLATFORM, "XDG_CONFIG_HOME": str(tmp_path)}).invoke(main, arguments)
    assert (done.exit_code, done.stdout) == (code, "")
    assert says in done.stderr


def test_with_json_an_error_is_a_document_on_standard_error(tmp_path):
    runner = CliRunner(env={**NO_PLATFORM, "XDG_CONFIG_HOME": str(tmp_path)})
    done = runner.invoke(main, ["contexts", "ls", "--json"])
    assert done.stdout == ""
    assert json.loads(done.stderr)["exit_code"] == done.exit_code == 4


def test_an_unreachable_platform_is_told_apart(tmp_path):
    env = {"NEVE_ENDPOINT": "http://127.0.0.1:1", "NEVE_API_KEY": "neve_a_b"}
    done = CliRunner(env=env).invoke(main, ["contexts", "ls"])
    assert done.exit_code == 6
    assert "127.0.0.1:1" in done.stderr


def test_without_the_extra_the_command_to_run_is_said(monkeypatch):
    from neve.cli import connection

    monkeypatch.setattr(connection, "find_spec", lambda name: None if name == "rich" else name)
    done = neve("contexts", "ls")
    assert done.exit_code == 1
    assert "pip install 'neve[api]'" in done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_the_shells_own(shell):
    done = neve("completion", shell)
    assert done.exit_code == 0
    assert "_NEVE_COMPLETE" in done.output


@pytest.mark.parametrize(
    ("line", "expected"),
    [("neve con", "contexts"), ("neve contexts p", "pin"), ("neve contexts ls --so", "--sort")],
)
def test_a_shell_completes_commands_and_options(line, expected):
    words = line.split()
    env = {
        **os.environ,
        "_NEVE_COMPLETE": "bash_complete",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
    }
    code = "from neve.cli.main import main; main(prog_name='neve')"
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False
    )
    assert expected in [entry.partition(",")[2] for entry in done.stdout.splitlines()]


def test_each_command_is_documented():
    page = (Path(__file__).resolve().parents[2] / "docs/cli.md").read_text()
    for path, command in all_commands(main):
        if isinstance(command, click.Group):
            continue
        assert f"neve {' '.join(path)}" in page or f"`{path[-1]}" in page, path


def test_each_exit_code_is_documented():
    page = (Path(__file__).resolve().parents[2] / "docs/cli.md").read_text()
    codes = {value for name, value in vars(exits).items() if name.isupper() and type(value) is int}
    assert codes | {0} == {int(code) for code in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)}
