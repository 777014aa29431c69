"""How the APIs learn who asks, and which roles and scopes a view may name.

A view that names no role is closed; one that names no scopes needs `read` to read and `write` to
change.
"""

from typing import Any, cast

from rest_framework.authentication import (
    BaseAuthentication,
    SessionAuthentication,
    get_authorization_header,
)
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.permissions import SAFE_METHODS, BasePermission
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


class ScopesOfView:
    """For views: one of these scopes lets a key in. `reads`: actions that change nothing, though
    their method is POST."""

    scopes_to_read: tuple[str, ...] = (ApiKey.Scope.READ,)
    scopes_to_change: tuple[str, ...] = (ApiKey.Scope.WRITE,)
    reads: tuple[str, ...] = ()


class ScopesOfContexts(ScopesOfView):
    """For views of contexts and look-ups: a key with the scope `contexts` gets in, too."""

    scopes_to_read = (ApiKey.Scope.READ, ApiKey.Scope.CONTEXTS)
    scopes_to_change = (ApiKey.Scope.WRITE, ApiKey.Scope.CONTEXTS)


class _RolePermission(BasePermission):
    roles: tuple[str, ...] = ()
    message = ""

    def has_permission(self, request: Request, view: Any) -> bool:
        if request.user is None:
            return False
        if caller(request).role not in self.roles:
            self.message = f"This needs the role {' or '.join(self.roles)}."
            return False
        return self.has_scope(request, view)

    def has_scope(self, request: Request, view: Any) -> bool:
        """Here alone, so that no view can forget it."""
        scopes = view if isinstance(view, ScopesOfView) else ScopesOfView
        is_read = request.method in SAFE_METHODS or getattr(view, "action", "") in scopes.reads
        needed = scopes.scopes_to_read if is_read else scopes.scopes_to_change
        self.message = f"This needs a key with the scope {' or '.join(needed)}."
        return caller(request).has_one_of(needed)


class Nodes(_RolePermission):
    roles = (ApiKey.Role.NODE,)

    def has_scope(self, request: Request, view: Any) -> bool:
        return True  # the cache endpoint is all that a node's key may use


class Known(_RolePermission):
    """Every key and person, whatever their scopes."""

    roles = tuple(ApiKey.Role)

    def has_scope(self, request: Request, view: Any) -> bool:
        return True


class Teams(_RolePermission):
    roles = (ApiKey.Role.TEAM, ApiKey.Role.OPERATOR)


class Operators(_RolePermission):
    roles = (ApiKey.Role.OPERATOR,)
