"""Tells the platform of ended requests that named a context; keeps them while it is away.

The engine only hands them over. One thread sends them in order; `MOST_WAITING` may wait.
"""

import atexit
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Final

from neve import log_events
from neve.engine.link import Link
from neve.engine.planner import FinishedRequest
from neve.errors import NeveError, Unavailable

# A context is reported when the puts of its last blocks have had this long to be committed.
DELAY_S: Final = 0.5
# How long an absent platform is left alone.
RETRY_S: Final = 2.0
# Of 32k tokens each about 15 MB: their ids.
MOST_WAITING: Final = 1000
# An engine that ends waits so long for the contexts that are left, and the call under way.
CLOSE_S: Final = 2.0


class ContextReports:
    """`add` and `close` belong to the engine's thread. `links`, `shards`: as the planner's."""

    def __init__(self, links: Sequence[Link], shards: int) -> None:
        self._links = links
        self._shards = shards
        self._waiting: deque[tuple[float, FinishedRequest]] = deque()
        self._change = threading.Condition()
        self._end: float | None = None  # when to give up, once closing
        self._thread = threading.Thread(target=self._run, name="neve-context", daemon=True)
        self._thread.start()
        atexit.register(self.close)  # engines that run inside one process are often just dropped

    def add(self, ended: FinishedRequest) -> None:
        """Never waits. `ended.wish` has a name."""
        with self._change:
            if len(self._waiting) == MOST_WAITING:
                self._waiting.popleft()
                log_events.CONTEXT_DROPPED.log(waiting=MOST_WAITING)
            self._waiting.append((time.monotonic() + DELAY_S, ended))
            self._change.notify()

    def close(self) -> None:
        """Sends what waits, as far as that works within `CLOSE_S`. May be called again."""
        atexit.unregister(self.close)
        with self._change:
            self._end = time.monotonic() + CLOSE_S
            self._change.notify()
        self._thread.join(CLOSE_S)
        if self._waiting:
            log_events.CONTEXT_LEFT.log(count=len(self._waiting))

    def _run(self) -> None:
        away = False
        while (ended := self._next(RETRY_S if away else 0.0)) is not None:
            try:
                self._send(ended[1])
                away = False
            except Unavailable as error:
                if not away:
                    log_events.CONTEXT_KEPT.log(detail=error)
                away = True
                continue
            except NeveError as error:
                name = ended[1].wish.name
                log_events.CONTEXT_UNREPORTED.log(name=name, detail=error)
            except Exception:
                log_events.CONTEXT_BROKEN.log(exc_info=True)
            with self._change:
                if self._waiting and self._waiting[0] is ended:
                    self._waiting.popleft()

    def _next(self, pause_s: float) -> tuple[float, FinishedRequest] | None:
        """The oldest one when it is due, not before `pause_s`; None: no more. While closing nothing
        is waited for, and nobody is asked again who was away."""
        begin = time.monotonic() + pause_s
        with self._change:
            while True:
                now = time.monotonic()
                if self._end is not None:
                    over = not self._waiting or pause_s > 0 or now >= self._end
                    return None if over else self._waiting[0]
                due = max(begin, self._waiting[0][0]) if self._waiting else None
                if due is not None and due <= now:
                    return self._waiting[0]
                self._change.wait(None if due is None else due - now)

    def _send(self, ended: FinishedRequest) -> None:
        """One context a space, so that a pin holds all of the KV. May be repeated."""
        assert ended.wish.name is not None
        for number, link in enumerate(self._links):
            client = link.client
            if client is None:
                continue
            columns = slice(number * self._shards, (number + 1) * self._shards)
            client.report_context(
                ended.wish.name,
                [block_id for ids in ended.ids for block_id in ids[columns]],
                tokens=len(ended.ids) * ended.chunk_tokens,
                label=ended.wish.label,
                pin_s=ended.wish.pin_s,
            )
