"""Writes each tenant's quota, terms of new blocks and eviction policy to the hot Valkey.

Everything here may be repeated. A restart of Valkey loses these numbers, so the platform's start
and each handshake provision again.
"""

from valkey.exceptions import ResponseError

from base import log_events
from catalog.hot_access import align_users, keys_in_use, provision_user
from retention.rulebook import rulebook_of
from storage import hot
from storage.hot_setup import load_missing_functions, prepare_servers, warn_if_short
from storage.hot_users import remove_users_of
from tenants.models import Tenant
from tenants.room import promised_bytes
from tenants.scope import tenant_scope


def provision() -> int:
    """Load functions, every tenant's numbers and all users. Returns the number of tenants.

    Raises ImproperlyConfigured if a Valkey evicts on its own (the message has the command that
    fixes it), and valkey's errors.
    """
    prepare_servers()
    tenants = list(Tenant.objects.all())
    for tenant in tenants:
        try:
            provision_tenant(tenant)
        except ResponseError:  # one tenant's damaged counters must not stop the others
            log_events.PROVISION_FAILED.log(tenant_id=tenant.pk, exc_info=True)
    for key in keys_in_use():
        provision_user(key)
    align_users()
    warn_if_short(promised_bytes())
    return len(tenants)


def provision_tenant(tenant: Tenant) -> None:
    """Load missing functions, and write the tenant's numbers to `:q`. Raises valkey's errors.

    Users of a tenant that is inactive or cut off are removed.
    """
    if not tenant.is_active or tenant.cut_off_at is not None:
        remove_users_of(tenant.pk)
    if not tenant.is_active:
        return
    load_missing_functions()
    book = rulebook_of(tenant.pk)
    with tenant_scope(tenant.pk):
        hot.hot_tier(tenant.pk).set_policy(
            hot_bytes=tenant.quota.hot_bytes,
            cold_bytes=tenant.quota.cold_bytes,
            terms=book.policy.for_blocks(),
            spaces=book.spaces(),
            eviction=book.eviction,
            promote_window_s=book.promote_window_s,
            cold_evicts=book.cold_evicts,
        )


def provision_changed(*, tenant_id: int, **_: object) -> None:
    """Receives `tenants.announcements.tenant_changed`."""
    provision_on_commit(tenant_id)


def provision_on_commit(tenant_id: int) -> None:
    """Provision after the commit: a Valkey outage must not undo the saved change."""
    hot.on_commit(
        "provision", tenant_id, lambda: provision_tenant(Tenant.objects.get(pk=tenant_id))
    )
