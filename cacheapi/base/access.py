"""How the APIs learn who asks, and which roles a view may name. One that names none is closed."""

from typing import Any, cast

from rest_framework.authentication import (
    BaseAuthentication,
    SessionAuthentication,
    get_authorization_header,
)
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.permissions import BasePermission
from rest_framework.request import Request

from tenants.keys import find_key
from tenants.models import ApiKey
from tenants.principal import Principal, principal_of_key, principal_of_person


def caller(request: Request) -> Principal:
    """Who asks: a view's permission let them in, so that somebody does."""
    return cast(Principal, request.user)  # `authenticate`, below, put it there


class KeyAuthentication(BaseAuthentication):
    """`Authorization: Bearer neve_<prefix>_<secret>`. One answer for every way to be wrong."""

    def authenticate(self, request: Request) -> tuple[Principal, ApiKey] | None:
        scheme, _, plaintext = get_authorization_header(request).decode("latin-1").partition(" ")
        if scheme.lower() != "bearer":
            return None
        key = find_key(plaintext.strip())
        if key is None:
            raise AuthenticationFailed("The API key is unknown, revoked or expired.")
        return principal_of_key(key), key

    def authenticate_header(self, request: Request) -> str:
        return 'Bearer realm="neve"'


class PersonAuthentication(SessionAuthentication):
    """A signed-in browser; a request that changes something needs the CSRF token."""

    def authenticate(self, request: Request) -> tuple[Principal, None] | None:
        found = super().authenticate(request)
        return None if found is None else (principal_of_person(found[0]), None)


class Nobody(BasePermission):
    def has_permission(self, request: Request, view: Any) -> bool:
        return False


class _RolePermission(BasePermission):
    roles: tuple[str, ...] = ()

    @property
    def message(self) -> str:
        return f"This needs the role {' or '.join(self.roles)}."

    def has_permission(self, request: Request, view: Any) -> bool:
        return request.user is not None and caller(request).role in self.roles


class Nodes(_RolePermission):
    roles = (ApiKey.Role.NODE,)


class Teams(_RolePermission):
    roles = (ApiKey.Role.TEAM, ApiKey.Role.OPERATOR)


class Operators(_RolePermission):
    roles = (ApiKey.Role.OPERATOR,)
