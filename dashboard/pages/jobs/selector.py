"""Jobs as the page shows them, and how many failed, wait or run."""

from collections import Counter
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db.models import Count, Q

from catalog.models import Job
from dashboard.formats import count_quantity
from tenants.principal import Principal

# Members of a job's report → what they mean.
NOTES = {
    "refused_blocks": "refused: the cold tier is full",
    "waiting_blocks": "waiting: segments take all that the quota lets them",
    "unreadable_blocks": "lost: unreadable",
    "evicted_blocks": "evicted from the cold tier for others",
}


@dataclass(frozen=True)
class JobRow:
    """`notes`: what a finished job could not do, and what it cost."""

    job: Job
    notes: list[str]


def job_row(job: Job) -> JobRow:
    return JobRow(job, _notes(job.detail))


def failed_jobs(caller: Principal, *, now: datetime) -> int:
    """Jobs that failed in the last hour."""
    return caller.rows(Job).filter(_failed_lately(now)).count()


def jobs_by_kind(caller: Principal, *, now: datetime) -> Counter[tuple[str, str]]:
    """(kind, state) → jobs that wait, run, or failed in the last hour. One query."""
    open_ = Q(state__in=(Job.State.QUEUED, Job.State.RUNNING))
    rows = caller.rows(Job).filter(open_ | _failed_lately(now)).order_by()
    found = rows.values_list("kind", "state").annotate(jobs=Count("pk"))
    return Counter({(kind, state): jobs for kind, state, jobs in found})


def _failed_lately(now: datetime) -> Q:
    return Q(state=Job.State.FAILED, finished_at__gte=now - timedelta(hours=1))


def _notes(report: Any) -> list[str]:
    counts = report if isinstance(report, dict) else {}
    notes = [
        f"{count_quantity(count)} blocks {words}"
        for name, words in NOTES.items()
        if type(count := counts.get(name)) is int and count > 0
    ]
    repaired = counts.get("repaired")
    damaged = [
        count
        for name, count in (repaired.items() if isinstance(repaired, dict) else ())
        if name.startswith("damaged_") and type(count) is int
    ]
    if damaged:
        notes.append(f"{count_quantity(sum(damaged))} damaged pieces of an index repaired")
    return notes
