"""Targets of background work, and the job's row that work opens for its target."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from catalog import jobs
from catalog.kinds import Kind
from tenants.models import Tenant

Target = tuple[int | None, dict[str, Any]]  # a tenant's id (None: the platform), and arguments


class Opener:
    """Opens the Job row, once there is work to do: `with job() as run:`."""

    def __init__(
        self, kind: Kind, tenant_id: int | None, requested: jobs.JobRun | None = None
    ) -> None:
        self._kind, self._tenant_id, self._requested = kind, tenant_id, requested

    @property
    def is_requested(self) -> bool:
        """Whether somebody requested this run: then it does what a tick would leave for later."""
        return self._requested is not None

    def is_waiting(self) -> bool:
        """Whether a tick should skip this work, since it failed a moment ago."""
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
