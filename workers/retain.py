"""After a change of policy or rules: one walk through the tenant's index, by one worker at a time.

The policy's `generation` says that there is work, `applied_generation` that it was done; a change
while a walk goes on is walked again. A worker that dies leaves a lease that lapses.
"""

from collections.abc import Callable
from datetime import timedelta

from django.db.models import F, Q
from django.utils import timezone

from controlplane import hot
from retention.models import RetentionPolicy
from retention.stored import FollowReport, follow
from tenants.models import Tenant
from tenants.scope import tenant_scope

LEASE = timedelta(seconds=60)
RENEW = LEASE / 4


def claim(tenant_id: int) -> int | None:
    """The generation to apply. None: stored blocks follow already, or another worker is at it."""
    now = timezone.now()
    is_free = Q(applying_until=None) | Q(applying_until__lt=now)
    with tenant_scope(tenant_id):
        waiting = RetentionPolicy.objects.filter(is_free, applied_generation__lt=F("generation"))
        if not waiting.update(applying_until=now + LEASE):
            return None
        return RetentionPolicy.objects.values_list("generation", flat=True).get()


def apply(
    tenant_id: int,
    generation: int,
    *,
    progress: Callable[[FollowReport], object] = lambda report: None,
) -> FollowReport:
    """Makes stored blocks, and new ones, follow the policy that `claim` gave out.

    Raises valkey's errors; then it is tried again when the lease has lapsed.
    """
    renew_at = timezone.now() + RENEW

    def renew(report: FollowReport) -> None:
        nonlocal renew_at
        if (now := timezone.now()) >= renew_at:
            renew_at = now + RENEW
            with tenant_scope(tenant_id):
                RetentionPolicy.objects.update(applying_until=now + LEASE)
            progress(report)

    hot.provision_tenant(Tenant.objects.get(pk=tenant_id))  # should Valkey have been down
    report = follow(tenant_id, progress=renew)
    with tenant_scope(tenant_id):
        RetentionPolicy.objects.update(applied_generation=generation, applying_until=None)
    return report
