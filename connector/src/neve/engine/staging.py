"""Staging memory with a budget: blocks are reused, because getting (pinned) memory is slow."""

import threading
from collections.abc import Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar


class Staging(Protocol):
    """Memory of what one rank holds of one chunk: its columns' payloads, one after the other."""

    memory: memoryview


def payloads(pieces: Sequence[Staging], columns: int) -> list[memoryview]:
    """Every piece's payloads, in the order of the columns."""
    found = []
    for piece in pieces:
        size = len(piece.memory) // columns
        found += [piece.memory[n * size : (n + 1) * size] for n in range(columns)]
    return found


S = TypeVar("S", bound=Staging)


class Ticket(Protocol):
    """A copy between the engine's memory and staging that may still be under way."""

    def done(self) -> bool: ...
    def wait(self) -> None: ...


class Done:
    """The ticket of a copy that is over."""

    def done(self) -> bool:
        return True

    def wait(self) -> None:
        pass


class Mark(Protocol):
    """A moment in what the engine computes."""

    def done(self) -> bool: ...
    def since(self, earlier: Any) -> float:
        """Seconds between two moments that are `done`."""
        ...


class Kv(Protocol[S]):
    """The engine's KV memory: what `neve.engine.device.tensors.KvTensors` is to the transfers.

    `defers`: copies may outlive the call, so sources and targets must be held until the ticket.
    """

    block_bytes: int
    defers: bool

    def allocate(self, engine_blocks: int, most: int = 1) -> Sequence[S]: ...
    def move_out(self, blocks: Sequence[Sequence[int]], staging: Sequence[S]) -> Ticket: ...
    def move_in(
        self, blocks: Sequence[Sequence[int]], skip: int, staging: Sequence[S]
    ) -> Ticket: ...
    def fence(self) -> None: ...
    def compare(self, computed: S, stored: S) -> object | None:
        """In words, where the two differ by more than rounding; None: nowhere."""
        ...

    def mark(self) -> Mark: ...


class StagingPool(Generic[S]):
    """At most `limit` pieces; `allocate(most)` makes one to `most`. May be used from any thread."""

    def __init__(self, allocate: Callable[[int], Sequence[S]], limit: int) -> None:
        self._allocate = allocate
        self._unmade = max(1, limit)
        self._free: list[S] = []
        self._lock = threading.Lock()

    def take(self, most: int) -> list[S]:
        """At most so many pieces; fewer, or none, when the rest of the budget is in use.

        What was made or given back together is taken together, in the same order, so that pieces
        which lie side by side stay neighbours.
        """
        with self._lock:
            while len(self._free) < most and self._unmade:
                self._unmade -= 1
                self._free += self._allocate(1)
            taken = self._free[-most:]
            del self._free[-most:]
            return taken

    def fill(self) -> None:
        """Makes all that is left of the budget; until it is there, `take` has none."""
        with self._lock:
            unmade, self._unmade = self._unmade, 0
        while unmade > 0:
            pieces = self._allocate(unmade)
            unmade -= len(pieces)
            self.give_back(pieces)

    def give_back(self, pieces: Sequence[S]) -> None:
        with self._lock:
            self._free.extend(pieces)
