"""Nodes, their requests in flight through this process, and their health.

Another process of the gateway has its own counts: they meet in the nodes' answers only.
"""

from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import Final

# A request that never ended (a client that went away unseen) stops counting after this.
IN_FLIGHT_S: Final = 600.0
# A node that failed is passed by for this long, then longer after each further failure.
REST_S: Final = 1.0
MOST_REST_S: Final = 30.0


@dataclass(frozen=True)
class Node:
    """An engine's server.

    `name`: unique. `url`: without /v1 at the end. `space`: number of the space whose KV it stores
    and loads; None: it has no Neve.
    """

    name: str
    url: str
    space: int | None = None


@dataclass(frozen=True)
class Load:
    """`in_flight`: requests. `turn`: when it was chosen last, as a count of choices."""

    in_flight: int = 0
    turn: int = 0


class Nodes:
    """Loads of nodes by name. Shared by all gateways of a process; belongs to one thread."""

    def __init__(self, *, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._running: dict[str, dict[str, float]] = {}  # by node: requests, and since when
        self._turns: dict[str, int] = {}
        self._turn = 0
        self._rests: dict[str, tuple[int, float]] = {}  # failures in a row, and until when

    def begin(self, node: str, request: str) -> None:
        """A request that began on another node, as before a retry, is there no more."""
        self.end(request)
        self._turn += 1
        self._turns[node] = self._turn
        self._running.setdefault(node, {})[request] = self._clock()

    def end(self, request: str) -> None:
        """May be called for a request that never began, and twice."""
        for running in self._running.values():
            running.pop(request, None)

    def load(self, node: str) -> Load:
        running = self._running.get(node, {})
        since = self._clock() - IN_FLIGHT_S
        for request in [each for each, begun in running.items() if begun < since]:
            del running[request]
        return Load(len(running), self._turns.get(node, 0))

    def fail(self, node: str) -> None:
        """A connection error or a 5xx: the node gets a rest."""
        failures = self._rests.get(node, (0, 0.0))[0] + 1
        rest = min(MOST_REST_S, REST_S * 2 ** (failures - 1))
        self._rests[node] = failures, self._clock() + rest

    def succeed(self, node: str) -> None:
        self._rests.pop(node, None)

    def is_healthy(self, node: str) -> bool:
        """True again once its rest is over: the next request is the probe."""
        return self._rests.get(node, (0, 0.0))[1] <= self._clock()
