"""Changes of tenants, keys and quotas. Each is one transaction with its audit event."""

from collections.abc import Collection
from datetime import datetime

from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction
from django.utils import timezone

from base.preconditions import require_unchanged
from base.problems import Problem
from tenants import keys
from tenants.announcements import access_ended, quota_changed, tenant_changed, tenant_created
from tenants.audit import SYSTEM, Actor, record
from tenants.models import ApiKey, Quota, Tenant
from tenants.room import fitting_bytes, require_room
from tenants.scope import tenant_scope

DEFAULT_HOT_BYTES = 1 << 30  # or less, if it does not fit
DEFAULT_COLD_BYTES = 16 << 30


@transaction.atomic
def create_tenant(
    *,
    slug: str,
    name: str,
    hot_bytes: int | None = None,
    cold_bytes: int = DEFAULT_COLD_BYTES,
    node_limit: int = 16,
    is_active: bool = True,
    overcommit: bool = False,
    actor: Actor = SYSTEM,
    **limits: int | None,
) -> Tenant:
    """Makes a tenant with its quota; apps above add their rows (`tenants.announcements`).

    `hot_bytes` None: 1 GiB, or half of what the hot tier has left. `overcommit`: promise more than
    it has. `limits`: as of `set_quota`. Raises ValidationError for a bad or taken slug, Problem
    (hot-overcommit; conflict: another request took the slug).
    """
    tenant = Tenant(slug=slug, name=name, node_limit=node_limit, is_active=is_active)
    tenant.full_clean()
    try:
        with transaction.atomic():
            tenant.save()
    except IntegrityError as error:
        raise Problem("conflict", f"slug: there is a tenant {slug}.", field="slug") from error
    if hot_bytes is None:
        hot_bytes = default_hot_bytes(overcommit=overcommit)
    beyond = require_room(
        hot_bytes if is_active else 0, tenant_id=tenant.pk, present_bytes=0, overcommit=overcommit
    )
    with tenant_scope(tenant.pk):
        Quota.objects.create(hot_bytes=hot_bytes, cold_bytes=cold_bytes, **limits)
    tenant_created.send(Tenant, tenant_id=tenant.pk)
    record(
        actor=actor,
        tenant_id=tenant.pk,
        action="tenant.create",
        obj=tenant,
        after={
            "slug": slug,
            "node_limit": node_limit,
            "hot_bytes": hot_bytes,
            "cold_bytes": cold_bytes,
            **limits,
            **beyond,
        },
    )
    tenant_changed.send(Tenant, tenant_id=tenant.pk)
    return tenant


def default_hot_bytes(*, overcommit: bool = False) -> int:
    """The hot quota of a new tenant. Raises Problem (hot-overcommit) if hardly any is left."""
    return DEFAULT_HOT_BYTES if overcommit else fitting_bytes(DEFAULT_HOT_BYTES, share=0.5)


@transaction.atomic
def change_tenant(
    *,
    tenant: Tenant,
    name: str | None = None,
    node_limit: int | None = None,
    is_active: bool | None = None,
    samples_enabled: bool | None = None,
    overcommit: bool = False,
    actor: Actor,
) -> Tenant:
    """An inactive tenant's keys, sessions and Valkey users end at once. None keeps a value.

    Raises Problem: hot-overcommit if the quota of a tenant that becomes active does not fit;
    conflict for a tenant that is being removed.
    """
    row = Tenant.objects.select_for_update().get(pk=tenant.pk)
    require_unchanged(row)
    if row.is_leaving:
        raise Problem("conflict", f"The tenant {row.slug} is being removed.")
    asked = {
        **{"name": name, "node_limit": node_limit, "is_active": is_active},
        "samples_enabled": samples_enabled,
    }
    before = {name: getattr(row, name) for name in asked}
    after = before | {name: value for name, value in asked.items() if value is not None}
    beyond = {}
    if is_active and not row.is_active:
        beyond = require_room(
            row.quota.hot_bytes, tenant_id=row.pk, present_bytes=0, overcommit=overcommit
        )
    for name, value in after.items():
        setattr(row, name, value)
    row.full_clean()
    row.save()
    record(
        actor=actor,
        tenant_id=row.pk,
        action="tenant.change",
        obj=row,
        before=before,
        after={**after, **beyond},
    )
    if not row.is_active:
        access_ended.send(Tenant, tenant_id=row.pk, key=None)
    tenant_changed.send(Tenant, tenant_id=row.pk)
    return row


@transaction.atomic
def switch_samples(*, tenant: Tenant, enabled: bool, actor: Actor) -> None:
    """Nodes hear of it with their next heartbeat. Off: what is stored is deleted within an hour."""
    row = Tenant.objects.select_for_update().get(pk=tenant.pk)
    if row.samples_enabled == enabled:
        return
    row.samples_enabled = enabled
    row.save(update_fields=["samples_enabled"])
    record(
        actor=actor,
        tenant_id=row.pk,
        action="tenant.samples",
        obj=row,
        before={"samples_enabled": not enabled},
        after={"samples_enabled": enabled},
    )


@transaction.atomic
def cut_off(*, tenant: Tenant, reason: str, actor: Actor = SYSTEM) -> bool:
    """Keeps a tenant's nodes out of the hot tier until `let_in`; its people and data stay.

    Its sessions and Valkey users end at once. False when it is cut off already.
    """
    row = Tenant.objects.select_for_update().get(pk=tenant.pk)
    if row.cut_off_at is not None:
        tenant_changed.send(Tenant, tenant_id=row.pk)
        return False
    row.cut_off_at, row.cut_off_reason = timezone.now(), reason[:200]
    row.save(update_fields=["cut_off_at", "cut_off_reason"])
    access_ended.send(Tenant, tenant_id=row.pk, key=None)
    record(
        actor=actor,
        tenant_id=row.pk,
        action="tenant.cut_off",
        obj=row,
        before={"cut_off_at": None},
        after={"cut_off_at": row.cut_off_at.isoformat(), "reason": row.cut_off_reason},
    )
    tenant_changed.send(Tenant, tenant_id=row.pk)
    return True


@transaction.atomic
def let_in(*, tenant: Tenant, actor: Actor) -> bool:
    """Ends `cut_off`: nodes get in with their next handshake. False when it is not cut off."""
    row = Tenant.objects.select_for_update().get(pk=tenant.pk)
    require_unchanged(row)
    if row.cut_off_at is None:
        return False
    before = {"cut_off_at": row.cut_off_at.isoformat(), "reason": row.cut_off_reason}
    row.cut_off_at, row.cut_off_reason = None, ""
    row.save(update_fields=["cut_off_at", "cut_off_reason"])
    record(
        actor=actor,
        tenant_id=row.pk,
        action="tenant.let_in",
        obj=row,
        before=before,
        after={"cut_off_at": None},
    )
    return True


@transaction.atomic
def remove_tenant(*, tenant: Tenant, actor: Actor) -> None:
    """Cuts it off at once; the kind of work `remove_tenant` deletes its data, then its row."""
    require_unchanged(tenant)
    Tenant.objects.filter(pk=tenant.pk).update(is_active=False, is_leaving=True)
    record(
        actor=actor,
        tenant_id=tenant.pk,
        action="tenant.remove",
        obj=tenant,
        before={"slug": tenant.slug, "name": tenant.name},
    )
    access_ended.send(Tenant, tenant_id=tenant.pk, key=None)
    tenant_changed.send(Tenant, tenant_id=tenant.pk)


@transaction.atomic
def set_quota(
    *,
    tenant: Tenant,
    hot_bytes: int | None = None,
    cold_bytes: int | None = None,
    overcommit: bool = False,
    actor: Actor,
    **limits: int | None,
) -> Quota:
    """Applies from the next commit of a block on; a smaller quota evicts as new blocks come.

    Bytes of None stay. `limits`: names of Quota.ROW_LIMITS; None takes the settings' number; absent
    ones stay.
    Raises Problem (hot-overcommit).
    """
    with tenant_scope(tenant.pk):
        quota = Quota.objects.select_for_update().get()
        require_unchanged(tenant)  # its tag covers the quota
        changed = {name: most for name, most in limits.items() if getattr(quota, name) != most}
        hot_bytes = quota.hot_bytes if hot_bytes is None else hot_bytes
        cold_bytes = quota.cold_bytes if cold_bytes is None else cold_bytes
        fields = {"hot_bytes": hot_bytes, "cold_bytes": cold_bytes, **changed}
        before = {name: getattr(quota, name) for name in fields}
        beyond = require_room(
            hot_bytes if tenant.is_active else 0,
            tenant_id=tenant.pk,
            present_bytes=quota.hot_bytes,
            overcommit=overcommit,
        )
        for name, value in fields.items():
            setattr(quota, name, value)
        quota.full_clean(validate_unique=False)
        quota.save()
    record(
        actor=actor,
        tenant_id=tenant.pk,
        action="quota.set",
        obj=quota,
        before=before,
        after={**fields, **beyond},
    )
    if differing := [name for name, value in fields.items() if before[name] != value]:
        quota_changed.send(Tenant, tenant=tenant, changed=differing)
    tenant_changed.send(Tenant, tenant_id=tenant.pk)
    return quota


@transaction.atomic
def issue_key(
    *,
    tenant: Tenant | None,
    role: str,
    name: str,
    scopes: Collection[str] | None = None,
    expires_at: datetime | None = None,
    made_by_id: int | None = None,
    rotated_from: ApiKey | None = None,
    actor: Actor = SYSTEM,
) -> tuple[ApiKey, str]:
    """A new key and its plaintext, which is shown once and kept nowhere.

    Operator keys have no tenant, all others need one. `scopes` None: those of the role; `write`
    brings `read`. Who may make which key: `tenants.issuing`. Raises ValidationError.
    """
    given = set(keys.DEFAULT_SCOPES[role] if scopes is None else scopes)
    if ApiKey.Scope.WRITE in given:
        given.add(ApiKey.Scope.READ)
    plaintext, prefix, secret = keys.make_plaintext()
    key = ApiKey(
        tenant=tenant,
        role=role,
        name=name,
        prefix=prefix,
        secret_hmac=keys.hash_secret(secret),
        scopes=sorted(map(str, given)),
        expires_at=expires_at,
        made_by_id=made_by_id,
        rotated_from=rotated_from,
        first_number=None if rotated_from is None else rotated_from.owner_number,
    )
    if (role == ApiKey.Role.OPERATOR) != (tenant is None):
        raise ValidationError("An operator key has no tenant, any other key needs one.")
    key.full_clean(validate_unique=False, validate_constraints=False)  # the database has them
    key.save()
    record(
        actor=actor,
        tenant_id=key.tenant_id,
        action="key.issue",
        obj=key,
        after={
            "name": name,
            "role": role,
            "prefix": prefix,
            "scopes": key.scopes,
            "expires_at": None if expires_at is None else expires_at.isoformat(),
        },
    )
    return key, plaintext


@transaction.atomic
def revoke_key(*, key: ApiKey, actor: Actor) -> ApiKey:
    """Ends its sessions and its Valkey user at once. Revoking twice changes nothing.

    Keys that it made stay: `tenants.issuing.revoke_key` ends them, too.
    """
    row = ApiKey.unscoped.select_for_update().get(pk=key.pk)
    require_unchanged(row)
    if row.revoked_at is None:
        row.revoked_at = timezone.now()
        row.save(update_fields=["revoked_at"])
        record(
            actor=actor,
            tenant_id=row.tenant_id,
            action="key.revoke",
            obj=row,
            before={"revoked_at": None},
            after={"revoked_at": row.revoked_at.isoformat()},
        )
        if row.role == ApiKey.Role.NODE and row.tenant_id is not None:
            access_ended.send(Tenant, tenant_id=row.tenant_id, key=row)
    return row


@transaction.atomic
def end_key_at(*, key: ApiKey, at: datetime, successor: ApiKey, actor: Actor) -> None:
    """The key ends then, at the latest: `successor` replaces it. A node's sessions end with it."""
    before = key.expires_at
    key.expires_at = at
    key.save(update_fields=["expires_at"])
    record(
        actor=actor,
        tenant_id=key.tenant_id,
        action="key.rotate",
        obj=key,
        before={"expires_at": None if before is None else before.isoformat()},
        after={"expires_at": at.isoformat(), "successor": successor.pk},
    )
