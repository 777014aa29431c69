"""Neve: store, find and move KV-cache blocks. Imports nothing of Django or of an engine.

The names below are the public ones. They are imported when they are first asked for, so that
`import neve` alone costs nothing: neither numpy nor urllib3 is loaded.
"""

TYPE_CHECKING = False  # without typing, which would be most of what this module costs
if TYPE_CHECKING:
    from neve.datapath.client import BlockRef, Client, Match, connect
    from neve.errors import (
        Closed,
        Corrupt,
        DeadlineExceeded,
        MissReason,
        Misuse,
        NeveError,
        Refused,
        Unavailable,
    )
    from neve.formats.space import SpaceIdentity

__all__ = [
    "BlockRef",
    "Client",
    "Closed",
    "Corrupt",
    "DeadlineExceeded",
    "Match",
    "MissReason",
    "Misuse",
    "NeveError",
    "Refused",
    "SpaceIdentity",
    "Unavailable",
    "connect",
]

_FROM_CLIENT = ("BlockRef", "Client", "Match", "connect")


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    if name in _FROM_CLIENT:
        module = "neve.datapath.client"
    else:
        module = "neve.formats.space" if name == "SpaceIdentity" else "neve.errors"
    value: object = getattr(import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
