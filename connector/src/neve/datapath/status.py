"""Names of the native core's codes: outcomes of blocks (core/status.h), states of a breaker."""

from enum import IntEnum, StrEnum
from typing import Final

from neve.errors import MissReason


class BreakerState(StrEnum):
    """As `neve._core.Breaker.state` says it."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Status(IntEnum):
    """One byte for each block of a batch."""

    OK = 0
    PRESENT = 1  # a put: an equal block was there already
    EVICTED = 2  # a get: no such key; a put: it went between SET and commit
    CORRUPT = 3
    QUOTA = 4
    TIMEOUT = 5
    BREAKER = 6  # not asked: the primary's breaker is open
    UNAVAILABLE = 7  # the connection could not be made, or broke
    REFUSED = 8  # the server does not know us or our functions
    DROPPED = 9  # not asked: too many bytes are waiting already
    CANCELLED = 10
    CLOSED = 11
    ERROR = 12  # another error reply
    PENDING = 255

    @property
    def miss(self) -> MissReason | None:
        """Why the block is a miss; None when it is none."""
        return _MISSES[self]


_MISSES: Final[dict[Status, MissReason | None]] = {
    Status.OK: None,
    Status.PRESENT: None,
    Status.EVICTED: MissReason.EVICTED,
    Status.CORRUPT: MissReason.CORRUPT,
    Status.QUOTA: MissReason.QUOTA,
    Status.TIMEOUT: MissReason.TIMEOUT,
    Status.BREAKER: MissReason.BREAKER,
    Status.UNAVAILABLE: MissReason.BREAKER,
    Status.REFUSED: MissReason.BREAKER,
    Status.DROPPED: MissReason.BREAKER,
    Status.CANCELLED: MissReason.TIMEOUT,
    Status.CLOSED: MissReason.BREAKER,
    Status.ERROR: MissReason.BREAKER,
    Status.PENDING: MissReason.TIMEOUT,
}
