"""Background work: the Job row is the status, and `enqueue` is the only way to start a task.

Tasks are called by name (`workers.<kind>`), since nothing in `platform/` imports the workers.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

from celery import current_app
from django.db import transaction
from django.utils import timezone
from kombu.exceptions import OperationalError

from catalog.models import Job

log = logging.getLogger("neve.jobs")


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
        fields: dict[str, Any] = {"progress": fraction}
        if blocks is not None:
            fields["blocks"] = blocks
        if bytes_ is not None:
            fields["bytes"] = bytes_
        Job.unscoped.filter(pk=self.job.pk).update(**fields)


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
        job.state, job.started_at = Job.State.RUNNING, timezone.now()
        job.finished_at, job.error = None, ""
        job.save(update_fields=["state", "started_at", "finished_at", "error"])
    try:
        yield JobRun(job)
    except BaseException as error:
        _finish(job_id, state=Job.State.FAILED, error=f"{type(error).__name__}: {error}"[:2000])
        raise
    _finish(job_id, state=Job.State.DONE, progress=1.0)


def _finish(job_id: UUID | str, **fields: Any) -> None:
    Job.unscoped.filter(pk=job_id).update(finished_at=timezone.now(), **fields)
