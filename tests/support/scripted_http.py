"""An HTTP server that sends prepared responses and records the requests."""

import re
import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Self

from support import silence

Answer = bytes | Callable[[socket.socket], object]


class ScriptedHttp:
    """Context manager. The n-th request gets the n-th answer; later requests get the last.

    An answer is bytes to send, or a function that is called with the socket. The server closes the
    connection after an answer with `close`, an empty answer or a call.
    """

    def __init__(self, *answers: Answer, context: ssl.SSLContext | None = None) -> None:
        self.requests: list[bytes] = []
        self.connections = 0
        self._answers = list(answers)
        self._context = context
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self.port = int(self._listener.getsockname()[1])
        self.url = f"http{'s' if context else ''}://127.0.0.1:{self.port}/segment?signed=yes"

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for sock in (self._listener, *self._open):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def fall_silent(self) -> None:
        """Drop all traffic of the open connections without closing them."""
        for sock in self._open:
            silence.fall_silent(sock)

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """First and last byte of each request."""
        found = [re.search(rb"(?i)range: bytes=(\d+)-(\d+)", text) for text in self.requests]
        return [(int(match[1]), int(match[2])) for match in found if match]

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                self._open.append(sock)
                self.connections += 1
                threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with suppress(OSError):
            if self._context is not None:
                sock = self._context.wrap_socket(sock, server_side=True)
            with sock:
                while request := self._read(sock):
                    with self._lock:
                        self.requests.append(request)
                        answer = self._answers[min(len(self.requests), len(self._answers)) - 1]
                    if not isinstance(answer, bytes):
                        answer(sock)
                        return
                    sock.sendall(answer)
                    if not answer or b"connection: close" in answer.lower():
                        return

    def _read(self, sock: socket.socket) -> bytes:
        request = b""
        while not request.endswith(b"\r\n\r\n"):
            piece = sock.recv(4096)
            if not piece:
                return b""
            request += piece
        return request


def answer(status: int, body: bytes = b"", *headers: str, length: int | None = None) -> bytes:
    """An HTTP response. `length`: Content-Length, if it differs from the body's."""
    lines = [f"HTTP/1.1 {status} -", f"Content-Length: {len(body) if length is None else length}"]
    return "\r\n".join([*lines, *headers, "", ""]).encode() + body


def partial(first: int, body: bytes, *headers: str, total: int = 1 << 30) -> bytes:
    """A 206 response whose body starts at byte `first`."""
    span = f"Content-Range: bytes {first}-{first + len(body) - 1}/{total}"
    return answer(206, body, span, *headers)
