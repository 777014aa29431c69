"""A TCP proxy that breaks connections on a test's demand."""

import itertools
import socket
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Self

from support import silence


class CuttingProxy:
    """Context manager. Cuts the n-th connection after `after[n]` response bytes (None: never).

    Never cuts connections beyond the list. `port`: the proxy's own port.
    """

    def __init__(self, port: int, after: Iterable[int | None]) -> None:
        self._target = port
        self._after: Iterator[int | None] = itertools.chain(after, itertools.repeat(None))
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self.port = int(self._listener.getsockname()[1])
        self.cuts = 0

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        _shut(self._listener, *self._open)
        for sock in (self._listener, *self._open):
            sock.close()

    def fall_silent(self) -> None:
        """Drop all traffic of the open connections without closing them."""
        for near in self._open[::2]:
            silence.fall_silent(near)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._target))
                self._open += [near, far]
                left = next(self._after)
                for source, sink, most in ((near, far, None), (far, near, left)):
                    threading.Thread(
                        target=self._pump, args=(source, sink, most), daemon=True
                    ).start()

    def _pump(self, source: socket.socket, sink: socket.socket, left: int | None) -> None:
        with suppress(OSError):
            while piece := source.recv(1 << 16):
                if left is not None and len(piece) >= left:
                    sink.sendall(piece[:left])
                    with self._lock:
                        self.cuts += 1
                    break
                sink.sendall(piece)
                left = None if left is None else left - len(piece)
        _shut(source, sink)


def _shut(*sockets: socket.socket) -> None:
    for sock in sockets:
        with suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
