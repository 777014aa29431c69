"""What `make up` prepares in var/, and how it refuses ports."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import valkey

from deploy import installation
from support.servers import free_port, wait_until


@pytest.fixture(autouse=True)
def empty_var(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in (*installation.PORTS, *installation.SECRETS):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(installation, "VAR", tmp_path / "var")
    return tmp_path / "var"


def test_secrets_are_made_once_and_only_the_owner_reads_them(empty_var: Path) -> None:
    first = installation.prepare()
    assert (empty_var / "env").stat().st_mode & 0o777 == 0o600
    again = installation.prepare()
    for name in installation.SECRETS:
        assert len(first[name]) >= 16
        assert again[name] == first[name]


def test_an_operators_own_line_stays_and_counts(empty_var: Path) -> None:
    installation.prepare()
    with (empty_var / "env").open("a") as file:
        file.write("NEVE_HOT_MAXMEMORY=2gb\n")
    env = installation.prepare()
    assert env["NEVE_HOT_MAXMEMORY"] == "2gb"
    assert "maxmemory 2gb" in (empty_var / "valkey-hot.conf").read_text()
    assert "NEVE_HOT_MAXMEMORY=2gb" in (empty_var / "env").read_text()


def test_manage_py_finds_the_ports_of_the_last_start(
    empty_var: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEVE_HOT_PORT", "7777")
    installation.prepare()
    assert "@127.0.0.1:7777/0" in installation.read_env(empty_var / "env")["NEVE_HOT_URL"]


def test_only_a_proxy_in_front_may_say_where_a_request_comes_from(
    empty_var: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert installation.prepare()["FORWARDED_ALLOW_IPS"] == ""
    monkeypatch.setenv("NEVE_URL", "https://neve.example/")
    assert installation.prepare()["FORWARDED_ALLOW_IPS"] == "127.0.0.1"
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "10.0.0.7")
    assert installation.prepare()["FORWARDED_ALLOW_IPS"] == "10.0.0.7"


def test_a_taken_port_is_named_with_its_holder_and_the_variable() -> None:
    with socket.create_server(("127.0.0.1", free_port())) as holder:
        port = holder.getsockname()[1]
        env = {name: str(free_port(8)) for name in installation.PORTS} | {
            "NEVE_BUS_PORT": str(port)
        }
        with pytest.raises(installation.CannotStart) as refusal:
            installation.refuse_taken_ports(env)
    assert f"Port {port} is taken by " in str(refusal.value)
    assert "NEVE_BUS_PORT=" in str(refusal.value)


def test_two_servers_on_one_port_are_refused() -> None:
    first = free_port(8)
    env = {"NEVE_WEB_PORT": str(first + 3), "NEVE_HOT_PORT": "1", "NEVE_BUS_PORT": "1"}
    with pytest.raises(installation.CannotStart, match="NEVE_S3_PORT and NEVE_WEB_PORT both use"):
        installation.refuse_taken_ports(env | {"NEVE_S3_PORT": str(first)})


def test_a_port_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEVE_WEB_PORT", "http")
    with pytest.raises(installation.CannotStart, match="NEVE_WEB_PORT=http"):
        installation.prepare()


def test_manage_py_uses_the_database_of_make_up(tmp_path: Path) -> None:
    """Each in a process of its own, told of the folder by NEVE_VAR alone."""
    others = {name: value for name, value in os.environ.items() if not name.startswith("NEVE_")}
    folder = tmp_path / "data"
    prepare = "from deploy.installation import prepare; import json; print(json.dumps(prepare()))"

    def run(env: dict[str, str], *command: str) -> str:
        done = [sys.executable, *command]
        return subprocess.check_output(done, cwd=installation.ROOT, env=env, text=True)

    manual = others | {"NEVE_VAR": str(folder)}
    of_up = json.loads(run(manual, "-c", prepare))
    show = "from django.conf import settings; print(settings.DATABASES['default']['NAME'])"
    shell = ("manage.py", "shell", "--no-imports", "-v0", "-c", show)
    found = {run(env, *shell).strip() for env in (of_up, manual)}
    assert found == {str(folder / "neve.sqlite3")}


def test_data_of_a_newer_valkey_is_refused_with_both_versions_and_the_way_out(
    empty_var: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    env = installation.prepare()
    installation.refuse_older_valkey(env)  # nothing is there yet
    port, conf = free_port(), empty_var / "valkey-bus.conf"
    command = ["valkey-server", str(conf), "--port", str(port)]
    with subprocess.Popen(command, env=os.environ | {"PATH": env["PATH"]}) as server:
        try:
            wait_until(lambda: installation.answers(port), what="valkey")
        finally:
            server.terminate()
    written = installation._valkey_of(empty_var / "valkey-bus")
    assert written == installation._valkey_on(env["PATH"])
    installation.refuse_older_valkey(env)
    older, gone = tmp_path / "older", tmp_path / "python"
    older.mkdir()
    (older / "valkey-server").write_text("#!/bin/sh\necho Valkey server v=7.2.9 sha=0\n")
    (older / "valkey-server").chmod(0o755)
    (tmp_path / "valkey-server").symlink_to("/nowhere/valkey-server")
    monkeypatch.setattr(sys, "executable", str(gone))
    with pytest.raises(installation.CannotStart) as caught:
        installation.refuse_older_valkey(env | {"PATH": f"{older}:{env['PATH']}"})
    for words in (f"Valkey {written} wrote", "Valkey 7.2.9 is on PATH", "/nowhere/valkey-server"):
        assert words in str(caught.value)
    assert f"deploy/get valkey9 {gone}" in str(caught.value)


PASSWORDS = ["a@b/c#d%e", "$HOME", 'it\'s "quoted" \\', "'single'"]


@pytest.mark.parametrize("password", PASSWORDS)
def test_a_password_may_have_any_characters(
    empty_var: Path, monkeypatch: pytest.MonkeyPatch, password: str
) -> None:
    """Valkey, `make up` and `manage.py` understand the same."""
    installation.prepare()
    with (empty_var / "env").open("a") as file:
        file.write(installation._env_line("NEVE_HOT_PASSWORD", password))
    env = installation.prepare()
    assert env["NEVE_HOT_PASSWORD"] == password
    port = free_port()
    conf = empty_var / "valkey-hot.conf"
    with subprocess.Popen(["valkey-server", str(conf), "--port", str(port)]) as server:
        try:
            wait_until(lambda: installation.answers(port), what="valkey")
            url = env["NEVE_HOT_URL"].replace(env["NEVE_HOT_PORT"], str(port))
            with valkey.Valkey.from_url(url) as client:
                assert client.ping()
        finally:
            server.terminate()
    others = {name: value for name, value in os.environ.items() if not name.startswith("NEVE_")}
    show = "from django.conf import settings; print(settings.ENV.hot_url)"
    command = [sys.executable, "manage.py", "shell", "--no-imports", "-v0", "-c", show]
    of_manage = subprocess.check_output(
        command, cwd=installation.ROOT, env=others | {"NEVE_VAR": str(empty_var)}, text=True
    )
    assert of_manage.strip() == env["NEVE_HOT_URL"]
