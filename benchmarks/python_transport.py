"""The Python transport that the native core replaced, kept for comparison.

`SocketTransport` pools plain sockets, without block ids, miss reasons or statistics.

Rules. Payload bytes are never joined or copied in Python: `sendmsg` gathers from the caller's
memory, `recvmsg_into` scatters into it. Every wait ends at the deadline, or after `stall_s` without
progress. A connection is dropped after any error, never read again.
"""

import os
import socket
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from neve.errors import Closed, DeadlineExceeded, NeveError, Unavailable

# Requested bytes that are not read yet, per connection. Bounds Valkey's output buffer, which has a
# copy of each waiting reply; 4 blocks keep the link busy while one is verified.
WINDOW_BYTES: Final = 8 << 20
# Commands sent and not yet answered. So many small replies fit in the socket buffers, so sending
# without reading cannot deadlock.
WINDOW_COMMANDS: Final = 512
MAX_BULK_BYTES: Final = 80 << 20  # above neve.formats.block.MAX_PAYLOAD_BYTES and any index reply
MAX_ITEMS: Final = 1 << 20
MAX_DEPTH: Final = 8
_BUFFER_BYTES: Final = 16 << 10
_LOOK_AHEAD_BYTES: Final = 256  # room for a reply's end and the next one's first line
_CHUNK_PARTS: Final = 512  # below IOV_MAX, 1024 on Linux


class ReplyError(NeveError):
    """The server answered with an error. `code` is its first word, e.g. `NOPERM`."""

    @property
    def code(self) -> str:
        return str(self).partition(" ")[0]


class WrongLength(NeveError):
    """A value of another length than its buffers; nothing was written into them."""


@dataclass(frozen=True, slots=True)
class Call:
    """Any command with a small reply. Its result is the parsed reply."""

    args: Sequence[bytes | str | int | float]


@dataclass(frozen=True, slots=True)
class Get:
    """GET of a value that is exactly `header` and `payload` long, written into them.

    Its result is the length in bytes, None (no such key) or `WrongLength`.
    """

    key: bytes
    header: memoryview
    payload: memoryview


@dataclass(frozen=True, slots=True)
class Put:
    """SET key header‖payload NX PX `lifetime_ms`. Its result is b"OK", or None: the key exists."""

    key: bytes
    header: bytes
    payload: memoryview
    lifetime_ms: int = 60_000


Operation = Call | Get | Put


@dataclass(frozen=True)
class ValkeyAddress:
    """Servers and credentials of a tenant. `seeds`: "host:port" or "unix:/path"."""

    seeds: tuple[str, ...]
    tls: bool = False
    username: str | None = None
    password: str | None = None

    def __repr__(self) -> str:
        return f"ValkeyAddress(seeds={self.seeds}, username={self.username!r})"


class SocketTransport:
    """A pool of plain sockets: one connection per concurrent pipeline."""

    def __init__(
        self,
        address: ValkeyAddress,
        *,
        connect_timeout_s: float = 1.0,
        stall_s: float = 2.0,
        idle: int = 8,
    ) -> None:
        self._address = address
        self._connect_timeout_s = connect_timeout_s
        self._stall_s = stall_s
        self._max_idle = idle
        self._idle: list[_Connection] = []
        self._lock = threading.Lock()
        self._closed = False

    def run(self, operations: Sequence[Operation], *, deadline: float) -> list[object]:
        """Run a pipeline in order on one connection; blocks until its end.

        `deadline`: a `time.monotonic()` value. Returns one result per operation, or the error that
        prevented it; never raises these errors.
        """
        results: list[object] = []
        connection: _Connection | None = None
        try:
            connection = self._take(deadline)
            results.extend(connection.pipeline(operations, deadline))  # keeps earlier results
        except ReplyError as error:  # AUTH was refused: nothing was sent
            return [error] * len(operations)
        except (TimeoutError, DeadlineExceeded) as error:
            return self._fail(connection, results, operations, DeadlineExceeded(str(error)))
        except (OSError, NeveError) as error:
            kind = Closed if isinstance(error, Closed) else Unavailable
            return self._fail(connection, results, operations, kind(f"valkey: {error}"))
        except BaseException:
            self._fail(connection, results, operations, Unavailable("interrupted"))
            raise
        self._give_back(connection)
        return results

    def readdress(self, address: ValkeyAddress) -> None:
        with self._lock:
            self._address = address
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _take(self, deadline: float) -> "_Connection":
        while True:
            with self._lock:
                if self._closed:
                    raise Closed("transport is closed")
                address = self._address
                connection = self._idle.pop() if self._idle else None
            if connection is None:
                return _Connection(
                    address,
                    min(deadline, time.monotonic() + self._connect_timeout_s),
                    self._stall_s,
                )
            if connection.is_alive():
                return connection
            connection.close()

    def _give_back(self, connection: "_Connection") -> None:
        with self._lock:
            keep = (
                not self._closed
                and connection.address == self._address
                and len(self._idle) < self._max_idle
            )
            if keep:
                self._idle.append(connection)
        if not keep:
            connection.close()

    @staticmethod
    def _fail(
        connection: "_Connection | None",
        results: list[object],
        operations: Sequence[Operation],
        error: NeveError,
    ) -> list[object]:
        if connection is not None:
            connection.close()
        return results + [error] * (len(operations) - len(results))


class _Connection:
    """One authenticated socket. Used by one thread at a time."""

    def __init__(self, address: ValkeyAddress, deadline: float, stall_s: float) -> None:
        self.address = address
        self._stall_s = stall_s
        self._buffer = memoryview(bytearray(_BUFFER_BYTES))
        self._start = self._end = 0  # unused received bytes of `_buffer`
        self._sock = _connect(address, deadline)
        try:
            if address.password is not None:
                who = [address.username] if address.username else []
                (answer,) = self.pipeline([Call(["AUTH", *who, address.password])], deadline)
                if isinstance(answer, ReplyError):
                    raise answer
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._sock.close()

    def is_alive(self) -> bool:
        """False if the server closed the idle connection, or sent unrequested bytes."""
        self._sock.settimeout(0)
        try:
            self._sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return self._start == self._end
        except OSError:
            return False
        return False

    def pipeline(self, operations: Sequence[Operation], deadline: float) -> Iterable[object]:
        """Yields one result per operation. Keeps the window full but never overfull."""
        sent = asked_bytes = 0
        for i, operation in enumerate(operations):
            parts: list[bytes | memoryview] = []
            while sent < len(operations) and sent - i < WINDOW_COMMANDS:
                reply_bytes = _reply_bytes(operations[sent])
                if sent > i and asked_bytes + reply_bytes > WINDOW_BYTES:
                    break
                parts += _encode(operations[sent])
                asked_bytes += reply_bytes
                sent += 1
            self._send(parts, deadline)
            if isinstance(operation, Get):
                yield self._read_value_into(operation, deadline)
            else:
                yield self._read_reply(deadline)
            asked_bytes -= _reply_bytes(operation)

    def _wait(self, deadline: float) -> None:
        left = deadline - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded("valkey did not answer in time")
        self._sock.settimeout(min(left, self._stall_s))

    def _send(self, parts: list[bytes | memoryview], deadline: float) -> None:
        first = 0
        while first < len(parts):
            self._wait(deadline)
            sent = self._sock.sendmsg(parts[first : first + _CHUNK_PARTS])
            while first < len(parts) and sent >= len(parts[first]):
                sent -= len(parts[first])
                first += 1
            if sent:
                parts[first] = memoryview(parts[first])[sent:]

    def _receive(self, buffers: list[memoryview], deadline: float) -> int:
        self._wait(deadline)
        count = self._sock.recvmsg_into(buffers)[0]
        if count == 0:
            raise Unavailable("connection closed by the server")
        return count

    def _fill(self, deadline: float) -> None:
        """Receives at least one more byte into the buffer. Raises `Unavailable` when it is full."""
        if self._start:
            left = self._end - self._start
            self._buffer[:left] = bytes(self._buffer[self._start : self._end])
            self._start, self._end = 0, left
        if self._end == _BUFFER_BYTES:
            raise Unavailable("protocol: line too long")
        self._end += self._receive([self._buffer[self._end :]], deadline)

    def _read_line(self, deadline: float) -> bytes:
        while True:
            raw = bytes(self._buffer[self._start : self._end])
            at = raw.find(b"\r\n")
            if at > 0:
                self._start += at + 2
                return raw[:at]
            if at == 0:
                raise Unavailable("protocol: empty line")
            self._fill(deadline)

    def _read_exactly(self, views: list[memoryview], deadline: float) -> None:
        """Fill `views`; bytes behind the last view go to the buffer."""
        left = [view for view in views if len(view)]
        while left and self._start < self._end:
            count = min(len(left[0]), self._end - self._start)
            left[0][:count] = self._buffer[self._start : self._start + count]
            self._start += count
            left = [left[0][count:], *left[1:]] if count < len(left[0]) else left[1:]
        while left:
            self._start = self._end = 0
            count = self._receive([*left, self._buffer[:_LOOK_AHEAD_BYTES]], deadline)
            while left and count >= len(left[0]):
                count -= len(left[0])
                left = left[1:]
            if left:
                left = [left[0][count:], *left[1:]]
            else:
                self._end = count

    def _read_end(self, deadline: float) -> None:
        while self._end - self._start < 2:
            self._fill(deadline)
        if bytes(self._buffer[self._start : self._start + 2]) != b"\r\n":
            raise Unavailable("protocol: a value does not end where it should")
        self._start += 2

    def _read_value_into(self, get: Get, deadline: float) -> object:
        line = self._read_line(deadline)
        if line[:1] != b"$" or line == b"$-1":
            return self._parse(line, deadline, 0)
        size = _bounded(line, MAX_BULK_BYTES)
        if size != len(get.header) + len(get.payload):
            self._read_bulk(size, deadline)
            return WrongLength(f"value of {size} bytes where {len(get.payload)} + header belong")
        self._read_exactly([get.header, get.payload], deadline)
        self._read_end(deadline)
        return size

    def _read_bulk(self, size: int, deadline: float) -> bytes:
        data = bytearray(size)
        self._read_exactly([memoryview(data)], deadline)
        self._read_end(deadline)
        return bytes(data)

    def _read_reply(self, deadline: float, depth: int = 0) -> object:
        return self._parse(self._read_line(deadline), deadline, depth)

    def _parse(self, line: bytes, deadline: float, depth: int) -> object:
        """Parse RESP2, and those RESP3 types that may answer our commands."""
        kind, rest = line[:1], line[1:]
        if kind == b"+":
            return rest
        if kind == b"-":
            return ReplyError(rest.decode(errors="replace"))
        if kind == b":":
            return _integer(rest)
        if kind == b"#":
            return rest == b"t"
        if kind == b",":
            return rest
        if kind == b"_" or rest == b"-1":
            return None
        if kind == b"$":
            return self._read_bulk(_bounded(line, MAX_BULK_BYTES), deadline)
        if kind in b"*~%" and depth < MAX_DEPTH:
            count = _bounded(line, MAX_ITEMS) * (2 if kind == b"%" else 1)
            return [self._read_reply(deadline, depth + 1) for _ in range(count)]
        raise Unavailable(f"protocol: unexpected {line[:32]!r}")


def _integer(text: bytes) -> int:
    try:
        return int(text)
    except ValueError:
        raise Unavailable(f"protocol: {text[:32]!r} is no integer") from None


def _bounded(line: bytes, most: int) -> int:
    value = _integer(line[1:])
    if not 0 <= value <= most:
        raise Unavailable(f"protocol: length {value} is out of bounds")
    return value


def _reply_bytes(operation: Operation) -> int:
    return len(operation.header) + len(operation.payload) if isinstance(operation, Get) else 0


def _command(args: Sequence[bytes | str | int | float], *, more: int = 0) -> bytes:
    """The RESP form of `args`, announcing `more` arguments that follow."""
    parts = [b"*%d\r\n" % (len(args) + more)]
    for arg in args:
        raw = arg if isinstance(arg, bytes) else str(arg).encode()
        parts.append(b"$%d\r\n%b\r\n" % (len(raw), raw))
    return b"".join(parts)


def _encode(operation: Operation) -> list[bytes | memoryview]:
    if isinstance(operation, Call):
        return [_command(operation.args)]
    if isinstance(operation, Get):
        return [_command([b"GET", operation.key])]
    size = len(operation.header) + len(operation.payload)
    start = _command([b"SET", operation.key], more=4) + b"$%d\r\n" % size + operation.header
    lifetime = b"%d" % operation.lifetime_ms
    end = b"\r\n$2\r\nNX\r\n$2\r\nPX\r\n$%d\r\n%b\r\n" % (len(lifetime), lifetime)
    return [start, operation.payload, end]


def _connect(address: ValkeyAddress, deadline: float) -> socket.socket:
    if address.tls:
        raise Unavailable("TLS to Valkey needs the native transport")
    trouble: Exception = Unavailable("no Valkey address is known")
    for seed in address.seeds:
        left = deadline - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded("no time left to connect")
        try:
            if seed.startswith("unix:"):
                sock = socket.socket(socket.AF_UNIX)
                sock.settimeout(left)
                sock.connect(seed.removeprefix("unix:"))
                return sock
            host, _, port = seed.rpartition(":")
            sock = socket.create_connection((host.strip("[]"), int(port)), timeout=left)
        except OSError as error:
            trouble = error
            continue
        except ValueError as error:
            trouble = Unavailable(f"seed {seed!r} is no host:port: {error}")
            continue
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _avoid_bbr(sock)
        return sock
    raise trouble


def _avoid_bbr(sock: socket.socket) -> None:
    """Avoid bbr, the default of some hosts: a loopback or LAN stream falls to a tenth."""
    name = getattr(socket, "TCP_CONGESTION", None)  # Linux only
    if name is None or os.environ.get("NEVE_KEEP_CONGESTION_CONTROL"):
        return
    for kind in (b"cubic", b"reno"):  # an unprivileged process may set only the allowed ones
        try:
            sock.setsockopt(socket.IPPROTO_TCP, name, kind)
        except OSError:
            continue
        return
