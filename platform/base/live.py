"""Change hints over the channel layer: who gets one fetches the data from where they stand.

Hints may be lost. A thread of each process sends them, so that no request waits for valkey-bus, and
a group has one in `EVERY_S` however much changes.
"""

import asyncio
import atexit
import os
import threading
import time
from collections.abc import Set
from typing import NamedTuple

from channels.layers import get_channel_layer
from django.db import transaction

from base import log_events, tracing

EVERY_S = 0.25
WAIT_S = 1.0
QUIET_S = 5.0  # pause after a bus that did not answer
END_S = 2.0


class Hint(NamedTuple):
    type: str  # of the message; Channels calls the consumer's method of this name
    group: str


def announce_usage_on_commit(tenant_id: int) -> None:
    """On commit, hint to groups "usage" (operators) and "usage.t<id>" that usage changed."""
    _announce_on_commit(
        Hint("usage.changed", "usage"), Hint("usage.changed", f"usage.t{tenant_id}")
    )


def hint_events_on_commit() -> None:
    """On commit, hint to the group "events" that there are some."""
    _announce_on_commit(Hint("events.emitted", "events"))


def _announce_on_commit(*hints: Hint) -> None:
    transaction.on_commit(lambda: _ANNOUNCER.note(hints))


class _Announcer:
    """The hints that wait, and the thread that sends them."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Starts without hints and thread, also after a fork."""
        self._lock = threading.Lock()
        self._waiting: set[Hint] = set()
        self._wake = threading.Event()
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None

    def note(self, hints: tuple[Hint, ...]) -> None:
        with self._lock:
            self._waiting.update(hints)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="neve-hints", daemon=True)
                self._thread.start()
        self._wake.set()

    def end(self) -> None:
        """Before the interpreter ends, which kills a thread wherever it is: in a library's C++
        that aborts the process. Sends what waits, for at most END_S."""
        self._ending.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(END_S)

    def _run(self) -> None:
        with tracing.untraced(), asyncio.Runner() as runner:
            while True:
                self._wake.wait()
                self._wake.clear()
                with self._lock:
                    hints, self._waiting = self._waiting, set()
                pause_s = EVERY_S
                try:
                    runner.run(_send(hints))
                except Exception as error:  # hints may be lost
                    log_events.HINT_FAILED.log(error=type(error).__name__)
                    pause_s = QUIET_S
                if self._ending.wait(pause_s) and not self._waiting:
                    return


async def _send(hints: Set[Hint]) -> None:
    layer = get_channel_layer()
    if layer is None:
        return
    seq = time.time_ns() // 1_000_000
    for hint in sorted(hints):
        async with asyncio.timeout(WAIT_S):
            await layer.group_send(hint.group, {"type": hint.type, "seq": seq})


_ANNOUNCER = _Announcer()
atexit.register(_ANNOUNCER.end)
os.register_at_fork(after_in_child=_ANNOUNCER.begin)
