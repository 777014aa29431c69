"""One run of reconcile: a slice of every side.

Trouble on one side, of one tenant or in one bucket does not stop the others.
"""

import time
from collections.abc import Callable

from base import answers
from catalog import jobs
from tiering.reconcile import leftovers
from tiering.reconcile.blocks import look_at_blocks
from tiering.reconcile.keys import look_at_keys
from tiering.reconcile.objects import look_at_objects
from tiering.reconcile.report import Report
from tiering.reconcile.segments import look_at_copies, look_at_segments

RUN_S = 240.0


def reconcile(
    tenants: list[int], *, progress: Callable[[float, Report], object] = lambda share, report: None
) -> Report:
    """`progress` gets the share of sides that are done. Raises the errors of the sides."""
    report = Report(ends_at=time.monotonic() + RUN_S)
    sides: list[Callable[[], object]] = [
        lambda: report.found("lost_jobs", jobs.fail_lost()),
        lambda: report.found("old_jobs", leftovers.prune_jobs()),
        lambda: report.found("old_answers", answers.prune()),
        lambda: leftovers.remove_abandoned_segments(report),
        lambda: look_at_segments(tenants, report),
        lambda: look_at_copies(tenants, report),
        lambda: look_at_blocks(tenants, report),
        lambda: look_at_keys(report),
        lambda: look_at_objects(report),
    ]
    for done, side in enumerate(sides, 1):
        with report.apart(f"side {done}"):
            side()
        progress(done / len(sides), report)
    report.raise_errors()
    return report
