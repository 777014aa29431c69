"""Who asks, which tenants they see, and what they may do: for REST, pages, sockets and the admin.

An operator sees every tenant, a key its own, a person the active tenants of their memberships. The
row of a tenant that they do not see does not exist for them: 404, not 403. Of what its role may do,
a key may do what its scopes say.
"""

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from django.contrib.auth.models import AnonymousUser, User
from django.db.models import QuerySet
from structlog.contextvars import bind_contextvars

from base.problems import Problem
from base.requests import current_request
from tenants.audit import SYSTEM, Actor
from tenants.models import ApiKey, Membership, Tenant
from tenants.scope import TenantScoped

Row = TypeVar("Row", bound=TenantScoped)

CHANGING = (ApiKey.Scope.WRITE, ApiKey.Scope.CONTEXTS)  # a key with none of them changes no row


@dataclass(frozen=True)
class Principal:
    """A key or a person. `id` (`key:7`, `user:3`) stays when the name changes or a key is rotated.

    `tenant_ids` are seen; `writable_ids`, a part of them, may be changed. None: all.
    """

    id: str
    name: str
    role: str  # an ApiKey.Role; a person's is team or operator
    tenant_ids: frozenset[int] | None
    writable_ids: frozenset[int] | None
    scopes: frozenset[str] = frozenset(ApiKey.Scope.values)  # people have all
    key_id: int | None = None  # None: a person

    is_authenticated = True  # Django REST framework asks

    @property
    def is_operator(self) -> bool:
        return self.role == ApiKey.Role.OPERATOR

    def may_write(self, tenant_id: int) -> bool:
        """Whether they may pin, unpin, extend, expire and delete this tenant's contexts."""
        return self.writable_ids is None or tenant_id in self.writable_ids

    def may_issue_for(self, tenant_id: int) -> bool:
        """Whether they may make keys of this tenant. A key that changes no row may make others that
        read, so its scopes decide, not `writable_ids`."""
        allowed = self.writable_ids if self.key_id is None else self.tenant_ids
        return allowed is None or tenant_id in allowed

    def has_one_of(self, scopes: Collection[str]) -> bool:
        """Whether any of these scopes is theirs."""
        return not self.scopes.isdisjoint(scopes)

    def tenant_rows(self) -> QuerySet[Tenant]:
        """The tenants they see, by slug."""
        rows = Tenant.objects.order_by("slug")
        return rows if self.tenant_ids is None else rows.filter(pk__in=self.tenant_ids)

    @cached_property
    def tenants(self) -> tuple[Tenant, ...]:
        return tuple(self.tenant_rows())

    def tenant(self, slug: str) -> Tenant:
        """Raises Problem (not-found) for one that they do not see."""
        found = self.tenant_rows().filter(slug=slug).first()
        if found is None:
            raise Problem("not-found", "There is no such tenant.")
        return found

    def rows(self, model: type[Row]) -> QuerySet[Row]:
        """Rows of the tenants they see; for operators also the platform's own, without a tenant."""
        rows = model.unscoped.all()
        return rows if self.tenant_ids is None else rows.filter(tenant_id__in=self.tenant_ids)


def rows_of(model: type[Row], tenants: tuple[Tenant, ...]) -> QuerySet[Row]:
    """Rows of several tenants, which the caller has from a Principal."""
    return model.unscoped.filter(tenant_id__in=[tenant.pk for tenant in tenants])


def principal_of_key(key: ApiKey) -> Principal:
    """Who sends the request under way; its log lines name key and tenant from now on."""
    bind_contextvars(key=key.prefix)
    if key.tenant is not None:
        bind_contextvars(tenant=key.tenant.slug, tenant_id=key.tenant_id)
    ids = None if key.tenant_id is None else frozenset({key.tenant_id})
    scopes = frozenset(key.scopes)
    changes = key.role == ApiKey.Role.NODE or not scopes.isdisjoint(CHANGING)
    return Principal(
        id=f"key:{key.owner_number}",
        name=f"key:{key.name} (neve_{key.prefix})",
        role=key.role,
        tenant_ids=ids,
        writable_ids=ids if changes else frozenset(),
        scopes=scopes,
        key_id=key.pk,
    )


def principal_of_person(user: User | AnonymousUser) -> Principal:
    """Who sends the request or opens the socket under way; its log lines name them from now on.

    Staff are operators. Raises TypeError when nobody is signed in.
    """
    if not user.is_authenticated:
        raise TypeError("nobody is signed in")
    bind_contextvars(user=user.pk)
    id_, name = f"user:{user.pk}", user.get_username()
    if user.is_staff:
        return Principal(id_, name, ApiKey.Role.OPERATOR, None, None)
    memberships = Membership.objects.filter(user=user, tenant__is_active=True)
    roles = dict(memberships.values_list("tenant_id", "role"))
    writable = frozenset(tenant for tenant, role in roles.items() if role == Membership.Role.TEAM)
    return Principal(id_, name, ApiKey.Role.TEAM, frozenset(roles), writable)


def actor_of(request: Any, caller: Principal | None = None) -> Actor:
    """Who sends a request, for the audit. `caller`: when the view knows it already."""
    request_id: str = getattr(request, "request_id", "")
    address: str = request.META.get("REMOTE_ADDR") or ""
    caller = caller or (request.user if isinstance(request.user, Principal) else None)
    if caller is None:
        if not request.user.is_authenticated:
            return Actor("anonymous", request_id, address=address)
        caller = principal_of_person(request.user)
    return Actor(
        caller.name,
        request_id,
        id=caller.id,
        is_operator=caller.is_operator,
        address=address,
        key_id=caller.key_id,
    )


def current_actor() -> Actor:
    """Who sent the request that this thread answers; SYSTEM for commands and tasks."""
    request = current_request()
    return SYSTEM if request is None or not hasattr(request, "user") else actor_of(request)
