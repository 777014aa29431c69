"""`make up`: starts supervisord and the platform's programs in order, then stays in the foreground.

Order: storage -> migrate, bootstrap, block index -> web -> workers, beat, demo node. Ctrl-C,
SIGTERM or a closed terminal stops everything. deploy/installation.py prepares var/.
"""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import xmlrpc.client
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from supervisor.xmlrpc import SupervisorTransport

from deploy.congestion import avoid_bbr
from deploy.installation import (
    ROOT,
    CannotStart,
    answers,
    http_status,
    prepare,
    refuse_older_valkey,
    refuse_taken_ports,
    remove_s3_sockets,
    s3_works,
)

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SUPERVISORD = ("-m", "supervisor.supervisord", "-c", "deploy/supervisord.conf")
STATUS_EVERY_S = 30

UP = """
Neve is up after {took_s:.0f} s: {url}/

  1. Open {url}/ and log in as "operator". The first start printed the password
     above, once; a new one: .venv/bin/python manage.py changepassword operator
  2. The demo node replays a workload: watch the hit rate rise on the overview page.
  3. From a terminal: .venv/bin/neve login {url} < {var}/team.key
     then .venv/bin/neve contexts ls, neve top, neve doctor: docs/cli.md
  4. Connect a vLLM node: docs/nodes.md. REST for teams: {url}/api/v1/docs/
  Logs: {var}/log/. Ctrl-C stops everything; the data stays in {var}/.
"""


class Stop(Exception):
    """The operator asked to stop everything."""


def main() -> int:
    for number in SIGNALS:
        signal.signal(number, _raise_stop)
    try:
        env = prepare()
        refuse_taken_ports(env)
        refuse_older_valkey(env)
        # Neither in var/ nor in TMPDIR: a socket path is limited to 107 characters.
        with tempfile.TemporaryDirectory(prefix="neve-", dir="/tmp") as folder:
            env["NEVE_SUPERVISOR_SOCKET"] = f"{folder}/supervisor.sock"
            _run(env)
    except Stop:
        return 0
    except CannotStart as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    return 0


def _raise_stop(number: int, frame: object) -> None:
    raise Stop


def _stop_with_make() -> None:
    """Raises Stop if only the parent `make` got SIGINT, by `kill` instead of a terminal.

    make then waits in its signal handler for this process, with SIGINT blocked.
    """
    parent = Path(f"/proc/{os.getppid()}")
    if parent.joinpath("comm").read_text().strip() == "make":
        blocked = re.search(r"^SigBlk:\t(\w+)$", parent.joinpath("status").read_text(), re.M)
        if blocked and int(blocked[1], 16) & 1 << (signal.SIGINT - 1):
            raise Stop


def _run(env: dict[str, str]) -> None:
    supervisord = subprocess.Popen(
        ["setpriv", "--pdeathsig", "TERM", sys.executable, *SUPERVISORD],
        cwd=ROOT,
        env=env,
        stdin=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C reaches only this process, which stops the others in order
    )
    platform = Platform(env, supervisord)
    try:
        platform.bring_up()
        platform.watch()
    finally:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        print("\nStopping ...", flush=True)
        supervisord.terminate()
        supervisord.wait()
        remove_s3_sockets(int(env["NEVE_S3_PORT"]))
        print(
            f"All stopped. The data stays in {env['NEVE_VAR']}/; `make up` goes on with it.",
            flush=True,
        )


class Platform:
    """The platform's programs, controlled through supervisord's socket."""

    def __init__(self, env: dict[str, str], supervisord: "subprocess.Popen[bytes]") -> None:
        self.env = env
        self.supervisord = supervisord
        self.tuned_pid = 0
        self.logs = Path(env["NEVE_VAR"], "log")
        self.url = f"http://127.0.0.1:{env['NEVE_WEB_PORT']}"
        transport = SupervisorTransport(None, None, f"unix://{env['NEVE_SUPERVISOR_SOCKET']}")
        self.rpc: Any = xmlrpc.client.ServerProxy("http://local", transport=transport).supervisor
        self.s3 = boto3.client(
            "s3",
            endpoint_url=env["NEVE_S3_ENDPOINT"],
            aws_access_key_id=env["NEVE_S3_ACCESS_KEY"],
            aws_secret_access_key=env["NEVE_S3_SECRET_KEY"],
            region_name="us-east-1",
            config=Config(retries={"total_max_attempts": 1}, connect_timeout=1, read_timeout=5),
        )

    def bring_up(self) -> None:
        """Start all programs; return once they run. Raises CannotStart with the end of the log."""
        began = time.monotonic()
        print("Starting storage ...", flush=True)
        self._wait("valkey-hot", lambda: answers(int(self.env["NEVE_HOT_PORT"])))
        self._tune(self._ask("getProcessInfo", "valkey-hot"))
        self._wait("valkey-bus", lambda: answers(int(self.env["NEVE_BUS_PORT"])))
        self._wait("s3", lambda: answers(int(self.env["NEVE_S3_PORT"])) and s3_works(self.s3))
        print("Preparing database, bucket and block index ...", flush=True)
        self._manage("migrate", "--verbosity", "0")
        self._manage("bootstrap", "--touch-memory")
        self._manage("rebuild_index", "--if-lost")
        print("Starting web, workers, beat and the demo node ...", flush=True)
        self._start("web")
        self._wait("web", lambda: http_status(f"{self.url}/healthz") == 200)
        for name in ("watch", "flusher", "compactor", "worker", "caller", "beat", "demo"):
            self._start(name)
        took_s = time.monotonic() - began
        url = (self.env.get("NEVE_URL") or self.url).rstrip("/")
        print(UP.format(url=url, var=self.env["NEVE_VAR"], took_s=took_s), flush=True)

    def watch(self) -> None:
        """Print status and failures of programs until Stop is raised."""
        fallen: set[str] = set()
        status_at = time.monotonic() + STATUS_EVERY_S / 3
        while True:
            time.sleep(1)
            _stop_with_make()
            for program in self._ask("getAllProcessInfo"):
                name = program["name"]
                if name == "valkey-hot" and program["statename"] == "RUNNING":
                    self._tune(program)
                if program["statename"] == "FATAL" and name not in fallen:
                    fallen.add(name)
                    print(f"{name} keeps failing: {self.logs}/{name}.log", flush=True)
            if time.monotonic() >= status_at:
                status_at = time.monotonic() + STATUS_EVERY_S
                print(f"{time.strftime('%H:%M:%S')} {self._last_line('demo')}", flush=True)

    def _tune(self, program: Any) -> None:
        """Set the congestion control, again after each restart: the listening socket is new."""
        if program["pid"] == self.tuned_pid:
            return
        self.tuned_pid = program["pid"]
        try:
            avoid_bbr(self.tuned_pid)
        except OSError as error:
            print(f"valkey-hot keeps the system's congestion control: {error}", flush=True)

    def _start(self, name: str) -> None:
        try:
            self._ask("startProcess", name)
        except xmlrpc.client.Fault as fault:
            raise CannotStart(f"{name} did not start.\n{self._log_end(name)}") from fault

    def _wait(self, name: str, ready: Callable[[], bool], timeout_s: float = 60) -> None:
        deadline = time.monotonic() + timeout_s
        while not ready():
            self._check_supervisord()
            if self._ask("getProcessInfo", name)["statename"] == "FATAL":
                raise CannotStart(f"{name} ends as soon as it starts.\n{self._log_end(name)}")
            if time.monotonic() > deadline:
                raise CannotStart(f"{name} does not answer.\n{self._log_end(name)}")
            time.sleep(0.1)
            _stop_with_make()

    def _manage(self, *arguments: str) -> None:
        if subprocess.run(
            [sys.executable, "manage.py", *arguments], cwd=ROOT, env=self.env
        ).returncode:
            raise CannotStart(f"`manage.py {' '.join(arguments)}` failed, see above.")

    def _ask(self, method: str, *arguments: str) -> Any:
        """Call supervisord. Raises CannotStart if it ended, xmlrpc's Fault if it refuses."""
        try:
            return getattr(self.rpc, method)(*arguments)
        except OSError:
            time.sleep(0.5)  # the socket may close before the process is reaped
            self._check_supervisord()
            raise

    def _check_supervisord(self) -> None:
        if self.supervisord.poll() is not None:
            raise CannotStart(f"supervisord ended.\n{self._log_end('supervisord')}")

    def _log_end(self, name: str) -> str:
        path = self.logs / f"{name}.log"
        text = path.read_text(errors="replace") if path.exists() else ""
        return f"The end of {path}:\n" + "\n".join(text.splitlines()[-15:])

    def _last_line(self, name: str) -> str:
        return (self._log_end(name).splitlines() or [""])[-1]


if __name__ == "__main__":
    sys.exit(main())
