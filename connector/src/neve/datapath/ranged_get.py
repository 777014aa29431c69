"""Ranged GETs over HTTP/1.1 into the caller's memory, on connections that are kept.

http.client of the standard library over sockets that keep time (docs/decisions/005-cold-reads.md
says why). What the bytes mean, and what to try again, is `neve.datapath.cold`'s business.
"""

import errno
import http.client
import re
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Final
from urllib.parse import urlsplit

from neve.datapath.timed_socket import TimedSocket, connect
from neve.errors import DeadlineExceeded

_IDLE_S: Final = 15.0  # SeaweedFS and S3 close connections that idle for 20 s and more
_ERROR_BODY_BYTES: Final = 64 << 10
_READ_OF_ERROR_BYTES: Final = 4 << 10  # its code and message stand at the beginning


@dataclass(frozen=True)
class Head:
    """Of an answer. `first`, `last`: the bytes that follow, inclusive, when `status` is 206.

    `code`, `message`: of S3's error document, or "". `date_s`: the server's clock, s since 1970.
    """

    status: int
    first: int | None = None
    last: int | None = None
    retry_after_s: float = 0.0
    code: str = ""
    message: str = ""
    date_s: float | None = None


class StaleConnection(Exception):
    """The server had closed a kept connection before it saw our request: ask on another one."""


class Connection(http.client.HTTPConnection):
    """To one server, for one request at a time.

    Beside what is said of them, methods raise `TimeoutError` or `DeadlineExceeded` at the deadline,
    OSError and HTTPException when the connection breaks, InvalidURL for what cannot be asked.
    """

    sock: TimedSocket | None

    def __init__(self, origin: tuple[str, str], context: ssl.SSLContext) -> None:
        """`origin`: scheme and what follows it, as "s3.example:8333"."""
        scheme, where = origin
        if scheme not in ("http", "https"):
            raise http.client.InvalidURL(f"scheme {scheme!r}")
        self.default_port = 443 if scheme == "https" else 80
        super().__init__(where)
        self.origin = origin
        self.used_at: float | None = None  # when the last answer was read to its end
        self._tls = context if scheme == "https" else None
        self._timed: TimedSocket | None = None
        self._answer: http.client.HTTPResponse | None = None

    def open(self, deadline: float) -> TimedSocket:
        """Connects, unless it is. What follows ends by `deadline`. Raises `Unavailable`."""
        if self._timed is None:
            self._timed = connect(self.host, self.port, self._tls, deadline)
        self._timed.deadline = deadline
        self.sock = self._timed
        return self._timed

    def get(self, target: str, first: int, last: int) -> Head:
        """Asks for the bytes `first` … `last`, which `read_into` then reads.

        Raises `StaleConnection`.
        """
        span = f"bytes={first}-{last}"
        try:
            self.request("GET", target, headers={"Range": span, "Accept-Encoding": "identity"})
            answer = self.getresponse()
        except (OSError, ssl.SSLEOFError) as error:
            if self.used_at is None or not _is_lost(error):
                raise
            raise StaleConnection from error
        self._answer = answer
        begin, end = content_range(answer.getheader("Content-Range"))
        later = answer.getheader("Retry-After", "")
        code, message = error_of(answer) if answer.status >= 400 else ("", "")
        return Head(
            answer.status,
            begin,
            end,
            retry_after_s=float(later) if later.isdecimal() else 0.0,
            code=code,
            message=message,
            date_s=_seconds(answer.getheader("Date")),
        )

    def read_into(self, view: memoryview) -> None:
        """Fills `view` with what comes next. Raises IncompleteRead when the answer ends before."""
        assert self._answer is not None
        count = self._answer.readinto(view)
        if count < len(view):
            raise http.client.IncompleteRead(b"", len(view) - count)

    def finish(self) -> bool:
        """Reads what little is left of the answer. Whether the connection may be used again."""
        answer, self._answer = self._answer, None
        if answer is None:
            return False
        left = answer.length
        if left is None or left > _ERROR_BODY_BYTES:
            return False
        try:
            answer.read()
        except (OSError, http.client.HTTPException, DeadlineExceeded):
            return False
        self.used_at = time.monotonic()
        return not answer.will_close

    def is_usable(self) -> bool:
        """Whether a kept connection is worth a try."""
        if self._timed is None or self.used_at is None:
            return False
        return time.monotonic() - self.used_at < _IDLE_S and self._timed.is_quiet()

    def end(self) -> None:
        if self._timed is not None:
            self._timed.end()


class Connections:
    """Kept connections. For any thread; what one thread took, no other has."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context
        self._lock = threading.Lock()
        self._kept: dict[tuple[str, str], list[Connection]] = {}
        self._closed = False

    @contextmanager
    def take(self, url: str) -> Iterator[tuple[Connection, str]]:
        """A connection to the server of `url`, and what to ask it for.

        Kept when the answer was read to its end, which `finish` may do; closed on any trouble.
        """
        parts = urlsplit(url)
        connection = self._take((parts.scheme, parts.netloc))
        kept = False
        try:
            yield connection, f"{parts.path}?{parts.query}" if parts.query else parts.path
            kept = connection.finish() and self._keep(connection)
        finally:
            if not kept:
                connection.end()

    def count(self) -> int:
        with self._lock:
            return sum(map(len, self._kept.values()))

    def close(self) -> None:
        """Ends those that nobody uses; the others end after their use."""
        with self._lock:
            self._closed = True
            kept, self._kept = self._kept, {}
        for connection in (each for some in kept.values() for each in some):
            connection.end()

    def _take(self, origin: tuple[str, str]) -> Connection:
        while True:
            with self._lock:
                kept = self._kept.get(origin)
                connection = kept.pop() if kept else None
            if connection is None:
                return Connection(origin, self._context)
            if connection.is_usable():
                return connection
            connection.end()

    def _keep(self, connection: Connection) -> bool:
        with self._lock:
            if not self._closed:
                self._kept.setdefault(connection.origin, []).append(connection)
            return not self._closed


def error_of(answer: http.client.HTTPResponse) -> tuple[str, str]:
    """Code and message of S3's error document; empty where there is none, or it breaks off.

    Source: "Error responses", Amazon S3 API reference.
    """
    try:
        text = answer.read(_READ_OF_ERROR_BYTES).decode(errors="replace")
    except (OSError, http.client.HTTPException, DeadlineExceeded):
        return "", ""
    found = (re.search(rf"<{name}>([^<]{{1,300}})</{name}>", text) for name in ("Code", "Message"))
    code, message = (match[1] if match else "" for match in found)
    return code, message


def _seconds(date: str | None) -> float | None:
    try:
        return parsedate_to_datetime(date or "").timestamp()
    except (ValueError, OverflowError):
        return None


def _is_lost(error: OSError) -> bool:
    """The connection is gone, as opposed to a deadline that ran out (without a number)."""
    lost = isinstance(error, ConnectionError | ssl.SSLEOFError)
    return lost or error.errno == errno.ETIMEDOUT


def content_range(text: str | None) -> tuple[int | None, int | None]:
    """The first and last byte that "bytes 0-9/100" names; nothing when it names none."""
    unit, _, rest = (text or "").partition(" ")
    first, _, last = rest.partition("/")[0].partition("-")
    if unit != "bytes" or not (first.isdecimal() and last.isdecimal()):
        return None, None
    return int(first), int(last)
