"""Background work: the Job row is the status. `enqueue` starts a task for somebody who asked;
`attempt` is for work that a task found by itself.

A failed attempt is repeated in the same row, later each time; until then nobody tries that kind of
work for that tenant, so that trouble in storage meets few attempts instead of one a second.
Tasks are called by name (`workers.<kind>`), since nothing in `platform/` imports the workers.
"""

import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from celery import current_app
from django.db import transaction
from django.db.models import F, Q
from django.utils import timezone
from kombu.exceptions import OperationalError

from catalog.models import Job

log = logging.getLogger("neve.jobs")

FIRST_RETRY_S, LAST_RETRY_S = 1.0, 60.0
LOST = timedelta(minutes=16)  # without a sign of life: longer than Celery lets any task run


class JobDone(Exception):
    """The job was done before: a message that was delivered twice. Nothing is left to do."""


class JobRun:
    """A running job's own way to tell how far it is."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def progress(
        self, fraction: float, *, blocks: int | None = None, bytes_: int | None = None
    ) -> None:
        """`fraction` is 0 to 1; `blocks` and `bytes_` are totals so far."""
        fields: dict[str, Any] = {"progress": fraction, "seen_at": timezone.now()}
        if blocks is not None:
            fields["blocks"] = blocks
        if bytes_ is not None:
            fields["bytes"] = bytes_
        Job.unscoped.filter(pk=self.job.pk).update(**fields)

    def detail(self, report: dict[str, Any]) -> None:
        """Facts of the kind of work, shown as they are."""
        Job.unscoped.filter(pk=self.job.pk).update(detail=report, seen_at=timezone.now())


def enqueue(kind: str, *, tenant_id: int | None = None, **ids: int | str) -> Job:
    """Makes the row now and starts `workers.<kind>(job_id=…, **ids)` on commit.

    A broker that is down fails the job, not the caller.
    """
    job: Job = Job.unscoped.create(kind=kind, tenant_id=tenant_id, detail=ids)

    def send() -> None:
        try:
            current_app.send_task(f"workers.{kind}", kwargs={"job_id": str(job.pk), **ids})
        except OperationalError as error:
            log.warning("enqueue_failed job=%s error=%s", job.pk, error)
            Job.unscoped.filter(pk=job.pk).update(
                state=Job.State.FAILED,
                finished_at=timezone.now(),
                error="The broker did not take the task: is valkey-bus up?",
            )

    transaction.on_commit(send)
    return job


@contextmanager
def job_run(job_id: UUID | str) -> Iterator[JobRun]:
    """Marks the job running, then done, or failed with the error, which it raises again.

    A redelivered job (its worker died) runs anew. Raises JobDone when it is done already.
    """
    with transaction.atomic():
        job: Job = Job.unscoped.select_for_update().get(pk=job_id)
        if job.state == Job.State.DONE:
            raise JobDone(str(job_id))
        Job.unscoped.filter(pk=job_id).update(**_begun())
    try:
        yield JobRun(job)
    except BaseException as error:
        _finish(job_id, state=Job.State.FAILED, error=_told(error))
        raise
    _finish(job_id, state=Job.State.DONE, progress=1.0)


def is_waiting(kind: str, tenant_id: int | None) -> bool:
    """Whether this kind of work failed, and its next attempt is yet to come.

    One that is further away than any pause was planned before the clock was set back.
    """
    now = timezone.now()
    soon = (now, now + timedelta(seconds=LAST_RETRY_S))
    rows = Job.unscoped.filter(kind=kind, tenant_id=tenant_id, retry_at__range=soon)
    return rows.exists()


@contextmanager
def attempt(kind: str, tenant_id: int | None) -> Iterator[JobRun]:
    """Runs work that was found, in a new row or in a failed attempt's; raises its error again.

    Ask `is_waiting` first. Several may run at once: the work itself sees to that.
    """
    job = _failed_before(kind, tenant_id) or Job.unscoped.create(
        kind=kind, tenant_id=tenant_id, **(_begun() | {"attempts": 1})
    )
    try:
        yield JobRun(job)
    except BaseException as error:
        retry_at = timezone.now() + timedelta(seconds=pause_s(job.attempts))
        _finish(job.pk, state=Job.State.FAILED, error=_told(error), retry_at=retry_at)
        raise
    # What failed beside it needs no attempt of its own any more.
    Job.unscoped.filter(kind=kind, tenant_id=tenant_id, retry_at__isnull=False).update(
        retry_at=None
    )
    _finish(job.pk, state=Job.State.DONE, progress=1.0)


def pause_s(attempts: int) -> float:
    """How long to wait after so many: twice as long each time, spread by chance."""
    longest = min(FIRST_RETRY_S * 2.0 ** min(attempts - 1, 20), LAST_RETRY_S)
    return longest * random.uniform(0.5, 1.0)


def bury_lost() -> int:
    """Jobs whose worker was killed fail; their work is found again by itself. Returns how many."""
    now = timezone.now()
    # A sign from the future was given before the clock was set back.
    is_lost = Q(seen_at__lt=now - LOST) | Q(seen_at__gt=now + LOST)
    return Job.unscoped.filter(is_lost, state=Job.State.RUNNING).update(
        state=Job.State.FAILED, finished_at=now, error="Its worker gave no sign of life any more."
    )


def _failed_before(kind: str, tenant_id: int | None) -> Job | None:
    """The row of a failed attempt, taken for the next one; None: none, or another took it."""
    failed = Job.unscoped.filter(
        kind=kind, tenant_id=tenant_id, state=Job.State.FAILED, retry_at__isnull=False
    ).first()
    if failed is None:
        return None
    mine = Job.unscoped.filter(pk=failed.pk, state=Job.State.FAILED, attempts=failed.attempts)
    if not mine.update(**_begun()):
        return None
    failed.refresh_from_db()
    return failed


def _begun() -> dict[str, Any]:
    now: datetime = timezone.now()
    return {
        "state": Job.State.RUNNING,
        "attempts": F("attempts") + 1,
        "started_at": now,
        "seen_at": now,
        "finished_at": None,
        "retry_at": None,
        "error": "",
    }


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:2000]


def _finish(job_id: UUID | str, **fields: Any) -> None:
    Job.unscoped.filter(pk=job_id).update(finished_at=timezone.now(), **fields)
