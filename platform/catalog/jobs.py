"""Background work: the Job row is the status. `catalog.kinds` lists the kinds.

`enqueue` requests a job: it makes the row at once, its message carries only the row's id, and a
failed attempt is sent again after growing pauses, up to REQUEST_ATTEMPTS. `attempt` is for work
that a tick found: a failed attempt is repeated in the same row without limit, and during its pause
no tick tries that kind for that tenant, so a storage outage meets few attempts, not one a second.
"""

import random
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from celery import current_app
from django.db import transaction
from django.db.models import F, Q, QuerySet
from django.utils import timezone
from kombu.exceptions import OperationalError

from base import live, log_events
from base.preconditions import require_unchanged
from base.problems import Problem
from catalog.kinds import KINDS, REQUEST_ATTEMPTS, BadRequest, kind_of
from catalog.models import Job
from events.services import Subject, emit
from tenants.audit import Actor
from tenants.audit import record as audit
from tenants.models import Tenant

FIRST_RETRY_S, LAST_RETRY_S = 1.0, 60.0
LOST = timedelta(minutes=16)  # without a report: longer than Celery lets any task run
UNSENT = timedelta(seconds=60)  # a queued job's message may be lost after so long
LOG_LINES = 200  # the last ones of a job
TRACE_CHARS = 4000  # of a failed attempt, the innermost calls
MOST_RETRIED = 100  # unfinished jobs of a kind and tenant: with so many, none is retried


# Requests that will run: for the first time, or again after a failure that was not the last.
_WAITS = Q(state=Job.State.QUEUED) | Q(state=Job.State.FAILED, retry_at__isnull=False)


class JobDone(Exception):
    """The job ended before, or runs elsewhere: its message came twice. Nothing to do."""


class GiveUp(Exception):
    """A requested job's failure that a repetition would meet again: it is not tried again."""


class JobCancelled(Exception):
    """Somebody cancelled this job: raised by its next report."""


class JobContinues(Exception):
    """The work is not finished and noted how far it is: the job goes back into its queue, so that
    others get their turn. Raised by work, not caught by it."""


class JobRun:
    """Reports the progress of a running job. Each call also shows that its worker lives.

    Every method raises JobCancelled once somebody cancelled the job: do not catch it.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        live.hint_on_commit(job.tenant_id)

    def progress(
        self, fraction: float, *, blocks: int | None = None, bytes_: int | None = None
    ) -> None:
        """`fraction` is 0 to 1; `blocks` and `bytes_` are totals so far."""
        fields: dict[str, Any] = {"progress": fraction}
        if blocks is not None:
            fields["blocks"] = blocks
        if bytes_ is not None:
            fields["bytes"] = bytes_
        self._note(**fields)

    def detail(self, report: dict[str, Any]) -> None:
        """Replaces the facts of this kind of work, shown as they are."""
        self._note(detail=report)

    def log(self, words: str) -> None:
        """Adds a line to the job's log, which keeps the last LOG_LINES."""
        line = {"at": timezone.now().isoformat(timespec="milliseconds"), "words": words}
        self.job.log = [*self.job.log, line][-LOG_LINES:]
        self._note(log=self.job.log)

    def _note(self, **fields: Any) -> None:
        row = Job.unscoped.filter(pk=self.job.pk)
        row.update(seen_at=timezone.now(), **fields)
        live.hint_on_commit(self.job.tenant_id)
        if self.job.is_requested and row.filter(cancel_asked_at__isnull=False).exists():
            raise JobCancelled


def enqueue(kind: str, *, tenant_id: int | None = None, by: str = "", **arguments: Any) -> Job:
    """Requests a job: makes its row now and sends `workers.<kind>(job_id=…)` on commit.

    `arguments`: JSON values. `by`: the name of the requester. A broker that is down delays the job,
    and does not fail the caller. Raises BadRequest for a kind, tenant or argument that no job can
    have.
    """
    kind_of(kind).check(tenant_id, arguments)
    job: Job = Job.unscoped.create(
        kind=kind, tenant_id=tenant_id, arguments=arguments, is_requested=True, requested_by=by
    )
    transaction.on_commit(lambda: _send(job))
    live.hint_on_commit(tenant_id)
    return job


def enqueue_once(
    kind: str, *, tenant_id: int | None = None, by: str = "", **arguments: int | str
) -> Job | None:
    """`enqueue`, unless such a job with these arguments waits or runs: then None."""
    unfinished = _WAITS | Q(state=Job.State.RUNNING)
    same = Job.unscoped.filter(unfinished, kind=kind, tenant=tenant_id, arguments=arguments)
    return None if same.exists() else enqueue(kind, tenant_id=tenant_id, by=by, **arguments)


def cancel(job: Job) -> bool:
    """Ends a requested job: a waiting one now, a running one at its next report.

    False: it ended before, or was not requested (a tick would find its work again).
    """
    mine = Job.unscoped.filter(pk=job.pk, is_requested=True)
    now = timezone.now()
    live.hint_on_commit(job.tenant_id)
    if mine.filter(_WAITS).update(state=Job.State.CANCELLED, finished_at=now, retry_at=None):
        return True
    return bool(mine.filter(state=Job.State.RUNNING).update(cancel_asked_at=now))


def retry(job: Job) -> bool:
    """Runs a requested job that failed or was cancelled once more, from the beginning."""
    over = Job.unscoped.filter(
        pk=job.pk, is_requested=True, state__in=(Job.State.FAILED, Job.State.CANCELLED)
    )
    fields = {
        **{"state": Job.State.QUEUED, "attempts": 0, "progress": 0.0, "error": ""},
        **dict.fromkeys(("retry_at", "cancel_asked_at", "finished_at"), None),
    }
    if not over.update(**fields):
        return False
    transaction.on_commit(lambda: _send(job))
    live.hint_on_commit(job.tenant_id)
    return True


@transaction.atomic
def request(*, kind: str, tenant: Tenant | None, actor: Actor) -> Job:
    """`enqueue` for a person or a key, audited. Raises Problem (malformed)."""
    try:
        job = enqueue(kind, tenant_id=tenant.pk if tenant else None, by=actor.name)
    except BadRequest as error:
        raise Problem("malformed", str(error), field=error.name) from error
    _audit(job, "job.request", actor)
    return job


@transaction.atomic
def cancel_by(job: Job, actor: Actor) -> bool:
    """`cancel`, audited."""
    require_unchanged(job)
    if done := cancel(job):
        _audit(job, "job.cancel", actor)
    return done


@transaction.atomic
def retry_by(job: Job, actor: Actor) -> bool:
    """`retry`, audited. Raises Problem (limit-reached)."""
    require_unchanged(job)
    unfinished = Job.unscoped.filter(
        kind=job.kind, tenant=job.tenant, state__in=(Job.State.QUEUED, Job.State.RUNNING)
    )
    if unfinished.count() >= MOST_RETRIED:
        raise Problem(
            "limit-reached",
            f"jobs: {MOST_RETRIED} {job.kind} jobs of the tenant wait or run.",
            limit="jobs",
            most=MOST_RETRIED,
        )
    if done := retry(job):
        _audit(job, "job.retry", actor)
    return done


def _audit(job: Job, action: str, actor: Actor) -> None:
    after = {"kind": job.kind, "arguments": job.arguments}
    audit(actor=actor, tenant_id=job.tenant_id, action=action, obj=job, before=None, after=after)


def send_again() -> int:
    """Sends requests whose pause is over or whose message may be lost. Returns how many."""
    now = timezone.now()
    unsent = Q(state=Job.State.QUEUED) & ~Q(sent_at__range=(now - UNSENT, now + UNSENT))
    to_retry = Q(state=Job.State.FAILED, retry_at__isnull=False) & ~Q(
        retry_at__range=(now, now + timedelta(seconds=LAST_RETRY_S))
    )
    found = list(Job.unscoped.filter(unsent | to_retry, is_requested=True)[:100])
    for job in found:
        _send(job)
    return len(found)


def _send(job: Job) -> None:
    """A second message does no harm: `job_run` takes a job once."""
    try:
        current_app.send_task(f"workers.{job.kind}", kwargs={"job_id": str(job.pk)})
    except OperationalError as error:
        log_events.ENQUEUE_FAILED.log(job=job.pk, error=error)
    else:
        Job.unscoped.filter(pk=job.pk).update(sent_at=timezone.now())


@contextmanager
def job_run(job_id: UUID | str, *, is_redelivered: bool = False) -> Iterator[JobRun]:
    """Runs a requested job: marks it running, then done, cancelled, queued again (JobContinues),
    or failed with the error, which is raised again; `send_again` then repeats the job.

    Raises JobDone if it ended before, its last attempt failed, another worker has it, or it waits
    until others of its kind end (`Kind.at_once`).
    `is_redelivered`: the broker reports that worker as dead, so the job runs anew.
    """
    takes = _WAITS | Q(state=Job.State.RUNNING) if is_redelivered else _WAITS
    if not Job.unscoped.filter(takes, pk=job_id).update(**_begun()):
        raise JobDone(str(job_id))
    job: Job = Job.unscoped.get(pk=job_id)
    if not _has_turn(job):
        fields = {"state": Job.State.QUEUED, "attempts": job.attempts - 1, "started_at": None}
        Job.unscoped.filter(pk=job_id).update(**fields)
        raise JobDone(str(job_id))
    try:
        yield JobRun(job)
    except JobCancelled:
        _finish(job, state=Job.State.CANCELLED)
    except JobContinues:
        Job.unscoped.filter(pk=job_id).update(state=Job.State.QUEUED, attempts=0, sent_at=None)
        _send(job)
    except BaseException as error:
        is_over = job.attempts >= REQUEST_ATTEMPTS or isinstance(error, GiveUp)
        retry_at = None if is_over else timezone.now() + timedelta(seconds=pause_s(job.attempts))
        with transaction.atomic():
            _fail(job, error, retry_at)
            if is_over:
                _tell("job.failed", job)
        raise
    else:
        with transaction.atomic():
            _finish(job, state=Job.State.DONE, progress=1.0)
            _tell("job.done", job)
    finally:
        _send_next(job.kind)


def _has_turn(job: Job) -> bool:
    """Whether fewer others of its kind, which began before it, run than may."""
    kind = KINDS.get(job.kind)
    if kind is None or not kind.at_once:
        return True
    began = Q(started_at__lt=job.started_at) | Q(started_at=job.started_at, pk__lt=job.pk)
    before = Job.unscoped.filter(began, kind=job.kind, state=Job.State.RUNNING)
    running: list[int | None] = list(before.values_list("tenant_id", flat=True))
    return len(running) < kind.at_once and running.count(job.tenant_id) < kind.at_once_of_tenant


def _send_next(name: str) -> None:
    """After a job of a kind that is limited: the oldest waiting one of each tenant may begin.

    Their messages were taken while others ran. One that is lost is sent again by `send_again`.
    """
    kind = KINDS.get(name)
    if kind is None or not kind.at_once:
        return
    waiting = Job.unscoped.filter(kind=name, state=Job.State.QUEUED, is_requested=True)
    oldest: dict[int | None, Job] = {}
    for job in waiting.order_by("created_at", "pk").only("kind", "tenant")[:1000]:
        oldest.setdefault(job.tenant_id, job)
    for job in list(oldest.values())[: kind.at_once]:
        _send(job)


def _tell(kind: str, job: Job) -> None:
    """Of a requested job that is over."""
    data: dict[str, Any] = {"kind": job.kind, "requested_by": job.requested_by}
    if kind == "job.failed":
        data["attempts"] = job.attempts
    subject: Subject = {"type": "job", "id": str(job.pk), "name": job.kind}
    emit(kind, tenant_id=job.tenant_id, subject=subject, data=data)


def is_waiting(kind: str, tenant_id: int | None) -> bool:
    """Whether work of this kind that a tick found has failed and pauses before its next attempt.

    An attempt further ahead than any pause is ignored: the clock was set back.
    """
    now = timezone.now()
    soon = (now, now + timedelta(seconds=LAST_RETRY_S))
    return _found(kind, tenant_id).filter(retry_at__range=soon).exists()


@contextmanager
def attempt(kind: str, tenant_id: int | None) -> Iterator[JobRun]:
    """Runs work that a tick found, in a new row or a failed attempt's; raises its error again.

    Ask `is_waiting` first. Several may run at once: the work itself takes leases.
    """
    job = _failed_before(kind, tenant_id) or Job.unscoped.create(
        kind=kind, tenant_id=tenant_id, **(_begun() | {"attempts": 1})
    )
    try:
        yield JobRun(job)
    except BaseException as error:
        retry_at = timezone.now() + timedelta(seconds=pause_s(job.attempts))
        _fail(job, error, retry_at)
        raise
    # Attempts that failed beside this one need no repetition.
    _found(kind, tenant_id).filter(retry_at__isnull=False).update(retry_at=None)
    _finish(job, state=Job.State.DONE, progress=1.0)


def pause_s(attempts: int) -> float:
    """Pause after so many attempts: doubles each time, with random jitter."""
    longest = min(FIRST_RETRY_S * 2.0 ** min(attempts - 1, 20), LAST_RETRY_S)
    return longest * random.uniform(0.5, 1.0)


def fail_lost() -> int:
    """Marks jobs of killed workers as failed. Ticks find their work again; requests are sent again.

    Returns how many there were.
    """
    now = timezone.now()
    # A time in the future was written before the clock was set back.
    is_lost = Q(seen_at__lt=now - LOST) | Q(seen_at__gt=now + LOST)
    lost = Job.unscoped.filter(is_lost, state=Job.State.RUNNING)
    failed = {
        "state": Job.State.FAILED,
        "finished_at": now,
        "error": "Its worker gave no sign of life any more.",
    }
    to_retry = lost.filter(is_requested=True, attempts__lt=REQUEST_ATTEMPTS)
    count: int = to_retry.update(retry_at=now, **failed)
    with transaction.atomic():
        over = list(lost.select_for_update().filter(is_requested=True))
        count += lost.update(**failed)
        for job in over:
            _tell("job.failed", job)
    return count


def _found(kind: str, tenant_id: int | None) -> QuerySet[Job]:
    """Rows of work that ticks found."""
    return Job.unscoped.filter(kind=kind, tenant=tenant_id, is_requested=False)


def _failed_before(kind: str, tenant_id: int | None) -> Job | None:
    """Takes the row of a failed attempt for the next one; None: none, or another took it."""
    failed = _found(kind, tenant_id).filter(state=Job.State.FAILED, retry_at__isnull=False).first()
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


def _fail(job: Job, error: BaseException, retry_at: datetime | None) -> None:
    """The log gets where it happened: files, lines and code of the platform, no values."""
    trace = "".join(traceback.format_tb(error.__traceback__))[-TRACE_CHARS:]
    words = f"attempt {job.attempts} failed: {_text(error)}\n{trace}".rstrip()
    line = {"at": timezone.now().isoformat(timespec="milliseconds"), "words": words}
    log = [*job.log, line][-LOG_LINES:]
    _finish(job, state=Job.State.FAILED, error=_text(error), retry_at=retry_at, log=log)


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:2000]


def _finish(job: Job, **fields: Any) -> None:
    Job.unscoped.filter(pk=job.pk).update(finished_at=timezone.now(), **fields)
    live.hint_on_commit(job.tenant_id)
