"""Stops asking a storage that is in trouble, and finds out by itself when it is well again."""

import threading
import time
from enum import StrEnum
from typing import Final

FAILURES_TO_OPEN: Final = 3
FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 30.0
# A probe whose end nobody reported (its caller died) must not keep the breaker half open for ever.
PROBE_S: Final = 10.0


class BreakerState(StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Breaker:
    """Opens after three failures in a row, for 1 s growing to 30 s; then lets one probe through.

    May be shared by threads. Every `allow()` that said True is followed by one of `succeed`,
    `fail` or `forgive`.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._state = BreakerState.CLOSED
        self._failures = 0
        self._pause_s = FIRST_PAUSE_S
        self._until = 0.0

    @property
    def state(self) -> BreakerState:
        with self._lock:
            return self._state

    @property
    def is_open(self) -> bool:
        """True while asking would be refused. Unlike `allow`, takes no probe."""
        with self._lock:
            return self._state is not BreakerState.CLOSED and time.monotonic() < self._until

    def allow(self) -> bool:
        """Whether to ask now. The first True after a pause is the probe, and the only one."""
        with self._lock:
            if self._state is BreakerState.CLOSED:
                return True
            now = time.monotonic()
            if now < self._until:
                return False
            self._state = BreakerState.HALF_OPEN
            self._until = now + PROBE_S
            return True

    def succeed(self) -> None:
        with self._lock:
            self._state = BreakerState.CLOSED
            self._failures = 0
            self._pause_s = FIRST_PAUSE_S

    def fail(self) -> bool:
        """Returns whether this failure opened it, after it was closed."""
        with self._lock:
            self._failures += 1
            now = time.monotonic()
            if self._state is BreakerState.OPEN and now < self._until:
                return False  # asked before it opened
            was_closed = self._state is BreakerState.CLOSED
            if was_closed and self._failures < FAILURES_TO_OPEN:
                return False
            if was_closed:
                self._pause_s = FIRST_PAUSE_S
            self._state = BreakerState.OPEN
            self._until = now + self._pause_s
            self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
            return was_closed

    def forgive(self) -> None:
        """The question ended without saying anything of the storage; the next one may probe."""
        with self._lock:
            if self._state is BreakerState.HALF_OPEN:
                self._until = 0.0

    def probe_now(self) -> None:
        """Ends the pause: there is news, such as another address."""
        with self._lock:
            self._until = 0.0
            self._pause_s = FIRST_PAUSE_S
