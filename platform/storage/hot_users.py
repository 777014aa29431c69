"""Valkey users of nodes: one for each node key, with the rights of a node and no more."""

import hashlib
import hmac
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from django.conf import settings

from neve.formats.ids import ID_BYTES
from neve.formats.keys import BucketKeys, books_name
from storage.hot_servers import on_each, servers

# A node's own commands, and those that the functions run in its name. Each costs the server as
# little as one key does: no command here takes many keys of blocks.
# A connection's name is memory that nobody counts; HELLO takes a name all the same (tiering.watch).
NODE_COMMANDS = ("ping", "hello", "auth", "time")
BLOCK_COMMANDS = ("get", "set", "strlen", "persist", "pexpire")
BOOK_COMMANDS = (
    *("hget", "hmget", "hset", "hdel", "hincrby", "hgetall"),
    *("zadd", "zincrby", "zrem", "zrange", "zscore", "zmscore", "zcard", "zcount", "zpopmin"),
)
# Pins, lifetimes, flushes and restoring are the platform's: a node asks for them over HTTP.
# `match`: for nodes of release 0.2.0.
NODE_FUNCTIONS = ("locate", "match", "commit", "touch", "promote", "forget", "usage")

_NAME = re.compile(r"t(\d+)(\.k\d+)?")  # without a key: as earlier releases made them


@dataclass(frozen=True)
class HotUser:
    """The user of one node key. `generation` changes the password without a change of the key."""

    tenant_id: int
    key_id: int
    generation: int

    @property
    def name(self) -> str:
        return f"t{self.tenant_id}.k{self.key_id}"

    @property
    def password(self) -> str:
        """Derived, not stored: any web process can make the user again."""
        words = f"valkey:{self.tenant_id}:{self.key_id}:{self.generation}"
        pepper = settings.ENV.key_pepper.encode()
        return hmac.new(pepper, words.encode(), hashlib.sha256).hexdigest()

    @property
    def login(self) -> dict[str, str]:
        return {"username": self.name, "password": self.password}

    def rules(self) -> list[str]:
        """Rights of a node: read and write single blocks, and call NODE_FUNCTIONS.

        Functions run with the rights of their caller, so it has the right to write its tenant's
        books too, but does not know their names (`neve.formats.keys.hide_books`). `:q` can be read,
        never written. Calling a function counts as writing all its KEYS; so the call itself, and
        only the call, is granted on all the tenant's keys by a selector of its own.

        Blocks' keys have exactly the lengths that `neve.formats.keys` makes: names take memory too,
        and the platform reads them all. `:me` tells functions whose call without KEYS it is.

        Valkey cannot demand that a SET expires or that somebody commits it: `tiering.watch` finds
        bytes that are in no books. Damage in the books is mended (`storage.hot.execute`).
        """
        calls = (f"+fcall|neve_{name}" for name in NODE_FUNCTIONS)
        own, books = f"{{t{self.tenant_id}.*}}", books_name().decode()
        blocks = " ".join(f"~{pattern}" for pattern in _block_patterns(self.tenant_id))
        calls_on = " ".join(f"~{tag}:?" for tag in _tag_patterns(self.tenant_id))
        return [
            "reset",
            "on",
            f">{self.password}",
            *(f"+{command}" for command in NODE_COMMANDS),
            f"({blocks} {_grant(BLOCK_COMMANDS)})",
            f"(~{own}:{books}[ilduxepsrc] %R~{own}:{books}q {_grant(BOOK_COMMANDS)})",
            f"({calls_on} {blocks} {' '.join(calls)})",
            f"(~{{t{self.tenant_id}.}}:me +strlen)",
        ]


def tenant_of(name: str) -> int | None:
    """The tenant whose node has this user; None: a user of no node."""
    found = _NAME.fullmatch(name)
    return int(found[1]) if found else None


def set_user(user: HotUser) -> None:
    """On every server. Connections that the user has stay. Raises valkey's errors.

    On replicas too: one that becomes a primary knows its users.
    """
    on_each(servers(), lambda client: set_user_on(client, user))


def set_user_on(client: Any, user: HotUser) -> None:
    client.execute_command("ACL", "SETUSER", user.name, *user.rules())


def remove_users(names: Iterable[str]) -> int:
    """Valkey ends the connections of these users at once. Returns how many there were."""
    if not (names := list(names)):
        return 0
    command = ("ACL", "DELUSER", *names)
    everywhere = servers(failed=True)  # such a server may still serve those that reach it
    return max(on_each(everywhere, lambda client: int(client.execute_command(*command))))


def remove_users_of(tenant_id: int) -> None:
    """All users of the tenant's nodes. Raises valkey's errors."""
    names = set().union(*(names for _, names in users_by_server()))
    remove_users(name for name in names if tenant_of(name) == tenant_id)


def users_by_server() -> list[tuple[Any, set[str]]]:
    """A client of each server and the names of nodes' users there. Raises valkey's errors."""
    return on_each(servers(), lambda client: (client, _users_of(client)))


def _users_of(client: Any) -> set[str]:
    raw = client.execute_command("ACL", "USERS")
    names = (name.decode() if isinstance(name, bytes) else str(name) for name in raw)
    return {name for name in names if _NAME.fullmatch(name)}


def _tag_patterns(tenant_id: int) -> list[str]:
    """Of the tags of a tenant's buckets: as many as they have lengths, at most a handful."""
    tags = [BucketKeys(tenant_id, n).tag.decode() for n in range(settings.ENV.hot_buckets)]
    if len(tags) == 1:
        return tags
    own = f"{{t{tenant_id}."
    shapes = (tag.removeprefix(own)[:-1].split(".") for tag in tags)
    return sorted({f"{own}{'?' * len(a)}.{'?' * len(b)}}}" for a, b in shapes})


def _block_patterns(tenant_id: int) -> list[str]:
    """For each length that a space's number may have: an entry of the index gives it 32 bits."""
    digits = range(1, len(str(1 << 32)) + 1)
    tags = _tag_patterns(tenant_id)
    return [f"{tag}:b:{'?' * n}:{'?' * ID_BYTES}" for n in digits for tag in tags]


def _grant(commands: Iterable[str]) -> str:
    return " ".join(f"+{command}" for command in commands)
