"""Binds a function to a declared kind of work: one Celery task for beat's ticks and for requests.

One tenant's trouble does not stop the others: it is logged, and the tenant's Job row says failed.
"""

from collections.abc import Callable, Iterable
from contextlib import contextmanager
from typing import Any, TypeAlias

from celery import Task, shared_task
from structlog.contextvars import bound_contextvars

from base import log_events
from base.counting import TASK_FAILURES
from base.isolation import isolated
from catalog import jobs
from catalog.kinds import Kind
from catalog.models import Job
from catalog.targets import Opener, Target, active_tenants, the_platform

AnyTask: TypeAlias = "Task[..., object]"
Work = Callable[..., object]  # called with an Opener, a Target's id and its arguments by name


def does(kind: Kind, work: Work, *, find: Callable[[], Iterable[Target]] | None = None) -> AnyTask:
    """A task that calls `work` for one target after the other.

    `find` lists the targets of a tick: every active tenant, or the platform, if None.
    """
    targets = find or (active_tenants if kind.of_tenant else the_platform)

    def run(task: AnyTask, job_id: str | None = None) -> None:
        if job_id is None:
            _tick(kind, work, targets())
        else:
            _answer(kind, work, job_id, is_redelivered=_is_redelivered(task))

    run.__doc__ = work.__doc__
    return shared_task(bind=True, name=kind.task)(run)


def _tick(kind: Kind, work: Work, targets: Iterable[Target]) -> None:
    for tenant_id, arguments in targets:
        with isolated(kind.name, tenant_id):
            work(Opener(kind, tenant_id), tenant_id, **arguments)


def _answer(kind: Kind, work: Work, job_id: str, *, is_redelivered: bool) -> None:
    """Errors end in the job's row and in the log, not in the task."""
    try:
        with jobs.job_run(job_id, is_redelivered=is_redelivered) as run, _logged(run):
            with bound_contextvars(**_tenant(run.job.tenant_id)):
                work(Opener(kind, run.job.tenant_id, run), run.job.tenant_id, **run.job.arguments)
    except (jobs.JobDone, Job.DoesNotExist):  # another message's, or removed with its tenant
        log_events.JOB_OVER.log(job=job_id)
    except Exception:
        log_events.JOB_FAILED.log(job=job_id, kind=kind.name, exc_info=True)
        TASK_FAILURES.add(kind.name)


def _tenant(tenant_id: int | None) -> dict[str, int]:
    return {} if tenant_id is None else {"tenant_id": tenant_id}


@contextmanager
def _logged(run: jobs.JobRun) -> Any:
    run.log(f"Attempt {run.job.attempts} began.")
    yield
    run.log("Done.")
    log_events.JOB_DONE.log(job=run.job.pk, kind=run.job.kind)


def _is_redelivered(task: AnyTask) -> bool:
    return bool((task.request.delivery_info or {}).get("redelivered"))
