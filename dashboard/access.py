"""Who sees what: the only module of the dashboard that leaves the tenant scope.

An operator (a staff account) sees every tenant; anybody else the active tenants of their
memberships. Pages span tenants, so they read through `Viewer.rows`, which always filters by what
the viewer may see. Another tenant's object does not exist (404, not 403).
"""

from dataclasses import dataclass
from typing import TypeVar

from django.contrib.auth.models import AbstractBaseUser, AnonymousUser
from django.db.models import Q, QuerySet
from django.http import Http404

from tenants.models import Membership, Tenant
from tenants.scope import TenantScoped

ALL = "all"
Row = TypeVar("Row", bound=TenantScoped)


@dataclass(frozen=True)
class Viewer:
    """A signed-in person and the tenants they see, by slug."""

    name: str
    is_operator: bool
    tenants: tuple[Tenant, ...]
    team_of: frozenset[int]

    def choose(self, slug: str) -> tuple[Tenant, ...]:
        """The tenants that a picker's value means. Raises Http404 for one they do not see."""
        if slug == ALL:
            return self.tenants
        chosen = tuple(tenant for tenant in self.tenants if tenant.slug == slug)
        if not chosen:
            raise Http404("no such tenant")
        return chosen

    def may_change(self, tenant_id: int) -> bool:
        """Whether they may pin, unpin and expire this tenant's contexts."""
        return self.is_operator or tenant_id in self.team_of

    def rows(self, model: type[Row], tenants: tuple[Tenant, ...] | None = None) -> QuerySet[Row]:
        """The rows of these tenants (all they see, by default)."""
        return rows_of(model, self.tenants if tenants is None else tenants)

    def rows_with_platform(self, model: type[Row]) -> QuerySet[Row]:
        """Also those of no tenant (platform-wide jobs, audit events), which only operators see."""
        if not self.is_operator:
            return self.rows(model)
        ids = [tenant.pk for tenant in self.tenants]
        return model.unscoped.filter(Q(tenant_id__in=ids) | Q(tenant=None))


def viewer_of(user: AbstractBaseUser | AnonymousUser) -> Viewer:
    """Raises TypeError for nobody: views come here behind `login_required`."""
    if not user.is_authenticated:
        raise TypeError("nobody is signed in")
    memberships = dict(
        Membership.objects.filter(user=user, tenant__is_active=True).values_list("tenant", "role")
    )
    is_operator = bool(getattr(user, "is_staff", False))
    tenants = Tenant.objects.order_by("slug")
    if not is_operator:
        tenants = tenants.filter(pk__in=memberships)
    return Viewer(
        name=user.get_username(),
        is_operator=is_operator,
        tenants=tuple(tenants),
        team_of=frozenset(
            tenant for tenant, role in memberships.items() if role == Membership.Role.TEAM
        ),
    )


def rows_of(model: type[Row], tenants: tuple[Tenant, ...]) -> QuerySet[Row]:
    return model.unscoped.filter(tenant_id__in=[tenant.pk for tenant in tenants])
