"""A client of server-sent events, as small as the format."""

import json
from collections import deque
from collections.abc import Iterator
from typing import Any, Self

import urllib3


class EventStream:
    """`last_id` is kept over `connect`, as browsers do."""

    def __init__(
        self, key: str, *, path: str = "/api/v1/events", query: str = "", last_id: str | None = None
    ) -> None:
        self.key, self.query, self.last_id = key, query, last_id
        self.path = path
        self.comments = 0
        self._pool = urllib3.PoolManager()
        self._answer: Any = None
        self._rest = b""  # the start of a line
        self._unread: deque[str] = deque()  # whole lines; a reader may stop between two of them

    def connect(self, url: str, *, timeout_s: float = 60) -> Self:
        headers = {"Authorization": f"Bearer {self.key}", "Accept": "text/event-stream"}
        if self.last_id is not None:
            headers["Last-Event-ID"] = self.last_id
        self._rest = b""
        self._unread.clear()
        self._answer = self._pool.request(
            "GET", f"{url}{self.path}{self.query}", headers=headers, timeout=timeout_s,
            retries=False, preload_content=False,
        )  # fmt: skip
        return self

    @property
    def status(self) -> int:
        return int(self._answer.status)

    def events(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """(name, data) of each event; ends with the connection, however it ends."""
        name, data, id_ = "message", "", self.last_id
        try:
            for line in self._lines():
                field, _, value = line.partition(": ")
                if line == "":
                    self.last_id = id_
                    if data:
                        yield name, json.loads(data)
                    name, data = "message", ""
                elif field == "id":
                    id_ = value
                elif field == "event":
                    name = value
                elif field == "data":
                    data = value
                elif field == "":
                    self.comments += 1
        except (urllib3.exceptions.HTTPError, OSError):
            return

    def _lines(self) -> Iterator[str]:
        while True:
            while self._unread:
                yield self._unread.popleft()
            piece = self._answer.read1(65536)
            if not piece:
                return
            *whole, self._rest = (self._rest + piece).split(b"\n")
            self._unread.extend(line.decode() for line in whole)

    def close(self) -> None:
        if self._answer is not None:
            self._answer.close()
        self._pool.clear()


def take(stream: EventStream, count: int) -> list[dict[str, Any]]:
    """The next `count` events, at least 1, or fewer if the connection ends."""
    assert count > 0
    found: list[dict[str, Any]] = []
    for name, data in stream.events():
        assert name != "end", data
        found.append(data)
        if len(found) == count:
            break
    return found
