"""Pages are rendered in processes of their own, children of the web process.

In one process they take Python's lock from heartbeats, some of which hold SQLite's write lock, and
use one core. The web process keeps sockets, REST and nodes' requests, and answers a page itself
while it has no child. The child ends when its parent closes the pipes.
"""

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from http.cookies import SimpleCookie
from importlib import import_module
from io import BytesIO
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from time import monotonic
from typing import Any

from base import log_events

AGAIN_S = 30.0  # pause before another child, after one that ended
PATIENCE_S = 30.0  # for an answer; longer than any server that a page asks may take
_CARRIED = (
    *("type", "http_version", "method", "scheme", "path", "root_path", "query_string", "headers"),
    *("client", "server"),
)


@dataclass(frozen=True)
class Rendered:
    """`viewer`: see `dashboard.shared.respond`."""

    status: int
    headers: dict[str, str]
    cookies: SimpleCookie
    body: bytes
    viewer: Any


class PageProcess:
    """The child as the web process sees it. `pipes`: how many requests it answers at a time.

    A child that does not answer for `patience_s` is killed, and another one started later.
    """

    def __init__(self, pipes: int, *, patience_s: float = PATIENCE_S) -> None:
        self._most = pipes
        self._patience_s = patience_s
        self._lock = threading.Lock()
        self._free: list[Connection] = []
        self._child: subprocess.Popen[bytes] | None = None
        self._start_at = float("-inf")

    @property
    def free(self) -> int:
        """Requests that it would take now. One that has yet to start its child comes first."""
        if self._child is None:
            return self._most + 1 if monotonic() >= self._start_at else 0
        return len(self._free)

    def render(self, scope: dict[str, Any]) -> Rendered | None:
        """Blocks. None: no child, a busy one, or no answer of one piece: answer it here."""
        pipe = self._take()
        if pipe is None:
            return None
        try:
            pipe.send({name: scope[name] for name in _CARRIED if name in scope})
            if not pipe.poll(self._patience_s):
                raise TimeoutError
            answer: Rendered | None = pipe.recv()
        except TimeoutError:
            self._end_child()
            pipe.close()
            return None
        except (EOFError, OSError):
            pipe.close()
            return None
        with self._lock:
            self._free.append(pipe)
        return answer

    def _take(self) -> Connection | None:
        with self._lock:
            if self._child is not None and (status := self._child.poll()) is not None:
                log_events.PAGE_PROCESS_ENDED.log(status=status)
                self._child = None
            if self._child is None:
                if monotonic() >= self._start_at:
                    self._start()
                return None
            return self._free.pop() if self._free else None

    def _end_child(self) -> None:
        with self._lock:
            if self._child is not None:
                self._child.kill()
                self._child.wait()

    def _start(self) -> None:
        self._start_at = monotonic() + AGAIN_S
        self._free = []
        pairs = [Pipe() for _ in range(self._most)]
        theirs = [pair[1] for pair in pairs]
        numbers = [pipe.fileno() for pipe in theirs]
        self._child = subprocess.Popen(
            [sys.executable, "-c", f"from {__name__} import main; main()", *map(str, numbers)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            stdin=subprocess.DEVNULL,
            pass_fds=numbers,
        )
        for pipe in theirs:
            pipe.close()
        for pipe, _ in pairs:
            threading.Thread(target=self._join, args=(pipe,), daemon=True).start()

    def _join(self, pipe: Connection) -> None:
        """Offers a pipe once the child says that it is ready."""
        try:
            pipe.recv()
        except (EOFError, OSError):
            return
        with self._lock:
            self._free.append(pipe)


def main() -> None:
    """The child. Its arguments are the numbers of its pipes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: the parent ends this process
    from base import tracing

    tracing.start("neve-pages")
    import django

    django.setup(set_prefix=False)
    from django.core.handlers.base import BaseHandler

    from base.counting import PROCESS

    handler = BaseHandler()
    handler.load_middleware()
    for probe in import_module("dashboard.probes").ALL:  # so that no page says "unknown" again
        probe.ask()
    PROCESS.start()
    pipes = [Connection(int(number)) for number in sys.argv[1:]]
    threads = [threading.Thread(target=_serve, args=(pipe, handler)) for pipe in pipes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _serve(pipe: Connection, handler: Any) -> None:
    pipe.send("ready")
    with suppress(EOFError, OSError):  # the parent ended
        while True:
            scope, answer = pipe.recv(), None
            with suppress(Exception):  # the parent then meets it, and says so
                answer = _answer(scope, handler)
            pipe.send(answer)


def _answer(scope: dict[str, Any], handler: Any) -> Rendered | None:
    from django.core.handlers.asgi import ASGIRequest, get_script_prefix
    from django.db import close_old_connections
    from django.urls import set_script_prefix

    close_old_connections()
    try:
        set_script_prefix(get_script_prefix(scope))
        response = handler.get_response(ASGIRequest(scope, BytesIO()))
        if response.streaming:
            response.close()
            return None
        return Rendered(
            response.status_code,
            dict(response.headers),
            response.cookies,
            response.content,
            getattr(response, "neve_viewer", None),
        )
    finally:
        close_old_connections()
