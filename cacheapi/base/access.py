"""Who is asking, and what they may touch: API keys, and people's browser sessions.

Everything is refused unless a view names one of the permissions below.
"""

from dataclasses import dataclass
from typing import Any

from rest_framework.authentication import (
    BaseAuthentication,
    SessionAuthentication,
    get_authorization_header,
)
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.permissions import BasePermission
from rest_framework.request import Request
from structlog.contextvars import bind_contextvars

from tenants.audit import Actor
from tenants.keys import find_key
from tenants.models import ApiKey, Membership, Tenant


@dataclass(frozen=True)
class Principal:
    """`tenant_ids` None means all. `role` is a key's role; people are "team" or "operator".

    `id` stays when the name changes: `key:7`, `user:3`.
    """

    name: str
    role: str
    tenant_ids: frozenset[int] | None
    writable_ids: frozenset[int] | None
    tenant: Tenant | None = None
    id: str = ""

    is_authenticated = True

    @property
    def is_operator(self) -> bool:
        return self.role == ApiKey.Role.OPERATOR

    def may_write(self, tenant_id: int) -> bool:
        return self.writable_ids is None or tenant_id in self.writable_ids


def principal_of_user(user: Any) -> Principal:
    """Staff are operators; other people have the tenants that they are members of."""
    if user.is_staff:
        return Principal(
            user.get_username(), ApiKey.Role.OPERATOR, None, None, id=f"user:{user.pk}"
        )
    roles = dict(user.memberships.filter(tenant__is_active=True).values_list("tenant_id", "role"))
    writable = frozenset(id_ for id_, role in roles.items() if role == Membership.Role.TEAM)
    return Principal(
        user.get_username(), ApiKey.Role.TEAM, frozenset(roles), writable, id=f"user:{user.pk}"
    )


def actor(request: Request) -> Actor:
    return Actor(
        request.user.name,
        getattr(request._request, "request_id", ""),
        id=request.user.id,
        is_operator=request.user.is_operator,
    )


class KeyAuthentication(BaseAuthentication):
    """`Authorization: Bearer neve_<prefix>_<secret>`. One answer for every way to be wrong."""

    def authenticate(self, request: Request) -> tuple[Principal, ApiKey] | None:
        scheme, _, plaintext = get_authorization_header(request).decode("latin-1").partition(" ")
        if scheme.lower() != "bearer":
            return None
        key = find_key(plaintext.strip())
        if key is None:
            raise AuthenticationFailed("The API key is unknown, revoked or expired.")
        bind_contextvars(key=key.prefix)
        if key.tenant is not None:
            bind_contextvars(tenant=key.tenant.slug, tenant_id=key.tenant_id)
        ids = None if key.tenant_id is None else frozenset({key.tenant_id})
        name = f"key:{key.name} (neve_{key.prefix})"
        return Principal(name, key.role, ids, ids, key.tenant, id=f"key:{key.pk}"), key

    def authenticate_header(self, request: Request) -> str:
        return 'Bearer realm="neve"'


class PersonAuthentication(SessionAuthentication):
    """A signed-in browser; whatever changes something needs the CSRF token."""

    def authenticate(self, request: Request) -> tuple[Principal, None] | None:
        found = super().authenticate(request)
        if found is None:
            return None
        bind_contextvars(user=found[0].pk)
        return principal_of_user(found[0]), None


class Nobody(BasePermission):
    def has_permission(self, request: Request, view: Any) -> bool:
        return False


class _RolePermission(BasePermission):
    roles: tuple[str, ...] = ()

    @property
    def message(self) -> str:
        return f"This needs the role {' or '.join(self.roles)}."

    def has_permission(self, request: Request, view: Any) -> bool:
        return request.user is not None and request.user.role in self.roles


class Nodes(_RolePermission):
    roles = (ApiKey.Role.NODE,)


class Teams(_RolePermission):
    roles = (ApiKey.Role.TEAM, ApiKey.Role.OPERATOR)


class Operators(_RolePermission):
    roles = (ApiKey.Role.OPERATOR,)
