"""Runs the tests on a temporary PostgreSQL: `python -m support.on_postgres [pytest's arguments]`.

Uses the Valkey beside this Python, if there is one (9.1, `deploy/get valkey9`); other test runs use
the one on PATH.

The server has a temporary folder and a free loopback port, and ends with the run. If the caller is
root, it runs as `nobody`, since PostgreSQL refuses root.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest

from support.servers import ROOT, Server, free_port

FOLDERS = (
    *("tests/platform_", "tests/cacheapi", "tests/dashboard", "tests/metrics"),
    *("tests/workers", "tests/incidents", "tests/events", "tests/planning"),
)
BOTH = ("tests/tiering", "tests/hot")  # on the Valkey of PATH and SQLite as well
NEVER = (
    "tests/platform_/test_tls.py",  # the wheel's Valkey has no TLS
    "tests/metrics/test_prometheus.py",  # asks what the database does not decide
    "tests/tiering/test_torture.py",  # starts its own platforms and databases
)
TESTED = (*FOLDERS, *BOTH, *(f"--ignore={file}" for file in NEVER), *("-m", "not browser"))
NOBODY = "65534"


def runs_here_only(item: pytest.Item) -> bool:
    """Whether `make test` runs the test on PostgreSQL alone."""
    file = item.nodeid.partition("::")[0]
    both = any(item.get_closest_marker(name) for name in ("browser", "sqlite"))
    return file.startswith(tuple(f"{each}/" for each in FOLDERS)) and file not in NEVER and not both


def binaries() -> Path:
    """Folder of the newest PostgreSQL's programs. Raises SystemExit, which says how to get one."""
    if found := shutil.which("initdb"):
        return Path(found).parent
    newest = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not newest:
        raise SystemExit("No PostgreSQL here. Run: deploy/get postgres")
    return newest[-1].parent


class PostgresServer(Server):
    name = "postgres"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.port = free_port()
        self.url = f"postgres://neve@127.0.0.1:{self.port}/postgres"
        self._as = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
        if os.geteuid() != 0:
            self._as = []

    def initialize(self) -> None:
        """Make an empty cluster in which user `neve` needs no password from loopback."""
        if self._as:
            os.chown(self.folder, int(NOBODY), int(NOBODY))
        data = str(self.folder / "data")
        options = ["-D", data, "-U", "neve", "-A", "trust", "--no-sync", "--encoding=UTF8"]
        command = [*self._as, str(binaries() / "initdb"), *options]
        done = subprocess.run(command, cwd="/", capture_output=True, text=True)
        if done.returncode != 0:
            raise SystemExit(f"initdb failed:\n{done.stdout}{done.stderr}")

    def command(self) -> list[str]:
        options = {
            "port": self.port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": self.folder,
            "fsync": "off",
            "max_connections": 200,
        }
        given = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        return [*self._as, str(binaries() / "postgres"), "-D", str(self.folder / "data"), *given]

    def ready(self) -> bool:
        with suppress(psycopg.OperationalError), psycopg.connect(self.url, connect_timeout=2):
            return True
        return False


def main(arguments: Sequence[str]) -> int:
    with tempfile.TemporaryDirectory(prefix="neve-postgres-") as folder:
        server = PostgresServer(Path(folder))
        server.folder.chmod(0o711)
        server.initialize()
        with server:
            programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
            return subprocess.call(
                [sys.executable, "-m", "support.second_try", *(arguments or TESTED)],
                cwd=ROOT,
                env=os.environ | {"NEVE_TEST_DATABASE_URL": server.url, "PATH": programs},
            )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
