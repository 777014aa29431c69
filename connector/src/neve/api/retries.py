"""When a request is repeated, and after how long."""

import time
from email.utils import parsedate_to_datetime

RETRIED_STATUSES = frozenset({429, 502, 503, 504})
_FIRST_PAUSE_S = 0.25
_LONGEST_PAUSE_S = 8.0
_LONGEST_WAIT_S = 60.0  # of Retry-After: a minute is the window of the platform's rate limits


def pause_s(attempt: int, asked_s: float | None, chance: float) -> float:
    """Seconds before attempt `attempt` + 2: as the server asked, else doubling with jitter.

    `chance` is a random number from 0 to 1; it spreads clients that failed together.
    """
    if asked_s is not None:
        return min(asked_s, _LONGEST_WAIT_S) + _FIRST_PAUSE_S * chance
    longest = min(_FIRST_PAUSE_S * 2.0 ** min(attempt, 10), _LONGEST_PAUSE_S)
    return longest * (0.5 + 0.5 * chance)


def retry_after_s(header: str | None) -> float | None:
    """Seconds, of a number or a date of HTTP; None if there is none that can be read."""
    if header is None:
        return None
    if header.strip().isdecimal():
        return float(header)
    try:
        return max(0.0, parsedate_to_datetime(header).timestamp() - time.time())
    except ValueError:
        return None
