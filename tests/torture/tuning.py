"""Shorter waits: a second of the torture test holds the events of a day.

Code and order of the steps stay as they are.
"""

from datetime import timedelta
from functools import partial

from catalog import jobs
from tiering import flush, hot_reading, recovery, segments
from tiering.compaction import claims, run, sweep
from tiering.compaction.plan import Policy
from tiering.moving import copying
from tiering.moving import plan as moving_plan
from tiering.moving import run as moving
from tiering.reconcile import leftovers, objects, rounds
from tiering.reconcile import segments as damaged

GRACE_S = 60


def hurry() -> None:
    """Sets the shorter waits in this process."""
    flush.GATHER_S = 0
    flush.LEASE_S = 2
    flush.PASS_S = 1
    segments.LEAST_BYTES = segments.MOST_BYTES = 256 << 10
    run.Policy = partial(
        Policy, least_bytes=256 << 10, most_bytes=512 << 10, fan_in=3, old_s=1, range_bytes=64 << 10
    )
    claims.LEASE = timedelta(seconds=2)
    sweep.SETTLED, sweep.GRACE = timedelta(seconds=0.3), timedelta(seconds=0.7)
    moving.LEASE, moving.GRACE = timedelta(seconds=2), timedelta(seconds=0.7)
    moving.PASS_S, moving_plan.STAYS_S = 1, 0.2
    copying.RANGE_BYTES = 64 << 10
    hot_reading.READ_S = 5
    jobs.FIRST_RETRY_S, jobs.LAST_RETRY_S = 0.01, 0.1
    recovery.LEASE_S = 1.0
    leftovers.ABANDONED = objects.GRACE = damaged.GRACE = timedelta(seconds=GRACE_S)
    rounds.LEASE, rounds.PAUSE = timedelta(seconds=2), timedelta()
