"""An HTTP proxy on loopback in front of a real S3 that fails requests on purpose.

Signatures stay valid: the proxy passes the caller's Host header on. Which requests fail is drawn
from the seed of each trouble; `hits` counts them.
"""

import http.client
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

SHARE = 0.6  # of the requests that a trouble could hit
ONCE = {"s3_flip_answer"}  # what got past TCP's and TLS's checksums does not come in swarms
STALE_S = 60.0  # a stale list shows the bucket as it was so long ago
_BODY = b'<?xml version="1.0"?><Error><Code>%b</Code><Message>on purpose</Message></Error>'
_ITEM = (
    "<Contents><Key>%s</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
    "<ETag>&quot;0&quot;</ETag><Size>%d</Size><StorageClass>STANDARD</StorageClass></Contents>"
)


class FaultProxy:
    """Context manager. `url` is the S3 address of all other programs."""

    def __init__(self, s3_port: int) -> None:
        self.s3_port = s3_port
        self.hits: Counter[str] = Counter()
        self._troubles: dict[str, random.Random] = {}
        self._lock = threading.Lock()
        self._changes: dict[str, tuple[float, int | None]] = {}  # key -> when, size; None: deleted
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @contextmanager
    def trouble(self, kind: str, seed: int) -> Iterator[None]:
        """Inside, requests meet this trouble, the name of a fault (`s3_…`)."""
        with self._lock:
            self._troubles[kind] = random.Random(seed)
        try:
            yield
        finally:
            with self._lock:
                self._troubles.pop(kind, None)

    def draw(self, possible: set[str]) -> tuple[str, float]:
        """Draws one request's trouble among those `possible` for it, and a number 0 … 1."""
        with self._lock:
            for kind, rng in self._troubles.items():
                if kind in possible and rng.random() < SHARE:
                    self.hits[kind] += 1
                    if kind in ONCE:
                        del self._troubles[kind]
                    return kind, rng.random()
        return "", 0.0

    def note(self, method: str, key: str, status: int, size: int) -> None:
        """Remembers a change, for stale lists."""
        if status < 300 and method in ("PUT", "DELETE"):
            with self._lock:
                self._changes[key] = (time.monotonic(), size if method == "PUT" else None)

    def stale(self, listing: bytes) -> bytes:
        """A list without the latest puts, and with the latest deletions."""
        since = time.monotonic() - STALE_S
        with self._lock:
            recent = {key: size for key, (at, size) in self._changes.items() if at > since}
        text = listing.decode()
        for key, size in recent.items():
            item = re.compile(rf"<Contents><Key>{re.escape(key)}</Key>.*?</Contents>")
            if size is None:
                if not item.search(text):
                    text = text.replace("</ListBucketResult>", "") + _ITEM % (key, 100)
                    text += "</ListBucketResult>"
            else:
                text = item.sub("", text)
        return text.encode()


def _possible(method: str, key: str, query: str, body: bytes) -> set[str]:
    kinds = {"s3_500", "s3_slow_down", "s3_lost_answer", "s3_delay"}
    if method == "GET" and key:
        kinds |= {"s3_cut_answer", "s3_flip_answer"}
    if method == "GET" and "list-type" in parse_qs(query):
        kinds |= {"s3_cut_answer", "s3_stale_list"}
    if body:
        kinds.add("s3_cut_upload")
    return kinds


def _handler(proxy: FaultProxy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        upstream: http.client.HTTPConnection | None = None

        def serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            parts = urlsplit(self.path)
            key = unquote(parts.path).lstrip("/").partition("/")[2]
            kind, number = proxy.draw(_possible(self.command, key, parts.query, body))
            if kind == "s3_500":
                return self.answer(500, {}, _BODY % b"InternalError")
            if kind == "s3_slow_down":
                return self.answer(503, {}, _BODY % b"SlowDown")
            if kind == "s3_delay":
                time.sleep(number)
            try:
                status, headers, answer = self.forward(
                    body[: len(body) // 2] if kind == "s3_cut_upload" else body
                )
            except (OSError, http.client.HTTPException):
                self.drop_upstream()
                self.close_connection = True  # as when S3 itself went away
                return None
            proxy.note(self.command, key, status, len(body))
            if kind == "s3_lost_answer":
                self.close_connection = True
                return None
            if kind == "s3_stale_list":
                answer = proxy.stale(answer)
            if kind == "s3_flip_answer" and answer:
                at = int(number * len(answer))
                answer = answer[:at] + bytes([answer[at] ^ 0x10]) + answer[at + 1 :]
            cut = len(answer) // 2 if kind == "s3_cut_answer" else None
            return self.answer(status, headers, answer, cut=cut)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = serve

        def forward(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
            """Asks S3. Raises for a body shorter than announced, after sending it."""
            whole = int(self.headers.get("Content-Length") or 0)
            if self.upstream is None:
                self.upstream = http.client.HTTPConnection("127.0.0.1", proxy.s3_port, timeout=15)
            self.upstream.putrequest(
                self.command, self.path, skip_host=True, skip_accept_encoding=True
            )
            for name, value in self.headers.items():
                if name.lower() not in ("expect", "connection"):
                    self.upstream.putheader(name, value)
            self.upstream.endheaders(body)
            if len(body) < whole:
                raise http.client.IncompleteRead(body, whole)
            response = self.upstream.getresponse()
            answer = response.read()
            drop = ("connection", "transfer-encoding", "content-length", "date", "server")
            headers = {k: v for k, v in response.getheaders() if k.lower() not in drop}
            if self.command == "HEAD":
                headers["Content-Length"] = response.getheader("Content-Length", "0")
            if response.will_close:
                self.drop_upstream()
            return response.status, headers, answer

        def answer(
            self, status: int, headers: dict[str, str], body: bytes, *, cut: int | None = None
        ) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if "Content-Length" not in headers and status != 204:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body[:cut])
            if cut is not None:
                self.close_connection = True

        def drop_upstream(self) -> None:
            if self.upstream is not None:
                self.upstream.close()
                self.upstream = None

        def finish(self) -> None:
            self.drop_upstream()
            _quietly(super().finish)

        def handle(self) -> None:
            _quietly(super().handle)

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


def _quietly(act: Callable[[], None]) -> None:
    """Ignores the broken connections of killed callers."""
    with suppress(OSError):
        act()
