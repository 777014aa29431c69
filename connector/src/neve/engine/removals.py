"""Reads which blocks left Neve, so that a node withdraws what it announced to routers.

Nodes store, but the platform evicts, expires and deletes. One thread asks once per heartbeat, for
each space; the scheduler takes what came. Without an answer nothing is withdrawn, and the next
answer goes on where the last one ended.
"""

import threading
from collections import deque
from collections.abc import Sequence

from neve import log_events
from neve.datapath.client import Client
from neve.engine.link import Link
from neve.errors import NeveError

_PAUSE_S = 2.0  # until there is a session, which says how often to ask


class RemovalReader:
    """`take` belongs to the scheduler's thread."""

    def __init__(self, links: Sequence[Link]) -> None:
        self._links = links
        self._cursors: list[str | None] = [None] * len(links)
        self._is_late = [False] * len(links)  # the first question was not answered
        self._taken: deque[list[bytes] | None] = deque()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="neve-removals", daemon=True)
        self._thread.start()

    def take(self) -> list[list[bytes] | None]:
        """Ids of removed blocks since the last call, in order; None: whatever was stored before may
        have gone."""
        return [self._taken.popleft() for _ in range(len(self._taken))]

    def close(self) -> None:
        self._closing.set()  # a question under way ends by its own timeout

    def _run(self) -> None:
        pause_s = 0.0
        while not self._closing.wait(pause_s):
            pause_s = _PAUSE_S
            for number, link in enumerate(self._links):
                if (client := link.client) is None:
                    continue
                try:
                    pause_s = client.session.heartbeat_s
                    self._read(number, client)
                except NeveError:
                    # Heartbeats tell of an outage; a platform before removals answers 404.
                    self._is_late[number] = self._cursors[number] is None
                except Exception:  # a boundary: one failure must not end the thread
                    log_events.REMOVALS_UNREAD.log(exc_info=True)

    def _read(self, number: int, client: Client) -> None:
        """All pages since the cursor. Raises NeveError."""
        while not self._closing.is_set():
            cursor = self._cursors[number]
            removed, self._cursors[number], is_reset = client.removals(cursor)
            if is_reset or (cursor is None and self._is_late[number]):
                self._taken.append(None)
            elif removed:
                self._taken.append(removed)
            else:
                return
