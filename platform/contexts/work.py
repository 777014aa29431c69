"""What the kinds of work on contexts do for one tenant. See `tiering.work` for the rules."""

from uuid import UUID

from django.utils import timezone

from catalog.targets import Opener, Target
from contexts import warm_policies, warming
from engines.models import WarmPolicy


def warm(job: Opener, tenant_id: int, context_id: str, engine_id: int) -> None:
    """Only on request. A second run finds what the first stored."""
    with job() as run:
        warming.run(run, tenant_id, UUID(context_id), engine_id)


def tenants_with_policies() -> list[Target]:
    due = WarmPolicy.unscoped.filter(
        next_run_at__lte=timezone.now(), is_paused=False, tenant__is_active=True
    )
    return [(id_, {}) for id_ in sorted(set(due.values_list("tenant_id", flat=True)))]


def warm_by_policy(job: Opener, tenant_id: int) -> None:
    """Request warm jobs that policies demand. No Job row of its own."""
    warm_policies.run_due(tenant_id)
