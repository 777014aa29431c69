"""Jobs: how many failed, wait or run."""

from collections import Counter
from datetime import datetime, timedelta

from django.db.models import Count, Q

from catalog.models import Job
from dashboard.access import Viewer


def failed_jobs(seen_by: Viewer, *, now: datetime) -> int:
    """Jobs that failed in the last hour."""
    return seen_by.rows_with_platform(Job).filter(_failed_lately(now)).count()


def jobs_by_kind(seen_by: Viewer, *, now: datetime) -> Counter[tuple[str, str]]:
    """(kind, state) → jobs that wait, run, or failed in the last hour. One query."""
    open_ = Q(state__in=(Job.State.QUEUED, Job.State.RUNNING))
    rows = seen_by.rows_with_platform(Job).filter(open_ | _failed_lately(now)).order_by()
    found = rows.values_list("kind", "state").annotate(jobs=Count("pk"))
    return Counter({(kind, state): jobs for kind, state, jobs in found})


def _failed_lately(now: datetime) -> Q:
    return Q(state=Job.State.FAILED, finished_at__gte=now - timedelta(hours=1))
