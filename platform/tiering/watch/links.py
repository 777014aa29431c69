"""Connections of a hot server: which tenants have too many, or too much in buffers. Mostly pure."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from valkey.exceptions import ConnectionError as ValkeyConnectionError

from storage.hot_servers import PLATFORM_NAME
from storage.hot_users import tenant_of

MIB = 1 << 20
STRANGER_IDLE_S = 10  # a connection that does not log in: nodes do it with their first bytes
STRANGERS = 128  # connections that log in at one time; idle ones together evict others' buffers
STRANGER_COMMANDS = ("NULL", "auth", "hello")
NAME_BYTES = 1024  # of a connection's name and library: nodes give none
UNCOUNTED_BYTES = 16 * MIB  # freed when a tenant's connections end: so much is never by chance
EXCESSIVE = 1.5  # times the share: a tenant above that is not there by mistake


@dataclass(frozen=True)
class Link:
    """One line of CLIENT LIST. `tenant_id` None: the administrator, or not logged in yet."""

    number: int
    tenant_id: int | None
    is_platforms: bool
    idle_s: int
    command: str
    bytes: int
    name_bytes: int = 0  # not among the bytes that Valkey counts for the client

    @classmethod
    def of(cls, line: dict[str, Any]) -> "Link":
        return cls(
            int(line["id"]),
            tenant_of(str(line.get("user", ""))),
            line.get("name") == PLATFORM_NAME,
            int(line["idle"]),
            str(line.get("cmd", "")),
            int(line.get("tot-mem", 0)),
            sum(len(str(line.get(what, ""))) for what in ("name", "lib-name", "lib-ver")),
        )

    @property
    def is_stranger(self) -> bool:
        return self.tenant_id is None and not self.is_platforms


@dataclass(frozen=True)
class Share:
    """Most connections and bytes of buffers that one tenant may have on one server."""

    connections: int
    bytes: int

    @classmethod
    def of(cls, *, connections: int, max_clients: int, max_memory: int) -> "Share":
        """At most a quarter of the connections and, above 64 MiB, a twentieth of the memory."""
        room = max_memory // 20 if max_memory else 1024 * MIB
        return cls(min(connections, max(1, max_clients // 4)), max(64 * MIB, room))


@dataclass
class Verdict:
    """`kill`: numbers of connections to end. The others: reason by tenant."""

    kill: set[int] = field(default_factory=set)
    excessive: dict[int, str] = field(default_factory=dict)
    deliberate: dict[int, str] = field(default_factory=dict)  # cut off at the first sight


def judge(links: Iterable[Link], share: Share) -> Verdict:
    """Ends the newest connections above a share, then the largest until the bytes fit; pure."""
    verdict, strangers = Verdict(), []
    by_tenant: defaultdict[int, list[Link]] = defaultdict(list)
    for link in links:
        if link.tenant_id is not None:
            by_tenant[link.tenant_id].append(link)
        elif link.is_stranger:
            strangers.append(link)
    for tenant_id, own in by_tenant.items():
        over = set(_newest(own, share.connections))
        named = [link for link in own if link.name_bytes > NAME_BYTES]
        if named:
            longest = max(link.name_bytes for link in named)
            verdict.deliberate[tenant_id] = f"a connection with a name of {longest} bytes"
            over |= {link.number for link in named}
        in_buffers = sum(link.bytes for link in own)
        if len(own) > EXCESSIVE * share.connections:
            verdict.excessive[tenant_id] = (
                f"{len(own)} connections, its share is {share.connections}"
            )
        elif in_buffers > EXCESSIVE * share.bytes:
            verdict.excessive[tenant_id] = (
                f"{in_buffers // MIB} MiB in buffers, its share is {share.bytes // MIB} MiB"
            )
        left = sum(link.bytes for link in own if link.number not in over)
        for link in sorted(own, key=lambda link: link.bytes, reverse=True):
            if left <= share.bytes:
                break
            if link.number not in over:
                over.add(link.number)
                left -= link.bytes
        verdict.kill |= over
    verdict.kill.update(
        link.number
        for link in strangers
        if link.idle_s >= STRANGER_IDLE_S and link.command in STRANGER_COMMANDS
    )
    strangers.sort(key=lambda link: link.idle_s)  # those that log in right now stay
    verdict.kill.update(link.number for link in strangers[STRANGERS:])
    return verdict


def clients_of(client: Any) -> list[dict[str, Any]] | None:
    """CLIENT LIST; None: names make the list larger than the server sends.

    Raises valkey's errors.
    """
    with client.client() as one:
        one.execute_command("CLIENT", "NO-EVICT", "ON")
        try:
            return list(one.client_list())
        except ValkeyConnectionError:
            if one.ping():  # it is there, and sends anything else
                return None
            raise


def end_unlisted(client: Any) -> dict[int, str]:
    """Without a list: ends all nodes' connections, tenant by tenant, and measures what that frees.

    Nodes connect again by themselves. Returns a reason for each tenant whose connections freed much
    memory. A transaction keeps other commands out between the two measurements, and memory that the
    server frees in the background counts against nobody.
    """
    users = [name.decode() for name in client.execute_command("ACL", "USERS")]
    why = {}
    for tenant_id in {found for name in users if (found := tenant_of(name)) is not None}:
        pipe = client.pipeline(transaction=True)
        pipe.info("memory")
        for name in users:
            if tenant_of(name) == tenant_id:
                pipe.execute_command("CLIENT", "KILL", "USER", name)
        pipe.info("memory")
        before, *_, after = pipe.execute()
        is_free = all(before[what] == after[what] for what in ("lazyfreed_objects", _PENDING))
        freed = _uncounted(before) - _uncounted(after)
        if freed > UNCOUNTED_BYTES and is_free and not before[_PENDING]:
            why[tenant_id] = f"connections with names of {freed // MIB} MiB"
    return why


_PENDING = "lazyfree_pending_objects"


def _uncounted(memory: dict[str, Any]) -> int:
    return int(memory["used_memory"]) - int(memory.get("mem_clients_normal", 0))


def _newest(links: list[Link], most: int) -> list[int]:
    return sorted(link.number for link in links)[most:]


def kill(client: Any, numbers: Iterable[int]) -> int:
    """Returns how many there were. Raises valkey's errors."""
    pipe = client.pipeline(transaction=False)
    for number in numbers:
        pipe.execute_command("CLIENT", "KILL", "ID", number)
    return sum(int(gone) for gone in pipe.execute())
