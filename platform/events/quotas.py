"""Events of quotas: another quota, and a tier that passes a threshold of its own."""

from collections.abc import Sequence

from django.db import transaction

from events import marks
from events.services import Subject, emit
from tenants.models import Quota, Tenant
from tenants.scope import tenant_scope

THRESHOLDS = (80, 90, 100)  # percent
BELOW = 5  # points below a threshold at which it counts as left


def tell_change(*, tenant: Tenant, changed: Sequence[str], **_: object) -> None:
    """Receives `tenants.announcements.quota_changed`."""
    subject: Subject = {"type": "policy", "id": tenant.slug, "name": "quota"}
    data = {"what": "quota", "changed": sorted(changed)}
    emit("policy.changed", tenant_id=tenant.pk, subject=subject, data=data)


def tell_use(*, tenant_id: int, hot_bytes: int, cold_bytes: int) -> None:
    """Sends `quota.threshold` for each tier that passed another threshold since the last call."""
    with tenant_scope(tenant_id):
        quota = Quota.objects.select_related("tenant").first()
    if quota is None:
        return
    told = marks.values(tenant_id, "quota:")
    subject: Subject = {"type": "tenant", "id": quota.tenant.slug, "name": quota.tenant.name}
    tiers = (("hot", hot_bytes, quota.hot_bytes), ("cold", cold_bytes, quota.cold_bytes))
    for tier, used, most in tiers:
        was = told.get(tier, 0)
        now = passed(used, most, was)
        if now == was:
            continue
        with transaction.atomic():
            if marks.change(tenant_id, f"quota:{tier}", now):
                data = {"tier": tier, "percent": now, "was_percent": was}
                data |= {"used_bytes": used, "quota_bytes": most}
                emit("quota.threshold", tenant_id=tenant_id, subject=subject, data=data)


def passed(used: int, most: int, was: int) -> int:
    """The threshold that counts as passed; 0: none. It falls only BELOW points below `was`."""
    percent = 100 * used / most if most else 100.0 * (used > 0)
    now = max((each for each in THRESHOLDS if percent >= each), default=0)
    return was if now < was and percent >= was - BELOW else now
