"""Binds a function to a declared kind of work: one Celery task for beat's ticks and for requests.

One tenant's trouble does not stop the others: it is logged, and the tenant's Job row says failed.
"""

import logging
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeAlias

from celery import Task, shared_task

from catalog import jobs
from catalog.kinds import Kind
from catalog.models import Job
from tenants.models import Tenant

log = logging.getLogger("neve.tasks")

AnyTask: TypeAlias = "Task[..., object]"
Target = tuple[int | None, dict[str, Any]]  # a tenant's id (None: the platform), and arguments


class Opener:
    """Gives work its Job row once it is sure that there is some: `with job() as run:`."""

    def __init__(self, kind: Kind, tenant_id: int | None, requested: jobs.JobRun | None) -> None:
        self._kind, self._tenant_id, self._requested = kind, tenant_id, requested

    @property
    def is_requested(self) -> bool:
        """Somebody waits for this run: what a tick would leave for later is done now."""
        return self._requested is not None

    def is_waiting(self) -> bool:
        """Whether a tick should leave this work alone, since it failed just now."""
        return not self.is_requested and jobs.is_waiting(self._kind.name, self._tenant_id)

    def __call__(self) -> AbstractContextManager[jobs.JobRun]:
        if self._requested is not None:
            return nullcontext(self._requested)
        return jobs.attempt(self._kind.name, self._tenant_id)


Work = Callable[..., object]  # called with an Opener, a Target's id and its arguments by name


def active_ids() -> list[int]:
    return list(Tenant.objects.filter(is_active=True).values_list("pk", flat=True))


def active_tenants() -> list[Target]:
    return [(id_, {}) for id_ in active_ids()]


def the_platform() -> list[Target]:
    return [(None, {})]


def does(
    kind: Kind, *, find: Callable[[], Iterable[Target]] | None = None
) -> Callable[[Work], AnyTask]:
    """The function below is this kind of work, for one target a call. `find` lists the targets of
    a tick: every active tenant, or the platform, if None."""
    targets = find or (active_tenants if kind.of_tenant else the_platform)

    def bind(work: Work) -> AnyTask:
        def run(task: AnyTask, job_id: str | None = None) -> None:
            if job_id is None:
                _tick(kind, work, targets())
            else:
                _answer(kind, work, job_id, is_redelivered=_is_redelivered(task))

        run.__doc__ = work.__doc__
        return shared_task(bind=True, name=kind.task)(run)

    return bind


def _tick(kind: Kind, work: Work, targets: Iterable[Target]) -> None:
    for tenant_id, arguments in targets:
        try:
            work(Opener(kind, tenant_id, None), tenant_id, **arguments)
        except Exception:
            log.exception("task_failed task=%s tenant=%s", kind.name, tenant_id)


def _answer(kind: Kind, work: Work, job_id: str, *, is_redelivered: bool) -> None:
    """Errors end in the job's row and in the log, not in the task."""
    try:
        with jobs.job_run(job_id, is_redelivered=is_redelivered) as run, _logged(run):
            work(Opener(kind, run.job.tenant_id, run), run.job.tenant_id, **run.job.arguments)
    except (jobs.JobDone, Job.DoesNotExist):  # another message's, or removed with its tenant
        log.info("job_over job=%s", job_id)
    except Exception:
        log.exception("job_failed job=%s kind=%s", job_id, kind.name)


@contextmanager
def _logged(run: jobs.JobRun) -> Any:
    run.log(f"Attempt {run.job.attempts} began.")
    yield
    run.log("Done.")


def _is_redelivered(task: AnyTask) -> bool:
    return bool((task.request.delivery_info or {}).get("redelivered"))
