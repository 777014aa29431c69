"""
Neve's data path: I/O threads that never take the GIL. Use neve.datapath.transport.
"""

from collections.abc import Sequence
from typing import Annotated

import numpy
from numpy.typing import NDArray


def statuses() -> dict[str, int]:
    """Names of the bytes that `Transfer.statuses` gives."""

CHECKSUM_KERNEL: str = 'avx2'

def checksum(data: object) -> int:
    """XXH3-64 of contiguous memory."""

def view(tensor: object, writable: bool) -> Annotated[NDArray[numpy.uint8], dict(shape=(None,))]:
    """The bytes of a contiguous host tensor that speaks DLPack."""

def slot_of(key: bytes) -> int:
    """Hash slot of a key in a Valkey Cluster."""

class TlsError(ValueError):
    pass

class Keyspace:
    """One space's keys in one tenant's buckets. Immutable."""

    def __init__(self, space_id: int, tag: bytes, buckets: Sequence[tuple[bytes, list[bytes]]]) -> None:
        """
        `buckets`: (prefix of block keys, KEYS[1..7] of the functions) of each.
        """

class CompletionQueue:
    """Tells of finished transfers, in bursts."""

    def __init__(self) -> None: ...

    def fileno(self) -> int:
        """Readable while something may be taken."""

    def take(self) -> list[int]:
        """Serials of finished transfers, claimed now."""

    def wait(self, until: float) -> list[int]:
        """The same, once there are any; empty after `until` or `stop`."""

    def stop(self) -> None: ...

    @property
    def stopped(self) -> bool: ...

class Transfer:
    """A batch under way. Holds its buffers until it is done."""

    @property
    def serial(self) -> int: ...

    def done(self) -> bool: ...

    def wait(self, until: float) -> bool:
        """Whether it was done by `until`, a monotonic time."""

    def wait_claim(self, until: float) -> tuple[bool, bool]:
        """
        (done, ours): waits, and claims it then. No queue is told while somebody waits so.
        """

    def claim(self) -> bool:
        """True for the first caller only: who finishes up."""

    def cancel(self) -> None:
        """Ends it soon; `wait` says when its buffers are free."""

    def statuses(self) -> bytes:
        """One byte of `statuses` for each block or command."""

    def reply(self, index: int) -> object:
        """Of a command: bytes are values, str is an error."""

    def notify(self, queue: CompletionQueue) -> None: ...

    @property
    def trouble(self) -> str:
        """The first error that was met, or empty."""

class MatchTransfer(Transfer):
    def rows(self) -> tuple[int, bytes]:
        """
        (status, rows of neve_match): the prefix that was found, and the miss behind it.
        """

class Core:
    """Connections to the servers of one address, and their threads."""

    def __init__(self, seeds: Sequence[str], username: str | None = None, password: str | None = None, tls: dict[str, str] | None = None, *, io_threads: int = 0, lanes: int = 2, window_bytes: int = 4194304, most_bytes: int = 4294967296, connect_timeout_s: float = 1.0, stall_s: float = 2.0) -> None: ...

    def readdress(self, seeds: Sequence[str], username: str | None = None, password: str | None = None, tls: dict[str, str] | None = None) -> None: ...

    def get(self, keys: Keyspace, ids: Sequence[bytes], buffers: Sequence[object], deadline: float, touch: bool = True, headers: object | None = None) -> Transfer: ...

    def put(self, keys: Keyspace, ids: Sequence[bytes], parents: Sequence[bytes], tokens: Sequence[int], buffers: Sequence[object], deadline: float, urgency: int = 1) -> Transfer: ...

    def call(self, commands: Sequence[Sequence[bytes]], keys: Sequence[bytes], deadline: float, idempotent: bool = False) -> Transfer: ...

    def match(self, keys: Keyspace, ids: Sequence[bytes], deadline: float) -> MatchTransfer: ...

    def close(self) -> None: ...

    def counters(self) -> dict[str, int]: ...

    @property
    def breaker(self) -> int:
        """
        0 closed, 1 open, 2 half open: open only when no primary would be asked.
        """

    @property
    def refuses(self) -> bool:
        """Whether every primary's breaker is open now."""
