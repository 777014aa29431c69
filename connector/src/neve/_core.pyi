"""
Neve's data path: I/O threads that never take the GIL. Use neve.datapath.transport.
"""

from collections.abc import Sequence
from typing import Annotated

import numpy
from numpy.typing import NDArray


def statuses() -> dict[str, int]:
    """Names of the bytes that `Batch.statuses` gives."""

def silence_options() -> dict[int, int]:
    """
    Options of TCP with which a connection that died silently fails in seconds.
    """

CHECKSUM_KERNEL: str = 'avx2'

def checksum(data: object) -> int:
    """XXH3-64 of contiguous memory."""

def view(tensor: object, writable: bool) -> Annotated[NDArray[numpy.uint8], dict(shape=(None,))]:
    """The bytes of a contiguous host tensor that speaks DLPack."""

class Scattered:
    """A payload in several runs of memory, in order."""

    def __len__(self) -> int:
        """Bytes."""

    def copy(self) -> bytearray:
        """All bytes, in one run."""

    def fill(self, data: object) -> None:
        """Overwrites all bytes."""

def scatter(memory: Sequence[object], addresses: Sequence[int], sizes: Sequence[int], count: int) -> list[Scattered]:
    """
    Payloads of equally many runs each: (address, size) within one of the writable `memory`,
    which they keep. Raises `ValueError` for a run that lies outside.
    """

def slot_of(key: bytes) -> int:
    """Hash slot of a key in a Valkey Cluster."""

def shuffle_zstd_encode(raw: object, width: int, level: int, out: object) -> int:
    """
    Encodes numbers of `width` bytes, without the GIL. Bytes written to `out`; 0: too many.
    """

def shuffle_zstd_decode(encoded: object, raw: object) -> bool:
    """Fills `raw`, without the GIL. False: the encoded bytes are damaged."""

def quantize(codec: str, number: str, vector: int, plain: object, encoded: object) -> bool:
    """
    Encodes with loss, without the GIL. False: the sizes do not fit each other.
    """

def dequantize(codec: str, number: str, vector: int, encoded: object, plain: object) -> bool:
    """The other way."""

def quantize_int4(part: str, number: str, tokens: int, size: int, plain: object, encoded: object) -> bool:
    """
    Encodes matrices of `tokens` rows of `size` numbers, without the GIL: keys by channel, values by
    token. False: the sizes do not fit each other.
    """

def dequantize_int4(part: str, number: str, tokens: int, size: int, encoded: object, plain: object) -> bool:
    """The other way."""

class TlsError(ValueError):
    pass

FAILURES_TO_OPEN: int = 3

class Breaker:
    """
    Opens after three failures in a row, for 1 s growing to 30 s; then lets one probe through.

    For any thread. Each `allow()` that was True is followed by one of `succeed`, `fail` or
    `forgive`. `now`: a monotonic time, for tests.
    """

    def __init__(self) -> None: ...

    def allow(self, now: float | None = None) -> bool:
        """
        Whether to ask now. The first True after a pause is the probe, and the only one.
        """

    def succeed(self) -> None: ...

    def fail(self, now: float | None = None) -> bool:
        """Whether this failure opened it, after it was closed."""

    def forgive(self) -> None:
        """
        The question ended without saying anything of the server; the next one may probe.
        """

    @property
    def state(self) -> str:
        """closed, open or half_open."""

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

class Batch:
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

class MatchBatch(Batch):
    def rows(self) -> tuple[int, bytes]:
        """
        (status, rows of neve_locate): the prefix that was found, and the miss behind it.
        """

class Core:
    """Connections to the servers of one address, and their threads."""

    def __init__(self, seeds: Sequence[str], username: str | None = None, password: str | None = None, tls: dict[str, str] | None = None, *, io_threads: int = 0, lanes: int = 2, window_bytes: int = 4194304, most_bytes: int = 4294967296, connect_timeout_s: float = 1.0, stall_s: float = 2.0) -> None: ...

    def move_to(self, seeds: Sequence[str], username: str | None = None, password: str | None = None, tls: dict[str, str] | None = None) -> None:
        """
        Uses other servers or credentials for all that is submitted from now on.
        """

    def get(self, keys: Keyspace, ids: Sequence[bytes], buffers: Sequence[object], *, deadline: float, touch: bool = True, headers: object | None = None) -> Batch:
        """
        Loads blocks into writable buffers, each as long as its payload, and verifies them.

        `headers` receives 64 bytes for each block that is OK. Raises `ValueError`.
        """

    def put(self, keys: Keyspace, ids: Sequence[bytes], parents: Sequence[bytes], tokens: Sequence[int], buffers: Sequence[object], *, deadline: float, urgency: int = 1) -> Batch:
        """
        Stores blocks and commits them. `urgency`: 0 as urgent as loads, 2 after all else.
        """

    def submit(self, commands: Sequence[Sequence[bytes]], keys: Sequence[bytes], *, deadline: float, idempotent: bool = False) -> Batch:
        """Commands, each for the primary that has its key."""

    def look_up(self, keys: Keyspace, ids: Sequence[bytes], *, deadline: float) -> MatchBatch:
        """A chain: what is stored of it, up to the first miss."""

    def close(self) -> None: ...

    def counters(self) -> dict[str, int]: ...

    @property
    def breaker(self) -> str:
        """Of all primaries: open only when none of them would be asked."""

    @property
    def refuses(self) -> bool:
        """Whether all breakers are open now. Takes no probe."""

class Stop:
    """Ends a read from another thread. One read at a time may have it."""

    def __init__(self) -> None: ...

    def stop(self) -> None:
        """What is under way ends soon, what would begin does not."""

    @property
    def stopped(self) -> bool: ...

    def pause(self, until: float) -> None:
        """Sleeps, but not beyond `stop`."""

class Answer:
    """What came of a ranged GET."""

    @property
    def failure(self) -> str:
        """
        Empty: the server answered. Else address, unreachable, broken, late, stopped.
        """

    @property
    def trouble(self) -> str:
        """The failure in words."""

    @property
    def status(self) -> int:
        """0: none came."""

    @property
    def fits(self) -> bool:
        """206, and the range that was asked for or its beginning."""

    @property
    def retry_after_s(self) -> int: ...

    @property
    def date(self) -> bytes: ...

    @property
    def error(self) -> bytes:
        """How the body of an answer begins that does not fit; at most 4 KiB."""

    @property
    def blocks(self) -> bytes:
        """OK or CORRUPT of `statuses` for each block, as far as they were read."""

class RangedGets:
    """Ranged GETs over kept connections. For any thread."""

    def __init__(self, ca_file: str = '') -> None:
        """
        `ca_file`: of who signs the servers' certificates; empty: the host's authorities.
        """

    def get(self, url: str, first: int, last: int, blocks: Sequence[tuple[int, bytes, object, object, int, int]], *, deadline: float, stop: Stop) -> Answer:
        """
        Reads the bytes `first` … `last`, without the GIL. `blocks`, in order: offset, id,
        writable memory for header (64 bytes) and payload, codec, and bytes of the encoded
        payload, which is then decoded; 0: `payload` gets it as it stands. Raises
        `ValueError`.
        """

    @property
    def kept(self) -> int:
        """Connections that nobody uses now."""

    def close(self) -> None:
        """Ends connections that nobody uses; the others end after their use."""

class LocalRead:
    """Blocks to read out of files of the local tier, once."""

    def __init__(self, tag: bytes, blocks: Sequence[tuple[str, bytes, object]]) -> None:
        """
        `tag`: of the space. `blocks`: path, id and writable memory of the payload of each.
        """

    def run(self, deadline: float) -> bool:
        """
        Reads and verifies block after block, without the GIL, until `deadline` or `end`.

        Threads that call it share the blocks. True for the one that ended the last block.
        """

    def end(self) -> None:
        """
        `run` writes to no payload any more, even if it hangs in a read of a file.
        """

    def statuses(self) -> bytes:
        """
        OK, EVICTED, CORRUPT, UNAVAILABLE or TIMEOUT of `statuses` for each block.
        """

    @property
    def moved_bytes(self) -> int:
        """Bytes read so far."""

    @property
    def trouble(self) -> str:
        """The first failure in words, or empty."""
