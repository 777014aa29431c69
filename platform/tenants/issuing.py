"""Who may make, rotate and revoke which key.

Operators: any. Members of role team: team keys of their tenants. A team key with the scope `keys`:
itself, and the keys that it made. No key makes a key that can do more than itself, and no team key
one that lives longer. When a key is revoked, the keys that it made end too: a thief keeps none.
"""

from collections.abc import Collection, Iterator
from datetime import datetime, timedelta

from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.models import Q, QuerySet
from django.utils import timezone

from base.preconditions import require_unchanged
from base.problems import Problem
from tenants import services
from tenants.audit import Actor
from tenants.keys import DEFAULT_SCOPES
from tenants.models import ApiKey, Quota, Tenant
from tenants.principal import Principal
from tenants.scope import tenant_scope

MOST_OVERLAP_S = 30 * 86_400
ENDED_PER_KEY = 10  # rows of ended keys that a tenant may have, for each usable one


@transaction.atomic
def make_key(
    *,
    caller: Principal,
    tenant: Tenant | None,
    role: str,
    name: str,
    scopes: Collection[str] | None = None,
    expires_at: datetime | None = None,
    actor: Actor,
) -> tuple[ApiKey, str]:
    """A new key and its plaintext. `scopes` None: those of the role, as far as the caller has them.

    Raises Problem: forbidden (`role`, `scopes`), malformed (`expires_at`), limit-reached,
    unauthorized (the caller's key ended meanwhile).
    """
    require_issuer(caller)
    if not caller.is_operator and role != ApiKey.Role.TEAM:
        raise Problem("forbidden", f"role: only operators make {role} keys.", field="role")
    if tenant is not None and not caller.may_issue_for(tenant.pk):
        raise Problem("forbidden", "tenant: your role there lets you look only.", field="tenant")
    if scopes is None:
        scopes = caller.scopes.intersection(DEFAULT_SCOPES[role])
    _require_scopes(caller, role, scopes)
    maker = _maker(caller)
    expires_at = _within(maker, expires_at)
    if tenant is not None:
        _require_room(tenant, caller)
    return services.issue_key(
        tenant=tenant,
        role=role,
        name=name,
        scopes=scopes,
        expires_at=expires_at,
        made_by_id=None if maker is None else maker.pk,
        actor=actor,
    )


@transaction.atomic
def rotate_key(
    *,
    caller: Principal,
    key: ApiKey,
    overlap_s: int,
    expires_at: datetime | None = None,
    actor: Actor,
) -> tuple[ApiKey, str]:
    """A key with the same name, role and scopes; `key` ends after the overlap, or at its own end.

    The new key owns the pins of the old one. `expires_at` None: it lives as long as the old one was
    to live. Raises Problem as `make_key`; conflict (ended, or rotated before).
    """
    maker = _maker(caller)
    row = ApiKey.unscoped.select_for_update().get(pk=key.pk)
    require_managed(caller, row)
    require_unchanged(row)
    _require_scopes(caller, row.role, row.scopes)
    now = timezone.now()
    if row.has_ended(now):
        raise Problem("conflict", "This key has ended: make a new one.")
    if ApiKey.unscoped.filter(rotated_from=row, revoked_at=None).exists():
        raise Problem("conflict", "This key was rotated before: rotate, or revoke, its successor.")
    if expires_at is None and row.expires_at is not None:
        expires_at = now + (row.expires_at - row.created_at)
        expires_at = min(expires_at, maker.expires_at or expires_at) if maker else expires_at
    expires_at = _within(maker, expires_at)
    if row.tenant is not None:
        _require_room(row.tenant, caller)
    try:
        with transaction.atomic():
            made, plaintext = services.issue_key(
                tenant=row.tenant,
                role=row.role,
                name=row.name,
                scopes=row.scopes,
                expires_at=expires_at,
                made_by_id=row.made_by_id if maker is None else maker.pk,
                rotated_from=row,
                actor=actor,
            )
    except IntegrityError as error:  # another request was faster
        raise Problem("conflict", "This key was rotated meanwhile.") from error
    ends_at = now + timedelta(seconds=overlap_s)
    services.end_key_at(
        key=row, at=min(ends_at, row.expires_at or ends_at), successor=made, actor=actor
    )
    return made, plaintext


@transaction.atomic
def revoke_key(*, caller: Principal, key: ApiKey, keep_made: bool = False, actor: Actor) -> ApiKey:
    """Ends the key and, unless `keep_made`, the keys that it made, and so on.

    Raises Problem (forbidden).
    """
    require_managed(caller, key)
    row = services.revoke_key(key=key, actor=actor)
    if not keep_made:
        for made in _made_by(row):
            services.revoke_key(key=made, actor=actor)
    return row


def require_issuer(caller: Principal) -> None:
    """Raises Problem (forbidden) for people who only look."""
    if caller.writable_ids is not None and not caller.writable_ids and caller.key_id is None:
        raise Problem("forbidden", "Your role lets you look, not make keys.")


def require_managed(caller: Principal, key: ApiKey) -> None:
    """For a key that the caller sees. Raises Problem (forbidden) unless they may end it."""
    if caller.is_operator:
        return
    if key.role != ApiKey.Role.TEAM or key.tenant_id is None:
        raise Problem("forbidden", f"Only operators rotate and revoke {key.role} keys.")
    if caller.key_id is None:
        if not caller.may_write(key.tenant_id):
            raise Problem("forbidden", "Your role in this tenant lets you look, not change.")
        return
    own = ApiKey.unscoped.get(pk=caller.key_id)
    # A key that was rotated has no power over its successors.
    if not any(each.owner_number == own.owner_number and each.pk <= own.pk for each in _up(key)):
        raise Problem("forbidden", "A key rotates and revokes itself and the keys that it made.")


def _up(key: ApiKey) -> Iterator[ApiKey]:
    """The key, its maker, and so on. A maker is older than its keys, so this ends."""
    each: ApiKey | None = key
    while each is not None:
        yield each
        maker_id = each.made_by_id
        each = None if maker_id is None else ApiKey.unscoped.filter(pk=maker_id).first()


def _made_by(key: ApiKey) -> Iterator[ApiKey]:
    """Keys that it made, keys that these made, and so on: makers first."""
    makers = {key.pk}
    seen: set[int] = set()
    while makers:
        rows = list(ApiKey.unscoped.filter(made_by__in=makers).order_by("pk"))
        yield from rows
        seen |= makers
        makers = {row.pk for row in rows} - seen


def _maker(caller: Principal) -> ApiKey | None:
    """The caller's team key, locked: it is not revoked before the new key stands.

    None: operators and people, whose keys outlive them.
    """
    if caller.key_id is None or caller.is_operator:
        return None
    maker = ApiKey.unscoped.select_for_update().get(pk=caller.key_id)
    if maker.has_ended(timezone.now()):
        raise Problem("unauthorized", "The API key is unknown, revoked or expired.")
    return maker


def _require_scopes(caller: Principal, role: str, scopes: Collection[str]) -> None:
    if role == ApiKey.Role.NODE:
        # A node reads and writes blocks.
        if scopes:
            raise Problem("malformed", "scopes: a node key has none.", field="scopes")
        scopes = (ApiKey.Scope.READ, ApiKey.Scope.WRITE)
    elif not scopes:
        raise Problem("malformed", "scopes: need at least one.", field="scopes")
    if beyond := sorted(set(scopes) - caller.scopes - _implied(caller)):
        words = ", ".join(beyond)
        raise Problem("forbidden", f"scopes: your key has no {words}.", field="scopes")


def _implied(caller: Principal) -> frozenset[str]:
    """Scopes that others contain: `contexts` is a part of `write`."""
    if ApiKey.Scope.WRITE in caller.scopes:
        return frozenset({ApiKey.Scope.CONTEXTS})
    return frozenset()


def _within(maker: ApiKey | None, expires_at: datetime | None) -> datetime | None:
    if maker is None or maker.expires_at is None:
        return expires_at
    if expires_at is None:
        return maker.expires_at
    if expires_at > maker.expires_at:
        raise Problem(
            "malformed",
            f"expires_at: your key ends at {maker.expires_at.isoformat()}; the keys that it makes "
            "end then, or before.",
            field="expires_at",
        )
    return expires_at


def usable_keys() -> QuerySet[ApiKey]:
    """Inside a tenant's scope: its keys that have not ended."""
    unexpired = Q(expires_at=None) | Q(expires_at__gt=timezone.now())
    rows: QuerySet[ApiKey] = ApiKey.objects.filter(unexpired, revoked_at=None)
    return rows


def _require_room(tenant: Tenant, caller: Principal) -> None:
    """Limits usable keys of a tenant, and rows of ended ones. Operators' keys are not refused."""
    if caller.is_operator:
        return
    most = settings.ENV.key_limit
    with tenant_scope(tenant.pk):
        Quota.objects.select_for_update().get()  # two at once count one after the other
        usable, there = usable_keys().count(), ApiKey.objects.count()
    if usable >= most or there >= most * (1 + ENDED_PER_KEY):
        raise Problem(
            "limit-reached",
            f"key_limit: The tenant has {usable} keys and {there - usable} that ended, and the "
            f"limit is {most}.",
            limit="key_limit",
            most=most,
        )
