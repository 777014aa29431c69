"""Valkey servers for benchmarks: a single one, or the primaries of a cluster, on loopback.

They start like the platform's hot tier: deploy/valkey-hot with deploy/valkey-hot.conf. Needs only
valkey-py, so it also runs on hosts without the control plane's packages.
"""

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

import valkey
from valkey.crc import key_slot

from deploy.congestion import avoid_bbr, system_default

ROOT = Path(__file__).resolve().parents[1]
SLOTS = 16384


def free_ports(count: int) -> list[int]:
    """Free ports below the range of outgoing connections; the cluster bus port + 10000 fits too."""
    ports = []
    port = 15000 + os.getpid() % 4000
    while len(ports) < count:
        port += 1
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        ports.append(port)
    return ports


def die_with_parent() -> None:
    """For a child between fork and exec: the kernel kills it when its parent thread ends."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def wait_until(ready: Callable[[], bool], what: str, timeout_s: float = 30.0) -> None:
    """Poll `ready`. Raises TimeoutError, which names `what`."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            if ready():
                return
        except (OSError, valkey.ValkeyError):
            pass
        time.sleep(0.02)
    raise TimeoutError(f"{what}: not within {timeout_s:g} s")


def deployed_command() -> list[str]:
    """The platform's start command of its hot Valkey."""
    return [str(ROOT / "deploy/valkey-hot"), str(ROOT / "deploy/valkey-hot.conf")]


class Valkeys:
    """Context manager. `count` > 1: a cluster of `count` primaries without replicas."""

    def __init__(
        self,
        count: int,
        *,
        maxmemory_bytes: int = 0,
        options: dict[str, str] | None = None,
        environment: dict[str, str] | None = None,
        command: list[str] | None = None,
        tune: bool = True,
    ) -> None:
        """`options` override deploy/valkey-hot.conf. `tune`: avoid bbr as `make up` does."""
        self.ports = free_ports(count)
        self.folder = Path(tempfile.mkdtemp(prefix="neve-bench-"))
        self._options = {"maxmemory": str(maxmemory_bytes), **(options or {})}
        self._environment = {**os.environ, **(environment or {})}
        self._command = command or deployed_command()
        self._tune = tune
        self.congestion = {system_default()}
        self.processes: list[subprocess.Popen[bytes]] = []
        self.clients: list[valkey.Valkey] = []

    @property
    def is_cluster(self) -> bool:
        return len(self.ports) > 1

    def __enter__(self) -> Self:
        try:
            for port in self.ports:
                self._start(port)
            self.clients = [
                valkey.Valkey("127.0.0.1", port, socket_timeout=60) for port in self.ports
            ]
            for client in self.clients:
                wait_until(client.ping, "valkey-server")
            if self._tune:
                self.congestion = {avoid_bbr(process.pid) for process in self.processes}
            if self.is_cluster:
                self._join()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for client in self.clients:
            client.close()
        for process in self.processes:
            process.kill()
            process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _start(self, port: int) -> None:
        folder = self.folder / str(port)
        folder.mkdir()
        options = {"port": str(port), "dir": str(folder), **self._options}
        if self.is_cluster:
            options |= {"cluster-enabled": "yes", "cluster-require-full-coverage": "yes"}
        words = [word for name, value in options.items() for word in (f"--{name}", value)]
        with (folder / "log").open("wb") as log:
            self.processes.append(
                subprocess.Popen(
                    [*self._command, *words],
                    preexec_fn=die_with_parent,
                    env=self._environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )

    def _join(self) -> None:
        """Join a cluster with even, contiguous slot ranges, as `valkey-cli --cluster create`."""
        count = len(self.ports)
        for number, client in enumerate(self.clients):
            first, last = SLOTS * number // count, SLOTS * (number + 1) // count - 1
            client.execute_command("CLUSTER ADDSLOTSRANGE", first, last)
            client.execute_command("CLUSTER SET-CONFIG-EPOCH", number + 1)
        for port in self.ports[1:]:
            self.clients[0].execute_command("CLUSTER MEET", "127.0.0.1", port)
        for client in self.clients:
            wait_until(
                lambda client=client: self._knows_all(client), "cluster of all primaries", 60.0
            )

    def _knows_all(self, client: valkey.Valkey) -> bool:
        info = client.execute_command("CLUSTER INFO")
        return info["cluster_state"] == "ok" and int(info["cluster_size"]) == len(self.ports)

    def home(self, key: bytes) -> int:
        """Number of the primary of a key."""
        return next(
            number
            for number in reversed(range(len(self.ports)))
            if key_slot(key) >= SLOTS * number // len(self.ports)
        )

    def each(self, *command: object) -> list[object]:
        return [client.execute_command(*command) for client in self.clients]

    def empty(self, *, cold: bool) -> None:
        """Delete all keys. `cold`: return their memory to the system; else the server keeps it.

        FLUSHALL SYNC ends with a purge of the allocator, FLUSHALL ASYNC does not.
        Source: valkey src/db.c, flushallCommand.
        """
        for client in self.clients:
            client.execute_command("FLUSHALL", "SYNC" if cold else "ASYNC")
        for client in self.clients:
            wait_until(
                lambda client=client: client.info("memory")["lazyfree_pending_objects"] == 0,
                "freeing of all keys",
            )

    def cpu_s(self) -> float:
        """Processor seconds of all servers since their start."""
        return sum(run_s(process.pid) for process in self.processes)

    def version(self) -> str:
        return str(self.clients[0].info("server").get("valkey_version", "?"))


def run_s(pid: int) -> float:
    """Run time of all threads of a process, in s. Source: Linux, scheduler/sched-stats."""
    stats = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(path.read_text().split()[0]) for path in stats) / 1e9


def server_numbers(pid: int) -> dict[str, float]:
    """`cpu_s`, `system_s`, minor `faults` of a process since its start. Source: proc(5), stat."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    tick = os.sysconf("SC_CLK_TCK")
    return {
        "faults": int(fields[7]),
        "cpu_s": (int(fields[11]) + int(fields[12])) / tick,
        "system_s": int(fields[12]) / tick,
    }
