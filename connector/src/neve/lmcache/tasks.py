"""Tasks under way, as LMCache's controllers follow them: numbers, results, an eventfd.

Each kind of task has an eventfd of its own: controllers look adapters up by it.
"""

import threading
from typing import Generic, TypeVar

from lmcache.v1.platform import create_event_notifier

R = TypeVar("R")


class Tasks(Generic[R]):
    """Thread-safe. Each task ends once; a second result of it is dropped."""

    def __init__(self) -> None:
        self._event = create_event_notifier()
        self._lock = threading.Lock()
        self._next = 0
        self._open: set[int] = set()
        self._ended: dict[int, R] = {}
        self._closed = False

    @property
    def event_fd(self) -> int:
        """Readable once a task has ended."""
        return int(self._event.fileno())

    @property
    def under_way(self) -> int:
        return len(self._open)

    def begin(self) -> int:
        with self._lock:
            number, self._next = self._next, self._next + 1
            self._open.add(number)
            return number

    def end(self, number: int, result: R) -> bool:
        """Whether this was its end."""
        with self._lock:
            if number not in self._open:
                return False
            self._open.remove(number)
            if not self._closed:
                self._ended[number] = result
                self._event.notify()
            return True

    def take(self, number: int) -> R | None:
        """The result, once; None before the task has ended."""
        with self._lock:
            return self._ended.pop(number, None)

    def take_all(self) -> dict[int, R]:
        with self._lock:
            ended, self._ended = self._ended, {}
            return ended

    def close(self) -> None:
        """Closes the eventfd. Tasks that end later are not told of."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._event.close()
