"""What can go wrong, by what the caller should do about it, and why a block was missed.

A miss is not an exception: batches return `None` (ok) or a `MissReason` per block.
"""

from enum import StrEnum


class MissReason(StrEnum):
    """Why a block was not served. Stored in counters and shown on the dashboard by these names."""

    NEVER_STORED = "never_stored"
    EVICTED = "evicted"
    EXPIRED = "expired"
    QUOTA = "quota"
    FINGERPRINT = "fingerprint"
    TIMEOUT = "timeout"
    BREAKER = "breaker"
    CORRUPT = "corrupt"
    CLOCK = "clock"
    DENIED = "denied"
    IDLE = "idle"
    EVICTED_COLD = "evicted_cold"
    UNFLUSHED = "unflushed"
    STORE_AWAY = "store_away"  # the S3 store that holds it does not answer the platform
    UNSUPPORTED = "unsupported"  # its kind or codec is of a newer version of Neve


class NeveError(Exception):
    """Root of all errors that this library raises."""


class Misuse(NeveError):
    """The call itself is wrong: fix the code or the configuration named by `field`."""

    def __init__(self, detail: str, *, field: str | None = None) -> None:
        super().__init__(f"{field}: {detail}" if field else detail)
        self.field = field
        self.detail = detail


class Refused(NeveError):
    """The platform said no (key, quota, node limit, fingerprint): repeating the call won't help."""

    def __init__(
        self,
        detail: str,
        *,
        field: str | None = None,
        status: int | None = None,
        kind: str | None = None,
    ) -> None:
        names_it = not field or detail.startswith(f"{field}: ")  # as a clash does
        super().__init__(detail if names_it else f"{field}: {detail}")
        self.field = field
        self.detail = detail
        self.status = status
        self.kind = kind  # the last word of the problem's type, such as "tenant-cut-off"

    @property
    def is_malformed(self) -> bool:
        """The request itself is wrong (see `field`): no person at the platform can help it."""
        return self.status in (400, 422)


class Unavailable(NeveError):
    """A server could not be reached or is not ready: serve without Neve and try again later."""


class DeadlineExceeded(NeveError):
    """The answer did not come in time: treat it as a miss."""


class Corrupt(NeveError):
    """Bytes that are not what they claim to be: treat them as a miss and forget them."""


class Closed(NeveError):
    """The client was closed: nothing more can be submitted."""
