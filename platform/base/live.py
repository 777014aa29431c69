"""Change hints over the channel layer: who gets one fetches the data from where they stand.

Hints may be lost. A thread of each process sends them, so that no request waits for valkey-bus: at
most one message in `EVERY_S` to each group, however much changes. A message names the tenants whose
rows changed, for web processes; browsers hear only that something did, and those with a page that
shows nothing of heartbeats hear of no heartbeat.
"""

import asyncio
import atexit
import os
import threading
import time
from collections.abc import Mapping

from channels.layers import get_channel_layer
from django.db import transaction

from base import log_events, tracing

EVERY_S = 0.25
WAIT_S = 1.0
QUIET_S = 5.0  # pause after a bus that did not answer
END_S = 2.0
CHANGES = "changes"  # group of web processes: {"type", "seq", "tenants": [id or None, …]},
# "only_heartbeats": those of them with nothing but heartbeats,
# and "people": [id, …] whose sessions may have ended
EVENTS = "events"  # group of readers of the event feed: {"type", "seq"}

# In a set of changed tenants: there are new events; a person, as the negative of their number.
_EMITTED = 0


def hint_on_commit(tenant_id: int | None) -> None:
    """On commit, hint that rows of a tenant changed, or with None those of the platform itself."""
    _hint_on_commit(tenant_id)


def hint_heartbeat_on_commit(tenant_id: int) -> None:
    """On commit, hint that a node of a tenant told what it did."""
    _hint_on_commit(tenant_id, is_heartbeat=True)


def recheck_person_on_commit(user_id: int) -> None:
    """On commit, hint to the sockets of a person that some of their sessions may have ended."""
    _hint_on_commit(-user_id)


def hint_events_on_commit() -> None:
    """On commit, hint to the group `EVENTS` that there are some."""
    _hint_on_commit(_EMITTED)


def _hint_on_commit(what: int | None, *, is_heartbeat: bool = False) -> None:
    transaction.on_commit(lambda: _ANNOUNCER.note(what, is_heartbeat=is_heartbeat))


class _Announcer:
    """The hints that wait, and the thread that sends them."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Starts without hints and thread, also after a fork."""
        self._lock = threading.Lock()
        self._waiting: dict[int | None, bool] = {}  # True: nothing but heartbeats
        self._wake = threading.Event()
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None

    def note(self, what: int | None, *, is_heartbeat: bool = False) -> None:
        with self._lock:
            self._waiting[what] = is_heartbeat and self._waiting.get(what, True)
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
                    changed, self._waiting = self._waiting, {}
                pause_s = EVERY_S
                try:
                    runner.run(_send(changed))
                except Exception as error:  # hints may be lost
                    log_events.HINT_FAILED.log(error=type(error).__name__)
                    pause_s = QUIET_S
                if self._ending.wait(pause_s) and not self._waiting:
                    return


async def _send(changed: Mapping[int | None, bool]) -> None:
    layer = get_channel_layer()
    if layer is None:
        return
    seq = time.time_ns() // 1_000_000
    if _EMITTED in changed:
        async with asyncio.timeout(WAIT_S):
            await layer.group_send(EVENTS, {"type": "events.emitted", "seq": seq})
    tenants = [each for each in changed if each is None or each > 0]
    people = [-each for each in changed if each is not None and each < 0]
    if tenants or people:
        only_heartbeats = [each for each in tenants if changed[each]]
        message = {"type": "rows.changed", "seq": seq, "tenants": tenants}
        message |= {"only_heartbeats": only_heartbeats}
        async with asyncio.timeout(WAIT_S):
            await layer.group_send(CHANGES, message | ({"people": people} if people else {}))


_ANNOUNCER = _Announcer()
atexit.register(_ANNOUNCER.end)
os.register_at_fork(after_in_child=_ANNOUNCER.begin)
