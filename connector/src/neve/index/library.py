"""The function library of the hot tier: its source, loading it, and what its calls cost.

The parts in `functions/` make one Lua chunk. docs/formats/hot-tier.md lists the functions.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Protocol

from neve.formats.keys import BucketKeys, books_name

LIBRARY = "neve"


class AdminClient(Protocol):
    """The part of valkey-py's client that loading the library needs."""

    def execute_command(self, *args: Any) -> Any: ...


def functions_source() -> str:
    """The Lua source, with the name of the books in it (`neve.formats.keys.hide_books`)."""
    parts = files("neve.index").joinpath("functions")
    names = parts.joinpath("order.txt").read_text().split()
    source = "".join(parts.joinpath(f"{name}.lua").read_text() for name in names)
    source = source.replace('local BOOKS = ""', f'local BOOKS = "{books_name().decode()}"', 1)
    return f"#!lua name={LIBRARY}\n{source}"


def load_functions(client: AdminClient) -> None:
    """Loads the library unless it is there already. On a cluster call it for each primary.

    A full server refuses to load, so nothing is loaded without need.
    """
    source = functions_source()
    loaded = client.execute_command("FUNCTION", "LIST", "LIBRARYNAME", LIBRARY, "WITHCODE")
    if source.encode() not in _strings(loaded):
        client.execute_command("FUNCTION", "LOAD", "REPLACE", source)


def call(name: str, keys: BucketKeys, *args: Any, blocks: tuple[bytes, ...] = ()) -> list[Any]:
    """The command that calls a function: `blocks` are keys of blocks, `args` its ARGV."""
    every = (*keys.arguments, *blocks)
    return ["FCALL", f"neve_{name}", len(every), *every, *args]


@dataclass(frozen=True)
class Taken:
    """What a tenant's calls took of one primary since it loaded the library.

    `abused_calls`: with more values than any client sends by mistake. `spent_s`: of its time,
    a rough sum.
    """

    abused_calls: int = 0
    spent_s: float = 0.0


def taken(client: AdminClient) -> dict[int, Taken]:
    """By tenant. Raises valkey's errors: ResponseError where the library is not loaded."""
    values = [int(value) for value in client.execute_command("FCALL", "neve_taken", 0)]
    rows = zip(values[::3], values[1::3], values[2::3], strict=True)
    return {tenant: Taken(calls, us / 1e6) for tenant, calls, us in rows}


def _strings(reply: Any) -> Iterator[bytes]:
    """The strings anywhere in a reply: RESP2 and RESP3 shape FUNCTION LIST differently."""
    if isinstance(reply, Mapping):
        reply = list(reply.values())
    if isinstance(reply, list):
        for item in reply:
            yield from _strings(item)
    else:
        yield reply if isinstance(reply, bytes) else str(reply).encode()
