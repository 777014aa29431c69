"""Tenants' numbers in the hot Valkey: quota, terms of new blocks, eviction policy.

Everything here may be repeated. A Valkey that restarted has lost the numbers: the boot and each
handshake provision anew.
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
    """Functions, every tenant's numbers and all users. Returns the number of tenants.

    Raises ImproperlyConfigured when a Valkey evicts on its own, with the command that fixes it,
    and valkey's errors.
    """
    prepare_servers()
    tenants = list(Tenant.objects.all())
    for tenant in tenants:
        try:
            provision_tenant(tenant)
        except ResponseError:  # damage in one tenant's books stops nobody else
            log_events.PROVISION_FAILED.log(tenant_id=tenant.pk, exc_info=True)
    for key in keys_in_use():
        provision_user(key)
    align_users()
    warn_if_short(promised_bytes())
    return len(tenants)


def provision_tenant(tenant: Tenant) -> None:
    """The functions, and the tenant's numbers in `:q`. Raises valkey's errors.

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
    """After the transaction; a Valkey that is down does not undo what people decided."""
    hot.on_commit(
        "provision", tenant_id, lambda: provision_tenant(Tenant.objects.get(pk=tenant_id))
    )
