"""The servers behind NEVE_HOT_URL: one Valkey, or the nodes of a Valkey Cluster.

Commands with keys go through `admin`, which finds the primary of their slot. State of one server,
such as ACL users, functions and memory, is read and written server by server.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, TypeVar
from urllib.parse import urlsplit

from django.conf import settings
from valkey import Valkey
from valkey.cluster import ClusterNode, ValkeyCluster
from valkey.connection import parse_url
from valkey.exceptions import ConnectionError as ValkeyConnectionError
from valkey.exceptions import TimeoutError as ValkeyTimeoutError
from valkey.exceptions import ValkeyClusterException

from base import log_events
from base.once import once
from neve import _core
from storage.addresses import each_url

Answer = TypeVar("Answer")
# The name of the platform's own connections: clients can set none before AUTH (tiering.watch).
PLATFORM_NAME = "neve-platform"
_KINDS = {"master", "fail", "slotless"}
_AWAY = (ValkeyConnectionError, ValkeyTimeoutError)


class Cluster(ValkeyCluster):
    """Raises ValkeyError only; finds the slot of a function's keys without asking a server."""

    def determine_slot(self, *args: Any) -> int:
        if args[0] in ("FCALL", "FCALL_RO") and int(args[2]) > 0:
            return int(self.keyslot(args[3]))  # type: ignore[no-untyped-call]  # valkey's
        return int(super().determine_slot(*args))  # type: ignore[no-untyped-call]  # valkey's

    def execute_command(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().execute_command(*args, **kwargs)  # type: ignore[no-untyped-call]  # valkey's
        except ValkeyClusterException as error:
            raise ValkeyConnectionError(str(error)) from error


@dataclass(frozen=True)
class Memory:
    """Of all primaries. `max_bytes` 0: no limit."""

    used_bytes: int
    max_bytes: int


def admin() -> Any:
    """The administrator's client, shared by all threads. Raises valkey's errors, within 5 s."""
    return _connect(settings.ENV.hot_url, settings.ENV.hot_tls)


@once
def _connect(url: str, tls: bool) -> Any:
    """Asks the first server that answers whether it is part of a cluster."""
    trouble: Exception | None = None
    for one in (urls := each_url(url)):
        client: Any = Valkey.from_url(
            one, **_options(tls)
        )  # its answers are typed as awaitable too
        try:
            if not client.info("cluster")["cluster_enabled"]:
                return client
        except _AWAY as error:
            trouble = error
            continue
        seeds = [parse_url(each) for each in urls]
        nodes = [ClusterNode(seed["host"], seed.get("port", 6379)) for seed in seeds]
        try:
            return Cluster(startup_nodes=nodes, url=one, **_options(tls))
        except ValkeyClusterException as error:
            raise ValkeyConnectionError(str(error)) from error
    assert trouble is not None
    raise trouble


def is_cluster() -> bool:
    return isinstance(admin(), Cluster)


def servers(*, failed: bool = False) -> list[Any]:
    """A client of each server, replicas too, as the cluster is now.

    `failed`: also of those that the cluster reports as failed.
    """
    return [client for client, flags in _nodes() if failed or "fail" not in flags]


def primaries() -> list[Any]:
    """A client of each living primary that has slots, in a stable order, as the cluster is now."""
    return [client for client, flags in _nodes() if flags & _KINDS == {"master"}]


def _nodes() -> list[tuple[Any, set[str]]]:
    """Clients and flags of all nodes. CLUSTER SLOTS would leave out replicas that have no data."""
    client = admin()
    if not isinstance(client, Cluster):
        return [(client, {"master"})]
    nodes_by_address = client.execute_command("CLUSTER NODES", target_nodes=Cluster.RANDOM)
    nodes = []
    for address, node in sorted(nodes_by_address.items()):
        flags = {*node["flags"].split(","), *([] if node["slots"] else ["slotless"])}
        if not flags & {"noaddr", "handshake"}:
            env, (host, _, port) = settings.ENV, address.rpartition(":")
            nodes.append((_client_of(env.hot_url, env.hot_tls, host, int(port)), flags))
    return nodes


@once
def _client_of(url: str, tls: bool, host: str, port: int) -> Valkey:
    """Of one node of a cluster, with the login that `url` has."""
    parts = urlsplit(each_url(url)[0])
    login, at, _ = parts.netloc.rpartition("@")
    name = f"[{host}]" if ":" in host else host
    where = parts._replace(netloc=f"{login}{at}{name}:{port}").geturl()
    return Valkey.from_url(where, **_options(tls))


def _options(tls: bool) -> dict[str, Any]:
    # valkey-py checks by itself who signed a certificate, but not whose it is.
    checks = {"ssl_check_hostname": True} if tls else {}
    return {
        "socket_connect_timeout": 2,
        "socket_timeout": 5,
        "socket_keepalive": True,
        "socket_keepalive_options": _core.silence_options(),
        "client_name": PLATFORM_NAME,
        **checks,
    }


def on_each(clients: Sequence[Any], act: Callable[[Any], Answer]) -> list[Answer]:
    """The answers of those that could be reached. Raises valkey's errors when none could."""
    answers, trouble = [], []
    for client in clients:
        try:
            answers.append(act(client))
        except _AWAY as error:
            trouble.append(error)
            if len(clients) > 1:
                log_events.HOT_SERVER_AWAY.log(error=error)
    if not answers:
        raise trouble[0]
    return answers


def memory() -> Memory:
    return memory_of([client.info("memory") for client in primaries()])


def memory_of(infos: list[dict[str, Any]]) -> Memory:
    """`infos`: what INFO of each primary says."""
    limits = [int(each["maxmemory"]) for each in infos]
    return Memory(
        sum(int(each["used_memory"]) for each in infos), sum(limits) if all(limits) else 0
    )


def run_id() -> bytes:
    """Changes with each start of a primary and each failover."""
    runs = sorted(str(client.info("server")["run_id"]) for client in primaries())
    if len(runs) > 1:
        return blake2b("".join(runs).encode(), digest_size=20).hexdigest().encode()
    return runs[0].encode()
