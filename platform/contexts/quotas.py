"""A tenant's limits beside what it uses of them now."""

from typing import Any

from django.conf import settings
from valkey.exceptions import ValkeyError

from base import log_events
from catalog.limits import limit_of
from catalog.models import Context, Space
from catalog.sessions import host_of, live_sessions
from retention.rulebook import rulebook_of
from storage import hot
from tenants.issuing import usable_keys
from tenants.models import Quota, Tenant
from tenants.scope import tenant_scope


def own_quota(tenant: Tenant) -> dict[str, Any]:
    """Limits by name, and `used`. Its bytes are None while the hot tier does not answer."""
    try:
        tiers = hot.hot_tier(tenant.pk).usage()
        stored: dict[str, int | None] = {
            "hot_bytes": tiers.hot_bytes,
            "cold_bytes": tiers.cold_bytes,
            "pinned_bytes": tiers.pinned_bytes,
        }
    except ValkeyError:
        log_events.HOT_USAGE_UNKNOWN.log(tenant_id=tenant.pk, exc_info=True)
        stored = dict.fromkeys(("hot_bytes", "cold_bytes", "pinned_bytes"))
    with tenant_scope(tenant.pk):
        quota = Quota.objects.get()
        nodes = {host_of(name) for name in live_sessions().values_list("node", flat=True)}
        used = {
            **stored,
            "spaces": Space.objects.count(),
            "contexts": Context.objects.count(),
            "nodes": len(nodes),
            "keys": usable_keys().count(),
        }
    return {
        "hot_bytes": quota.hot_bytes,
        "cold_bytes": quota.cold_bytes,
        **{name: limit_of(quota, name) for name in Quota.ROW_LIMITS},
        "pin_budget_bytes": rulebook_of(tenant.pk).policy.pin_budget_bytes,
        "node_limit": tenant.node_limit,
        "key_limit": settings.ENV.key_limit,
        "used": used,
    }
