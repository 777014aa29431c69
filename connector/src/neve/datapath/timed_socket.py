"""Sockets whose every wait ends by a deadline, and can be ended from another thread."""

import io
import random
import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

from neve.errors import DeadlineExceeded, Unavailable

# Read ahead of what was asked for, and thus copied: little, since payloads follow.
_AHEAD_BYTES: Final = 1024
_NAME_LIFE_S: Final = 30.0
# How long silence is borne (`notice_silence`); for other sockets of ours too.
SILENCE: Final = tuple(
    (getattr(socket, name), value)
    for name, value in (
        ("TCP_KEEPIDLE", 15),
        ("TCP_KEEPINTVL", 2),
        ("TCP_KEEPCNT", 3),
        ("TCP_USER_TIMEOUT", 1500),
    )
    if hasattr(socket, name)
)

Addresses = list[tuple[int, tuple[Any, ...]]]  # family, what socket.connect takes


class Stop:
    """Ends reads from another thread: what waits for bytes fails, what would begin does not."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._sockets: set[TimedSocket] = set()

    def stop(self) -> None:
        with self._lock:
            self._stopped.set()
            for sock in self._sockets:
                sock.shut_down()

    @property
    def stopped(self) -> bool:
        return self._stopped.is_set()

    def pause(self, seconds: float) -> None:
        """Sleeps, but not beyond `stop`."""
        self._stopped.wait(seconds)

    @contextmanager
    def watching(self, sock: "TimedSocket") -> Iterator[None]:
        with self._lock:
            if self.stopped:
                raise DeadlineExceeded("cancelled")
            self._sockets.add(sock)
        try:
            yield
        finally:
            with self._lock:
                self._sockets.discard(sock)


class TimedSocket:
    """As much of a socket as http.client uses. No call outlasts `deadline`, a monotonic time."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self.deadline = deadline
        self._sock = sock

    def sendall(self, data: bytes) -> None:
        self._sock.settimeout(seconds_left(self.deadline))
        self._sock.sendall(data)

    def recv_into(self, view: memoryview) -> int:
        """At least a byte, or 0 at the end; a large view whole.

        Each call takes the GIL once, and a slow stream would need many: plain sockets leave the
        waiting to the kernel. TLS gives a record at a time, 16 KiB.
        """
        left = seconds_left(self.deadline)
        if isinstance(self._sock, ssl.SSLSocket) or len(view) <= _AHEAD_BYTES:
            self._sock.settimeout(left)
            return self._sock.recv_into(view)
        # The kernel's own timeout counts all waits of one call, unlike Python's.
        self._sock.settimeout(None)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _timeval(left))
        try:
            return self._sock.recv_into(view, 0, socket.MSG_WAITALL)
        except BlockingIOError:
            raise TimeoutError("timed out") from None

    def makefile(self, *_: object, **__: object) -> io.BufferedReader:
        return io.BufferedReader(_Incoming(self), _AHEAD_BYTES)

    def close(self) -> None:
        """Nothing: http.client closes once a head says "close", with the body still to be read."""

    def end(self) -> None:
        self._sock.close()

    def shut_down(self) -> None:
        """From any thread: whoever reads here finds the end. Not TLS's own, which would wait."""
        with suppress(OSError):  # the other side has closed already
            socket.socket.shutdown(self._sock, socket.SHUT_RDWR)

    def is_quiet(self) -> bool:
        """Whether nothing came, not even the end: then a next request may be tried."""
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        return not poll.poll(0)


def _timeval(seconds: float) -> bytes:
    """As setsockopt wants it; never 0, which would mean for ever. Source: socket(7)."""
    return struct.pack("@ll", int(seconds), max(1, int(seconds % 1 * 1e6)))


class _Incoming(io.RawIOBase):
    """Beneath a BufferedReader, which hands buffers larger than its own down as they are."""

    def __init__(self, sock: TimedSocket) -> None:
        self._sock = sock

    def readable(self) -> bool:
        return True

    def readinto(self, view: Any) -> int:
        return self._sock.recv_into(view)


def connect(host: str, port: int, tls: ssl.SSLContext | None, deadline: float) -> TimedSocket:
    """Tries all addresses of `host` in turn, each with its share of the time.

    Raises `Unavailable` (also for a certificate that is not the host's) and `DeadlineExceeded`.
    """
    trouble: OSError = OSError("no such host")
    addresses = _names.look_up(host, port, deadline)
    for number, (family, address) in enumerate(addresses):
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            notice_silence(sock)
            sock.settimeout(seconds_left(deadline) / (len(addresses) - number))
            sock.connect(address)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.settimeout(seconds_left(deadline))
            if tls is not None:
                sock = tls.wrap_socket(sock, server_hostname=host)
        except OSError as error:
            sock.close()
            trouble = error
        except DeadlineExceeded:
            sock.close()
            raise
        else:
            return TimedSocket(sock, deadline)
    if isinstance(trouble, TimeoutError):
        raise DeadlineExceeded(f"no connection to {host}:{port} in time")
    raise Unavailable(f"{host}:{port}: {trouble}")


def notice_silence(sock: socket.socket) -> None:
    """A connection that a firewall or NAT forgot fails soon, instead of taking a whole deadline.

    An idle one is asked for a sign of life before NATs forget it (most keep 60 s); what was sent
    and is not acknowledged by the other kernel has 1.5 s. core/socket.cpp has the same numbers.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in SILENCE:
        with suppress(OSError):  # an option that this kernel lacks only costs time
            sock.setsockopt(socket.IPPROTO_TCP, option, value)


class _Names:
    """Addresses of host names. A resolver blocks as long as it likes: it has threads of its own."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._known: dict[tuple[str, int], tuple[Addresses, float]] = {}
        self._running: set[tuple[str, int]] = set()

    def look_up(self, host: str, port: int, deadline: float) -> Addresses:
        """Empty when there is no such host. Raises `DeadlineExceeded`."""
        name = (host, port)
        with self._condition:
            while (known := self._known.get(name)) is None or known[1] < time.monotonic():
                if name not in self._running:
                    self._running.add(name)
                    threading.Thread(target=self._ask, args=name, daemon=True).start()
                self._condition.wait(seconds_left(deadline))
            return _spread(known[0])

    def _ask(self, host: str, port: int) -> None:
        found: Addresses = []
        try:
            rows = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            found = [(int(row[0]), row[4]) for row in rows]
        except OSError:
            pass
        finally:
            with self._condition:
                life_s = _NAME_LIFE_S if found else 0.05
                self._known[host, port] = (found, time.monotonic() + life_s)
                self._running.discard((host, port))
                self._condition.notify_all()


def _spread(addresses: Addresses) -> Addresses:
    """By chance among those of the first one's family, so that all servers of a name are used."""
    first = [address for address in addresses if address[0] == addresses[0][0]]
    random.shuffle(first)
    return first + [address for address in addresses if address[0] != addresses[0][0]]


_names: Final = _Names()


def seconds_left(deadline: float) -> float:
    """More than 0. Raises `DeadlineExceeded`."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise DeadlineExceeded("S3 did not answer in time")
    return left


def tls_context() -> ssl.SSLContext:
    """Verifies servers by the host's authorities, or those of SSL_CERT_FILE and SSL_CERT_DIR."""
    return ssl.create_default_context()
