"""The installation on one machine: ports, secrets, files in var/, and readiness of its servers.

var/env stores the secrets and the server addresses of the last `make up`, for `manage.py`. Lines
that an operator adds stay. The process environment overrides var/env.
"""

import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import MutableMapping
from itertools import starmap
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil
from botocore.exceptions import BotoCoreError, ClientError
from dotenv import dotenv_values

ROOT = Path(__file__).resolve().parents[1]
VAR = ROOT / (os.environ.get("NEVE_VAR") or "var")  # as `controlplane.env` reads it

PORTS = {
    "NEVE_WEB_PORT": 8000,
    "NEVE_HOT_PORT": 6390,
    "NEVE_BUS_PORT": 6391,
    "NEVE_S3_PORT": 8333,
}
S3_PORTS = 8  # deploy/weed listens on its port and the seven after it
_WROTE = re.compile(rb"(?:valkey|redis)-ver.(\d+(?:\.\d+)+)", re.DOTALL)
LOOPBACK = ("127.0.0.1", "localhost", "::1")
SECRETS = {
    "NEVE_SECRET_KEY": 32,
    "NEVE_KEY_PEPPER": 32,
    "NEVE_HOT_PASSWORD": 24,
    "NEVE_BUS_PASSWORD": 24,
    "NEVE_S3_ACCESS_KEY": 8,
    "NEVE_S3_SECRET_KEY": 24,
}


class CannotStart(Exception):
    """The message names the problem and the command or variable that fixes it."""


def prepare() -> dict[str, str]:
    """Write var/env and the servers' configuration; return the environment for all programs.

    Raises CannotStart for a port that is no number.
    """
    os.umask(0o077)  # only this user may read secrets, keys and data
    (VAR / "log").mkdir(parents=True, exist_ok=True)
    saved = read_env(VAR / "env")
    for name, length in SECRETS.items():
        saved.setdefault(name, secrets.token_hex(length))
    # On one machine engines and receivers of webhooks stand on loopback, too.
    saved.setdefault("NEVE_OUTBOUND_ALLOW", "public,127.0.0.0/8,::1/128")
    env = {**saved, **{k: v for k, v in os.environ.items() if k.startswith("NEVE_")}}
    for name, default in PORTS.items():
        env[name] = str(_port(name, env.get(name) or str(default)))
    where = {
        **{f"NEVE_{name}_URL": _valkey_url(env, name) for name in ("HOT", "BUS")},
        "NEVE_S3_ENDPOINT": f"http://127.0.0.1:{env['NEVE_S3_PORT']}",
    }
    env.update(where)
    _write_private(VAR / "env", "".join(starmap(_env_line, {**saved, **where}.items())))
    _write_servers(env)
    python_path = f"{ROOT}{os.pathsep}{ROOT / 'platform'}"
    own = {"NEVE_VAR": str(VAR), "PYTHONPATH": python_path, "PYTHONUNBUFFERED": "1"}
    own["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    # Trust X-Forwarded-For from this machine only if NEVE_URL says that a proxy is in front.
    in_front = "127.0.0.1" if env.get("NEVE_URL") else ""
    own["FORWARDED_ALLOW_IPS"] = os.environ.get("FORWARDED_ALLOW_IPS", in_front)
    spare_proxies(os.environ)
    return {**os.environ, **env, **own, "DJANGO_SETTINGS_MODULE": "controlplane.settings"}


def _valkey_url(env: dict[str, str], name: str) -> str:
    password = quote(env[f"NEVE_{name}_PASSWORD"], safe="")
    return f"valkey://:{password}@127.0.0.1:{env[f'NEVE_{name}_PORT']}/0"


def read_env(path: Path) -> dict[str, str]:
    """The lines of an env file, as `controlplane.env` reads them; {} without the file."""
    return {k: v for k, v in dotenv_values(path, interpolate=False).items() if v is not None}


def _env_line(name: str, value: str) -> str:
    """A line that `read_env` reads back exactly, whatever characters the value has."""
    if re.fullmatch(r"[\w:/.,@%+=-]*", value):
        return f"{name}={value}\n"
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"{name}='{escaped}'\n"


def spare_proxies(environment: MutableMapping[str, str]) -> None:
    """Exempt this machine's addresses from the proxy that http_proxy names."""
    for name in ("no_proxy", "NO_PROXY"):
        hosts = [environment[name]] if environment.get(name) else []
        environment[name] = ",".join([*hosts, *LOOPBACK])


def refuse_taken_ports(env: dict[str, str]) -> None:
    """Raises CannotStart, which names each taken port, its process and the variable to change."""
    problems: list[str] = []
    claimed: dict[int, str] = {}
    for name in PORTS:
        first = int(env[name])
        for port in range(first, first + (S3_PORTS if name == "NEVE_S3_PORT" else 1)):
            if port in claimed:
                problems.append(f"  {name} and {claimed[port]} both use port {port}.")
            elif not port_is_free(port):
                problems.append(
                    f"  Port {port} is taken{_holder(port)}.\n    {_remedy(name, first)}"
                )
            claimed[port] = name
    if problems:
        raise CannotStart("\n".join(["Neve did not start:", *problems]))


def refuse_older_valkey(env: dict[str, str]) -> None:
    """Raises CannotStart if a newer Valkey wrote var/valkey-bus than the one that would read it."""
    folder = VAR / "valkey-bus"
    written, runs = _valkey_of(folder), _valkey_on(env["PATH"])
    if not written or not runs or int(written.split(".")[0]) <= int(runs.split(".")[0]):
        return
    link = Path(sys.executable).parent / "valkey-server"
    gone = (
        f"  {link} points to {os.readlink(link)}, which is gone.\n"
        f"  Make it again: deploy/get valkey9 {sys.executable}\n"
        if link.is_symlink() and not link.exists()
        else ""
    )
    raise CannotStart(
        f"Valkey {written} wrote {folder}, and Valkey {runs} is on PATH, which cannot read it.\n"
        f"{gone}"
        f"  Put Valkey {written.split('.')[0]} or newer on PATH, or delete {folder}:\n"
        "  it holds tasks on their way and counters, which begin anew; no block and no setting."
    )


def _valkey_of(folder: Path) -> str:
    """The version that wrote the newest snapshot there; "" without one."""
    files = sorted(folder.rglob("*.rdb"), key=lambda path: path.stat().st_mtime)
    if not files:
        return ""
    with files[-1].open("rb") as file:
        found = _WROTE.search(file.read(256))  # among the first fields, behind the magic
    return found[1].decode() if found else ""


def _valkey_on(path: str) -> str:
    """The version of the valkey-server that a program finds; "" if there is none."""
    program = shutil.which("valkey-server", path=path)
    if program is None:
        return ""
    told = subprocess.run([program, "--version"], capture_output=True, text=True).stdout
    found = re.search(r"\bv=(\d+(?:\.\d+)*)", told)
    return found[1] if found else ""


def port_is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the servers do
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _holder(port: int) -> str:
    """ " by NAME (pid N)"; empty if this user may not see the process."""
    try:
        for link in psutil.net_connections("tcp"):
            if link.status != psutil.CONN_LISTEN or not link.laddr or not link.pid:
                continue
            if link.laddr.port == port:
                process = psutil.Process(link.pid)
                return f" by {process.name()} (pid {link.pid}, in {process.cwd()})"
    except psutil.Error:
        pass
    return ""


def _remedy(name: str, first: int) -> str:
    more = f" (it needs {S3_PORTS} neighbouring ports)" if name == "NEVE_S3_PORT" else ""
    return f"Stop it, or choose another: {name}={first + 1000} make up{more}"


def _port(name: str, value: str) -> int:
    if not value.isdigit() or not 1024 <= int(value) <= 65000:
        raise CannotStart(f"{name}={value}: needs to be a port from 1024 to 65000")
    return int(value)


def _write_servers(env: dict[str, str]) -> None:
    for name, options in {
        # 2,000 idle connections of 17 KiB fit into the clients' tenth of 512 MiB. More would make
        # Valkey disconnect clients that are moving blocks.
        "hot": f"maxmemory {env.get('NEVE_HOT_MAXMEMORY', '512mb')}\nmaxclients 2000\n",
        "bus": "",
    }.items():
        folder = VAR / f"valkey-{name}"
        folder.mkdir(exist_ok=True)
        _write_private(
            VAR / f"valkey-{name}.conf",
            f"include {_quoted(f'{ROOT}/deploy/valkey-{name}.conf')}\n"
            f"dir {_quoted(str(folder))}\n"
            f"port {env[f'NEVE_{name.upper()}_PORT']}\n"
            f"requirepass {_quoted(env[f'NEVE_{name.upper()}_PASSWORD'])}\n{options}",
        )
    (VAR / "s3").mkdir(exist_ok=True)
    identity = s3_identity(env["NEVE_S3_ACCESS_KEY"], env["NEVE_S3_SECRET_KEY"])
    _write_private(VAR / "s3/s3.json", json.dumps(identity))


def _quoted(value: str) -> str:
    """Quote a value for valkey.conf. Source: Valkey, sdssplitargs."""
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _write_private(path: Path, text: str) -> None:
    """Replace the file atomically; only its owner can read it."""
    new = path.with_name(path.name + ".new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    new.replace(path)


def s3_identity(access_key: str, secret_key: str) -> dict[str, Any]:
    """weed's -s3.config document: one identity with every right."""
    credentials = [{"accessKey": access_key, "secretKey": secret_key}]
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    return {"identities": [{"name": "neve", "credentials": credentials, "actions": actions}]}


def s3_works(client: Any) -> bool:
    """Whether S3 stores and returns a byte: weed's /healthz answers 200 before it can do either.

    `client`: a boto3 S3 client that does not retry. weed creates the bucket implicitly.
    """
    try:
        client.put_object(Bucket="probe", Key="byte", Body=b"1")
        return bool(client.get_object(Bucket="probe", Key="byte")["Body"].read() == b"1")
    except (ClientError, BotoCoreError):
        return False


def remove_s3_sockets(first_port: int) -> None:
    """Remove weed's sockets in /tmp, named by its ports: a killed weed leaves them behind."""
    for port in range(first_port, first_port + S3_PORTS):
        for path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
            path.unlink(missing_ok=True)


def answers(port: int) -> bool:
    """Whether a server accepts connections on this loopback port."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False


def http_status(url: str) -> int:
    """Status of a GET; 0 if no server answers."""
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0
