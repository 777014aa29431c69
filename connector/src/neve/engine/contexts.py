"""Reports finished requests that named a context to the platform; keeps reports while it is away.

The engine's thread only queues them. One thread sends them in order; `MOST_WAITING` may wait.
"""

import atexit
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from neve import log_events
from neve.engine.link import Link
from neve.engine.params import RequestParams
from neve.errors import NeveError, Unavailable

# A context is reported this long after its request, so that its last blocks are committed.
DELAY_S: Final = 0.5
# How long an unreachable platform is left alone.
RETRY_S: Final = 2.0
# 15 MB of ids if each report has 32k tokens.
MOST_WAITING: Final = 1000
# Contexts whose ids are remembered.
MOST_KNOWN: Final = 1000
# On shutdown, waiting reports and the call under way get this long.
CLOSE_S: Final = 2.0


@dataclass(frozen=True)
class FinishedRequest:
    """A finished request's stored chain: one tuple of ids a chunk, one id a column.

    `prompt_tokens`: that it looked up; `hit_tokens`: of these, loaded from a tier.
    """

    params: RequestParams
    ids: list[tuple[bytes, ...]]
    chunk_tokens: int
    prompt_tokens: int = 0
    hit_tokens: int = 0


class ContextReports:
    """`add` and `close` belong to the engine's thread. `links`, `shards`, `groups`: see
    `RequestTable`. Of several groups the first one's ids are the chain, from which the platform
    derives the others."""

    def __init__(self, links: Sequence[Link], shards: int, groups: int = 1) -> None:
        self._links = links
        self._shards = shards
        self._columns = shards * groups  # of one space
        self._known: OrderedDict[str, str] = OrderedDict()  # ids by name, last reported last
        self._waiting: deque[tuple[float, FinishedRequest]] = deque()  # each with when it is due
        self._change = threading.Condition()
        self._end: float | None = None  # once closing: when to give up
        self._thread = threading.Thread(target=self._run, name="neve-context", daemon=True)
        self._thread.start()
        atexit.register(self.close)  # engines inside one process are often just dropped

    def add(self, finished: FinishedRequest) -> None:
        """Never waits; a full queue drops its oldest. `finished.params` has a name."""
        with self._change:
            if len(self._waiting) == MOST_WAITING:
                self._waiting.popleft()
                log_events.CONTEXT_DROPPED.log(waiting=MOST_WAITING)
            self._waiting.append((time.monotonic() + DELAY_S, finished))
            self._change.notify()

    def id_of(self, name: str) -> str | None:
        """The id that the platform gave the context of this name, as of its last report by this
        engine; None before the first is answered. Never waits for the platform."""
        with self._change:
            return self._known.get(name)

    def close(self) -> None:
        """Sends waiting reports, as far as that works within `CLOSE_S`. May be called again."""
        atexit.unregister(self.close)
        with self._change:
            self._end = time.monotonic() + CLOSE_S
            self._change.notify()
        self._thread.join(CLOSE_S)
        if self._waiting:
            log_events.CONTEXT_LEFT.log(count=len(self._waiting))

    def _run(self) -> None:
        away = False
        while (entry := self._next(RETRY_S if away else 0.0)) is not None:
            try:
                self._send(entry[1])
                away = False
            except Unavailable as error:
                if not away:
                    log_events.CONTEXT_KEPT.log(detail=error)
                away = True
                continue
            except NeveError as error:
                name = entry[1].params.name
                log_events.CONTEXT_UNREPORTED.log(name=name, detail=error)
            except Exception:
                log_events.CONTEXT_BROKEN.log(exc_info=True)
            with self._change:
                if self._waiting and self._waiting[0] is entry:
                    self._waiting.popleft()

    def _next(self, pause_s: float) -> tuple[float, FinishedRequest] | None:
        """Waits for the oldest entry to be due, and for `pause_s`; None: no more will be sent.

        While closing, nothing is waited for, and an unreachable platform is not asked again.
        """
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

    def _send(self, finished: FinishedRequest) -> None:
        """One context a space, so that a pin holds all of the KV. May be repeated."""
        params = finished.params
        assert params.name is not None
        for number, link in enumerate(self._links):
            client = link.client
            if client is None:
                continue
            first = number * self._columns
            columns = slice(first, first + self._shards)
            context_id = client.report_context(
                params.name,
                [block_id for ids in finished.ids for block_id in ids[columns]],
                tokens=len(finished.ids) * finished.chunk_tokens,
                label=params.label,
                labels=params.labels,
                pin_s=params.pin_s,
                # Once an engine: every rank's space has the same requests.
                prompt_tokens=0 if number else finished.prompt_tokens,
                hit_tokens=0 if number else finished.hit_tokens,
            )
            if number == 0:
                self._remember(params.name, context_id)

    def _remember(self, name: str, context_id: str) -> None:
        with self._change:
            self._known[name] = context_id
            self._known.move_to_end(name)
            if len(self._known) > MOST_KNOWN:
                self._known.popitem(last=False)
