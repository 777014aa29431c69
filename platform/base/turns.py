"""How much a tenant may have under way in this process at a time, so that others have room, too."""

import threading
from collections import Counter
from collections.abc import Hashable, Iterator
from contextlib import contextmanager

from base.problems import Problem


class Turns:
    """`most` at a time of each name. `words`: of the refusal."""

    def __init__(self, most: int, words: str) -> None:
        self.most = most
        self._words = words
        self._held: Counter[Hashable] = Counter()
        self._lock = threading.Lock()

    def require(self, name: Hashable) -> None:
        """Raises Problem (throttled) if `turn` would."""
        if self._held[name] >= self.most:
            raise Problem("throttled", self._words)

    @contextmanager
    def turn(self, name: Hashable) -> Iterator[None]:
        """Never waits. Raises Problem (throttled) while `most` others of the name have a turn."""
        with self._lock:
            self.require(name)
            self._held[name] += 1
        try:
            yield
        finally:
            with self._lock:
                self._held[name] -= 1
                if not self._held[name]:
                    del self._held[name]
