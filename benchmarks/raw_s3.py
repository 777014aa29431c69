"""The S3 server's own speed, by plain sockets and presigned addresses, without any verification.

Each stream is a thread with a persistent connection. `send` and `recv` of a whole part or range are
one call without the GIL, so Python costs almost nothing.
"""

import queue
import socket
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar
from urllib.parse import urlsplit

HEAD_BYTES = 4096
MOST_THREADS = 64
IDLE_S = 10.0  # weed closes connections that idle for longer
Range = tuple[str, int, memoryview]  # key, first byte, destination
Task = TypeVar("Task")


class RawS3:
    """One bucket. `client`: boto3's, for signing, and for starting and completing uploads."""

    def __init__(self, client: Any, bucket: str) -> None:
        self.client = client
        self.bucket = bucket
        self._idle: list[_Connection] = []
        self._threads = ThreadPoolExecutor(MOST_THREADS)

    def put(self, key: str, data: memoryview, *, part_bytes: int, streams: int) -> None:
        """Multipart upload; returns when the object is complete."""
        where = {"Bucket": self.bucket, "Key": key}
        upload = {**where, "UploadId": self.client.create_multipart_upload(**where)["UploadId"]}
        parts = list(enumerate(range(0, len(data), part_bytes), start=1))
        tags: dict[int, str] = {}

        def send(connection: "_Connection", part: tuple[int, int]) -> None:
            number, first = part
            url = self._sign("upload_part", {**upload, "PartNumber": number})
            tags[number] = connection.put(url, data[first : first + part_bytes])

        self._share(parts, streams, send)
        done = [{"PartNumber": number, "ETag": tags[number]} for number in sorted(tags)]
        self.client.complete_multipart_upload(**upload, MultipartUpload={"Parts": done})

    def reader(self, ranges: Sequence[Range], *, streams: int) -> Callable[[], None]:
        """Returns a function that fills each view with its range."""
        keys = {key for key, _, _ in ranges}
        urls = {key: self._sign("get_object", {"Bucket": self.bucket, "Key": key}) for key in keys}

        def receive(connection: "_Connection", span: Range) -> None:
            key, first, view = span
            connection.get(urls[key], first, view)

        return lambda: self._share(ranges, streams, receive)

    def copy(
        self, source: Sequence[Range], key: str, data: memoryview, *,
        part_bytes: int, put_streams: int, get_streams: int,
    ) -> None:  # fmt: skip
        """Read and write concurrently, as a merge does; returns when both are done."""
        reading = self._threads.submit(self.reader(source, streams=get_streams))
        self.put(key, data, part_bytes=part_bytes, streams=put_streams)
        reading.result()

    def _share(
        self, tasks: Sequence[Task], streams: int, do: "Callable[[_Connection, Task], None]"
    ) -> None:
        """Streams take tasks one after the other. Re-raises an exception of a stream."""
        waiting: queue.SimpleQueue[Task] = queue.SimpleQueue()
        for task in tasks:
            waiting.put(task)

        def work(connection: _Connection) -> None:
            try:
                while True:
                    do(connection, waiting.get_nowait())
            except queue.Empty:
                connection.used_at = time.monotonic()

        mine = [self._take() for _ in range(streams)]
        for each in [self._threads.submit(work, connection) for connection in mine]:
            each.result()
        self._idle += mine

    def _take(self) -> "_Connection":
        while True:
            try:
                kept = self._idle.pop()
            except IndexError:
                return _Connection()
            if time.monotonic() - kept.used_at < IDLE_S:
                return kept

    def _sign(self, call: str, params: dict[str, Any]) -> str:
        return str(self.client.generate_presigned_url(call, Params=params))


class _Connection:
    """A connection to the server of the first URL. For one thread."""

    def __init__(self) -> None:
        self.used_at = 0.0
        self._sock: socket.socket | None = None

    def put(self, url: str, body: memoryview) -> str:
        """Returns the part's ETag."""
        sock = self._ask("PUT", url, f"Content-Length: {len(body)}")
        sock.sendall(body)
        head, _ = self._answer(200)
        return next(v for k, v in head if k == "etag")

    def get(self, url: str, first: int, view: memoryview) -> None:
        sock = self._ask("GET", url, f"Range: bytes={first}-{first + len(view) - 1}")
        _, begun = self._answer(206)
        view[: len(begun)] = begun
        view = view[len(begun) :]
        while view:
            view = view[sock.recv_into(view, 0, socket.MSG_WAITALL) :]

    def _ask(self, method: str, url: str, header: str) -> socket.socket:
        parts = urlsplit(url)
        if self._sock is None:
            self._sock = socket.create_connection((parts.hostname or "", parts.port or 80))
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        target = f"{parts.path}?{parts.query}"
        self._sock.sendall(
            f"{method} {target} HTTP/1.1\r\nHost: {parts.netloc}\r\n{header}\r\n\r\n".encode()
        )
        return self._sock

    def _answer(self, wanted: int) -> tuple[list[tuple[str, str]], bytes]:
        """Returns the response's headers and the body bytes that arrived with them."""
        assert self._sock is not None
        got = b""
        while b"\r\n\r\n" not in got:
            piece = self._sock.recv(HEAD_BYTES)
            if not piece:
                raise ConnectionError("S3 closed the connection")
            got += piece
        head, _, body = got.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        if int(first.split()[1]) != wanted:
            raise ConnectionError(f"{first}: {body.decode(errors='replace')[:500]}")
        return [(k.lower(), v.strip()) for k, _, v in (x.partition(":") for x in lines)], body
