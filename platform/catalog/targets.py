"""What background work is done on: its targets, and the job's row that it opens for one."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from catalog import jobs
from catalog.kinds import Kind
from tenants.models import Tenant

Target = tuple[int | None, dict[str, Any]]  # a tenant's id (None: the platform), and arguments


class Opener:
    """Gives work its Job row once it is sure that there is some: `with job() as run:`."""

    def __init__(
        self, kind: Kind, tenant_id: int | None, requested: jobs.JobRun | None = None
    ) -> None:
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


def active_ids() -> list[int]:
    return list(Tenant.objects.filter(is_active=True).values_list("pk", flat=True))


def active_tenants() -> list[Target]:
    return [(id_, {}) for id_ in active_ids()]


def the_platform() -> list[Target]:
    return [(None, {})]
