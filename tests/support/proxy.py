"""A TCP proxy that can slow down or stop the server's responses."""

import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Self

_PIECE = 16 << 10


class Proxy:
    """Forwards `port` to `target_port`, both on loopback. Use as a context manager.

    `bytes_per_s`: limit of all responses together (None: no limit).
    """

    def __init__(self, target_port: int) -> None:
        self.target_port = target_port
        self.bytes_per_s: float | None = None
        self._lock = threading.Lock()
        self._open = threading.Event()
        self._open.set()
        self._passed = 0
        self._trigger: tuple[int, Callable[[], object]] | None = None
        self._free_at = 0.0
        self._sockets: set[socket.socket] = set()
        self._closed = False

    def __enter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed = True
        self._open.set()
        self._listener.close()
        with self._lock:
            for each in self._sockets:
                _end(each)

    def when_passed(self, size_bytes: int, do: Callable[[], object]) -> None:
        """Stop all responses after `size_bytes` more bytes, then call `do()`.

        `release` resumes them.
        """
        with self._lock:
            self._trigger = (self._passed + size_bytes, do)

    @property
    def fired(self) -> bool:
        """Whether `when_passed` has stopped the responses."""
        return self._trigger is None

    def release(self) -> None:
        self.bytes_per_s = None
        self._open.set()

    def _accept(self) -> None:
        while not self._closed:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self.target_port), timeout=5)
                server.settimeout(None)
            except OSError:
                client.close()
                continue
            with self._lock:
                self._sockets |= {client, server}
            for source, sink, back in ((client, server, False), (server, client, True)):
                threading.Thread(target=self._pump, args=(source, sink, back), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, back: bool) -> None:
        try:
            while piece := source.recv(_PIECE):
                if back:
                    self._hold_back(len(piece))
                sink.sendall(piece)
        except OSError:
            pass
        finally:
            for each in (source, sink):
                with self._lock:
                    self._sockets.discard(each)
                _end(each)

    def _hold_back(self, size_bytes: int) -> None:
        with self._lock:
            self._passed += size_bytes
            fire = None
            if self._trigger is not None and self._passed >= self._trigger[0]:
                fire, self._trigger = self._trigger[1], None
                self._open.clear()
            wait_s = 0.0
            if self.bytes_per_s is not None:
                self._free_at = max(self._free_at, time.monotonic()) + size_bytes / self.bytes_per_s
                wait_s = self._free_at - time.monotonic()
        if fire is not None:
            fire()
        if wait_s > 0:
            time.sleep(wait_s)
        self._open.wait()


def _end(each: socket.socket) -> None:
    """Shut down and close. `close` alone would not wake a thread that waits in `recv`."""
    with suppress(OSError):
        each.shutdown(socket.SHUT_RDWR)
    each.close()
