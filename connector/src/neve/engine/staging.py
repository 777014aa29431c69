"""Staging memory with a budget. Pieces are reused, because getting (pinned) memory is slow."""

import threading
from collections.abc import Callable, Sequence
from typing import Generic

from neve.engine.contract import S, Staging


def payloads(pieces: Sequence[Staging], columns: int) -> list[memoryview]:
    """The payloads of all pieces, one for each column, piece by piece."""
    found = []
    for piece in pieces:
        size = len(piece.memory) // columns
        found += [piece.memory[n * size : (n + 1) * size] for n in range(columns)]
    return found


class Done:
    """The ticket of a copy that is over."""

    def done(self) -> bool:
        return True

    def wait(self) -> None:
        pass


class StagingPool(Generic[S]):
    """At most `limit` pieces; `allocate(most)` makes one to `most`. May be used from any thread."""

    def __init__(self, allocate: Callable[[int], Sequence[S]], limit: int) -> None:
        self._allocate = allocate
        self._unmade = max(1, limit)
        self._free: list[S] = []
        self._lock = threading.Lock()

    def take(self, most: int) -> list[S]:
        """Up to `most` pieces; fewer, or none, when the rest of the budget is in use.

        Pieces that were made or given back together are taken together, in the same order, so that
        neighbours in memory stay neighbours.
        """
        with self._lock:
            while len(self._free) < most and self._unmade:
                self._unmade -= 1
                self._free += self._allocate(1)
            taken = self._free[-most:]
            del self._free[-most:]
            return taken

    def fill(self) -> None:
        """Makes the rest of the budget now; meanwhile `take` makes none."""
        with self._lock:
            unmade, self._unmade = self._unmade, 0
        while unmade > 0:
            pieces = self._allocate(unmade)
            unmade -= len(pieces)
            self.give_back(pieces)

    def give_back(self, pieces: Sequence[S]) -> None:
        with self._lock:
            self._free.extend(pieces)
