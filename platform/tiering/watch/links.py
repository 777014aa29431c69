"""Clients of a hot server: who has too many connections or too much in buffers. Mostly pure."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from valkey.exceptions import ConnectionError as ValkeyConnectionError

from storage.hot_servers import PLATFORM_NAME
from storage.hot_users import tenant_of

MIB = 1 << 20
STRANGER_IDLE_S = 10  # a connection that does not log in: nodes do it with their first bytes
STRANGERS = 128  # that log in at the same time; idle ones together push others out of the memory
STRANGER_COMMANDS = ("NULL", "auth", "hello")
NAME_BYTES = 1024  # of a connection's name and library: nodes give none
UNCOUNTED_BYTES = 16 * MIB  # that the end of a tenant's connections gave back: never by chance
EXCESSIVE = 1.5  # so far above its limit a tenant is not by mistake


@dataclass(frozen=True)
class Link:
    """One line of CLIENT LIST. `tenant_id` None: the administrator, or nobody yet."""

    number: int
    tenant_id: int | None
    is_platforms: bool
    idle_s: int
    command: str
    bytes: int
    name_bytes: int = 0  # Valkey counts them as nobody's

    @classmethod
    def of(cls, told: dict[str, Any]) -> "Link":
        return cls(
            int(told["id"]),
            tenant_of(str(told.get("user", ""))),
            told.get("name") == PLATFORM_NAME,
            int(told["idle"]),
            str(told.get("cmd", "")),
            int(told.get("tot-mem", 0)),
            sum(len(str(told.get(what, ""))) for what in ("name", "lib-name", "lib-ver")),
        )

    @property
    def is_stranger(self) -> bool:
        return self.tenant_id is None and not self.is_platforms


@dataclass(frozen=True)
class Share:
    """What one tenant may have of one server."""

    connections: int
    bytes: int

    @classmethod
    def of(cls, *, connections: int, max_clients: int, max_memory: int) -> "Share":
        """Never more than a quarter of the connections, or a twentieth of the memory."""
        room = max_memory // 20 if max_memory else 1024 * MIB
        return cls(min(connections, max(1, max_clients // 4)), max(64 * MIB, room))


@dataclass
class Verdict:
    """`kill`: numbers of connections. `excessive`, `deliberate`: why, by tenant."""

    kill: set[int] = field(default_factory=set)
    excessive: dict[int, str] = field(default_factory=dict)
    deliberate: dict[int, str] = field(default_factory=dict)  # once is enough


def judge(links: Iterable[Link], share: Share) -> Verdict:
    """The newest connections above a share go, then the largest until the others' bytes fit."""
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
        held = sum(link.bytes for link in own)
        if len(own) > EXCESSIVE * share.connections:
            verdict.excessive[tenant_id] = (
                f"{len(own)} connections, its share is {share.connections}"
            )
        elif held > EXCESSIVE * share.bytes:
            verdict.excessive[tenant_id] = (
                f"{held // MIB} MiB in buffers, its share is {share.bytes // MIB} MiB"
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
    strangers.sort(key=lambda link: link.idle_s)  # those that log in right now come first
    verdict.kill.update(link.number for link in strangers[STRANGERS:])
    return verdict


def told(client: Any) -> list[dict[str, Any]] | None:
    """All clients; None: their names make a list that the server sends nobody."""
    with client.client() as one:
        one.execute_command("CLIENT", "NO-EVICT", "ON")
        try:
            return list(one.client_list())
        except ValkeyConnectionError:
            if one.ping():  # it is there, and sends anything else
                return None
            raise


def end_unlisted(client: Any) -> dict[int, str]:
    """For want of a list: ends all nodes' connections, tenant by tenant, and looks who held much.

    Nodes connect again. Returns why, by tenant. Nobody else's commands come between the two looks
    at the memory, and what the server frees in the background makes nobody guilty.
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
        held = _uncounted(before) - _uncounted(after)
        if held > UNCOUNTED_BYTES and is_free and not before[_PENDING]:
            why[tenant_id] = f"connections with names of {held // MIB} MiB"
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
