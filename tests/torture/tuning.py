"""Shorter waits, so that a second of the torture test holds what a day of the platform does.

Code and order of the steps stay as they are.
"""

from datetime import timedelta

from catalog import jobs
from workers import flush, hot_reading, reconcile, segments

GRACE_S = 120


def hurry() -> None:
    """For this process."""
    flush.GATHER_S = 0
    flush.LEASE_S = 2
    flush.PASS_S = 1
    segments.LEAST_BYTES = segments.MOST_BYTES = 256 << 10
    hot_reading.READ_S = 5
    jobs.FIRST_RETRY_S, jobs.LAST_RETRY_S = 0.01, 0.1
    reconcile.ABANDONED = timedelta(seconds=GRACE_S)
