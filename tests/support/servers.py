"""Real servers on loopback for tests and benchmarks: Valkey, S3 (weed), the control plane.

Each server is a context manager: `with ValkeyServer(folder) as valkey: ...`. Entering starts it and
waits until it answers; leaving kills it. Servers die with the process that started them
(PR_SET_PDEATHSIG through setpriv), so that a killed test run leaves no server behind.
Start them from the main thread: the signal comes when the starting thread ends.

Must not be here: fixtures (tests/conftest.py), Django imports.
"""

from __future__ import annotations

import json
import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Self

import boto3
import valkey
from botocore.config import Config

from deploy.installation import (
    ROOT,
    answers,
    http_status,
    remove_s3_sockets,
    s3_identity,
    s3_works,
)

# Child interpreters find the repository's source roots without manage.py.
PYTHON_ENV = {
    "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'platform'}",
    "DJANGO_SETTINGS_MODULE": "controlplane.settings",
    "PYTHONUNBUFFERED": "1",
}

XDIST_WORKERS = 4  # each with its own range of ports; a fifth shares the first's
_given: deque[int] = deque(maxlen=1000)  # ports, which are not given again
_held: list[ExitStack] = []  # of sockets, see `hold`


def free_port(count: int = 1, *, hold: bool = False) -> int:
    """First of `count` consecutive loopback ports that are free now.

    Servers bind them later, so nothing else may take them meanwhile. They are below the kernel's
    range for outgoing connections (32768 and up, Source: net.ipv4.ip_local_port_range), each
    pytest-xdist worker has a range of its own, and of a worker's last thousand none is given again.

    `hold`: for ports that a server binds minutes later. Until this process ends it keeps a socket
    on each that does not listen: a server that sets SO_REUSEADDR, as all here do, may still bind
    the port, and `free_port` of another process may not.
    """
    lowest, highest = 15000, 32000
    if worker := os.environ.get("PYTEST_XDIST_WORKER"):  # gw0, gw1, ...
        size = (highest - lowest) // XDIST_WORKERS
        lowest += int(worker.removeprefix("gw")) % XDIST_WORKERS * size
        highest = lowest + size - count
    while True:
        first = random.randint(lowest, highest)
        ports = range(first, first + count)
        with ExitStack() as bound, suppress(OSError):
            for port in ports:
                taking = bound.enter_context(socket.socket())
                taking.bind(("127.0.0.1", port))
                taking.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if not {*_given} & {*ports}:
                _given.extend(ports)
                if hold:
                    _held.append(bound.pop_all())
                return first


def wait_until(
    ready: Callable[[], bool], *, timeout_s: float = 60, every_s: float = 0.05, what: str
) -> None:
    """Poll `ready`, which may raise OSError for "not yet".

    Raises TimeoutError, which names `what`, after `timeout_s`: by default far above what anything
    takes on a busy machine.
    """
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            if ready():
                return
        except OSError:
            pass
        time.sleep(every_s)
    raise TimeoutError(f"{what}: not ready within {timeout_s:g} s")


class Server:
    """One child process with its folder and log. Subclasses define command and readiness."""

    name = "server"
    start_timeout_s = 120.0

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / f"{self.name}.log"
        self.process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        raise NotImplementedError

    def ready(self) -> bool:
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        return dict(os.environ)

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *self.command()],
                cwd=ROOT,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                process_group=0,
            )
        try:
            wait_until(self._ready_or_dead, timeout_s=self.start_timeout_s, what=self.name)
        except BaseException as error:
            self.stop()
            error.add_note(f"{self.log}:\n" + self.log.read_text(errors="replace")[-2000:])
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def _ready_or_dead(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise RuntimeError(f"{self.name} ended with {self.process.returncode}")
        return self.ready()

    def kill(self) -> None:
        """Send SIGKILL to it and its children, as in a crash; keep the folder.

        `restart` starts it again on the same port.
        """
        if self.process is not None:
            with suppress(ProcessLookupError):  # it has ended with all its children
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    stop = kill

    def cpu_s(self, *, with_children: bool = False) -> float:
        """Processor time of its process so far."""
        assert self.process is not None
        found = 0
        for pid in [self.process.pid, *(self.children() if with_children else ())]:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            found += int(fields[11]) + int(fields[12])
        return found / os.sysconf("SC_CLK_TCK")

    def children(self) -> list[int]:
        """Processes that its process started and that run."""
        assert self.process is not None
        tasks = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        return [int(pid) for task in tasks for pid in task.read_text().split()]

    def freeze(self) -> None:
        """Send SIGSTOP to it and its children: connections stay open without answers."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGCONT)

    def restart(self) -> None:
        self.kill()
        self.__enter__()


class ValkeyServer(Server):
    """An empty Valkey without persistence; the default user has no password."""

    name = "valkey"

    def __init__(
        self, folder: Path, *, port: int = 0, maxmemory: str = "256mb", policy: str = "noeviction"
    ) -> None:
        super().__init__(folder)
        self.host = "127.0.0.1"
        self.port = port or free_port()
        self.url = f"valkey://{self.host}:{self.port}/0"
        self.maxmemory = maxmemory
        self.policy = policy

    def command(self) -> list[str]:
        options = {
            "port": self.port,
            "maxmemory": self.maxmemory,
            "maxmemory-policy": self.policy,
            "dir": self.folder,
        }
        config = str(ROOT / "deploy/valkey-hot.conf")
        return [
            "valkey-server",
            config,
            *(str(x) for k, v in options.items() for x in (f"--{k}", v)),
        ]

    def client(self, **options: object) -> valkey.Valkey:
        """A new valkey-py client (bytes in, bytes out); the caller closes it."""
        return valkey.Valkey(self.host, self.port, **options)  # type: ignore[arg-type]

    def ready(self) -> bool:
        with socket.create_connection((self.host, self.port), timeout=1) as sock:
            sock.sendall(b"PING\r\n")
            return sock.recv(16).startswith(b"+PONG")

    def wipe(self) -> None:
        """Delete all keys, functions and users except `default`."""
        with self.client() as client:
            client.execute_command("FLUSHALL", "SYNC")
            client.execute_command("FUNCTION", "FLUSH", "SYNC")
            for name in client.execute_command("ACL", "USERS"):
                if name != b"default" and name != "default":
                    client.execute_command("ACL", "DELUSER", name)


class S3Server(Server):
    """SeaweedFS with one identity with all rights. Starts in about 3.5 s.

    `tls`: (certificate file, key file); adds https on `https_port`.
    """

    name = "weed"
    region = "us-east-1"

    def __init__(
        self,
        folder: Path,
        *,
        port: int = 0,
        keys: tuple[str, str] | None = None,
        tls: tuple[Path, Path] | None = None,
    ) -> None:
        super().__init__(folder)
        self.port = port or free_port(9)
        self.https_port = self.port + 8
        self.tls = tls
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.access_key, self.secret_key = keys or (
            "AK" + secrets.token_hex(8),
            secrets.token_hex(20),
        )
        self._probe = self.client(attempts=1)

    def command(self) -> list[str]:
        config = self.folder / "s3.json"
        config.write_text(json.dumps(s3_identity(self.access_key, self.secret_key)))
        command = [str(ROOT / "deploy/weed"), str(self.folder), str(self.port)]
        if self.tls is not None:
            files = [f"-s3.cert.file={self.tls[0]}", f"-s3.key.file={self.tls[1]}"]
            command += [*files, f"-s3.port.https={self.https_port}"]
        return command

    def client(self, *, attempts: int = 2, endpoint: str | None = None, verify: str | None = None):
        """A boto3 client. `endpoint`: another URL, of https or a proxy. `verify`: CA file."""
        return boto3.client(
            "s3",
            endpoint_url=endpoint or self.endpoint,
            verify=verify,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name=self.region,
            config=Config(
                signature_version="s3v4",  # as on the platform
                retries={"total_max_attempts": attempts},
                s3={"addressing_style": "path"},
            ),
        )

    def bucket(self, prefix: str = "test") -> str:
        """Make an empty bucket with a new name; return the name."""
        name = f"{prefix}-{secrets.token_hex(6)}"
        self.client().create_bucket(Bucket=name)
        return name

    @property
    def keys(self) -> Path:
        """Folder with the keys of the inner ports."""
        return self.folder

    def shell(self, *commands: str, keys: Path | None = None, timeout_s: float = 30) -> str:
        """Run commands in SeaweedFS's admin shell; return its output. `keys`: another key folder.

        Raises subprocess.TimeoutExpired if the master refuses: the shell then waits for ever.
        """
        keys = keys or self.keys
        command = [str(ROOT / ".venv/bin/weed"), f"-config_dir={keys}", "shell"]
        command += [f"-master=127.0.0.1:{self.port + 2}.{self.port + 3}"]
        command += [f"-filer=127.0.0.1:{self.port + 6}.{self.port + 7}"]
        done = subprocess.run(
            command, input="\n".join(commands) + "\n", text=True, timeout=timeout_s, cwd=keys,
            env={"HOME": str(keys), "PATH": os.environ["PATH"]},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        return done.stdout

    def ready(self) -> bool:
        return answers(self.port) and s3_works(self._probe)

    def kill(self) -> None:
        super().kill()
        remove_s3_sockets(self.port)

    stop = kill


def new_database(postgres_url: str) -> str:
    """Make an empty database with a new name on that server; return its URL."""
    import psycopg  # missing on GPU hosts that run benchmarks

    name = f"web_{secrets.token_hex(6)}"
    with psycopg.connect(postgres_url, autocommit=True) as server:
        server.execute(f"CREATE DATABASE {name}")
    return f"{postgres_url.rpartition('/')[0]}/{name}"


class ControlPlane(Server):
    """The web process over its own database, hot Valkey and bus, and a bucket of `s3`.

    The database is SQLite, or a new one on the PostgreSQL of `postgres_url`.
    `operator` is (user name, password); `node_key` and `team_key` are the demo tenant's API keys.
    """

    name = "web"

    def __init__(
        self, folder: Path, s3: S3Server, *, maxmemory: str = "256mb", postgres_url: str = ""
    ) -> None:
        super().__init__(folder)
        self.postgres_url = postgres_url
        self.s3 = s3
        self.hot = ValkeyServer(folder / "hot", maxmemory=maxmemory)
        self.bus = ValkeyServer(folder / "bus")
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.bucket = f"web-{secrets.token_hex(6)}"
        self.operator = ("operator", secrets.token_hex(8))
        self.node_key = self.team_key = ""
        self.database_url = f"sqlite:///{folder}/neve.sqlite3"
        self.settings: dict[str, str] = {}  # extra environment, names without NEVE_
        self._secrets = {name: secrets.token_hex(32) for name in ("SECRET_KEY", "KEY_PEPPER")}

    def environment(self) -> dict[str, str]:
        """Environment in which `manage.py`, Celery and web use this platform."""
        own = {
            **self._secrets,
            "VAR": str(self.folder),
            "DATABASE_URL": self.database_url,
            "HOT_URL": self.hot.url,
            "BUS_URL": f"redis://127.0.0.1:{self.bus.port}/0",
            "S3_ENDPOINT": self.s3.endpoint,
            "S3_BUCKET": self.bucket,
            "S3_REGION": self.s3.region,
            "S3_ACCESS_KEY": self.s3.access_key,
            "S3_SECRET_KEY": self.s3.secret_key,
            "OPERATOR_PASSWORD": self.operator[1],
            "HEARTBEAT_S": "1",
            "PAGE_PROCESSES": "1",
            "OUTBOUND_ALLOW": "public,127.0.0.0/8,::1/128",
            **self.settings,
        }
        others = {k: v for k, v in os.environ.items() if not k.startswith("NEVE_")}
        return others | {f"NEVE_{name}": value for name, value in own.items()} | PYTHON_ENV

    def manage(self, *arguments: str, timeout_s: float = 300) -> str:
        """Run manage.py; return its output. Raises RuntimeError with the output."""
        done = subprocess.run(
            [sys.executable, "manage.py", *arguments],
            cwd=ROOT, env=self.environment(), timeout=timeout_s,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        if done.returncode != 0:
            raise RuntimeError(f"manage.py {' '.join(arguments)}:\n{done.stdout[-4000:]}")
        return done.stdout

    def command(self) -> list[str]:
        options = ["--host", "127.0.0.1", "--port", str(self.port), "--log-level", "warning"]
        return [sys.executable, "-m", "uvicorn", "controlplane.asgi:application", *options]

    def ready(self) -> bool:
        return http_status(f"{self.url}/healthz") == 200

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self.hot.__enter__()
            self.bus.__enter__()
            if self.postgres_url:
                self.database_url = new_database(self.postgres_url)
            self.manage("migrate", "--verbosity", "0")
            self.manage("bootstrap")
            self.node_key = (self.folder / "demo.key").read_text().strip()
            self.team_key = (self.folder / "team.key").read_text().strip()
            return super().__enter__()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        self.kill()
        self.hot.stop()
        self.bus.stop()

    def workers(self) -> Worker:
        """`with platform.workers():` runs a Celery worker with beat."""
        return Worker(self)


class SecondWeb(Server):
    """Another web process over a ControlPlane's servers."""

    name = "second-web"

    def __init__(self, platform: ControlPlane) -> None:
        super().__init__(platform.folder)
        self.platform, self.port = platform, free_port()
        self.url = f"http://127.0.0.1:{self.port}"

    def environment(self) -> dict[str, str]:
        return self.platform.environment()

    def command(self) -> list[str]:
        first = str(self.platform.port)
        return [str(self.port) if word == first else word for word in self.platform.command()]

    def ready(self) -> bool:
        return http_status(f"{self.url}/login/") == 200


class Worker(Server):
    """Celery worker and beat in one process, over a ControlPlane's environment."""

    name = "worker"

    def __init__(self, platform: ControlPlane) -> None:
        super().__init__(platform.folder)
        self.platform = platform

    def environment(self) -> dict[str, str]:
        return self.platform.environment()

    def command(self) -> list[str]:
        schedule = self.folder / "celerybeat-schedule"
        options = ["--beat", "--schedule", str(schedule), "--concurrency", "1"]
        options += ["--prefetch-multiplier", "1", "--loglevel", "INFO"]
        return [sys.executable, "-m", "celery", "-A", "controlplane", "worker", *options]

    def ready(self) -> bool:
        return b" ready." in self.log.read_bytes()
