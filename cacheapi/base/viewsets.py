"""The base of /api/v1: a view names its model and gets the rows that its caller sees.

Any other row is 404, as if it did not exist; a method that the view does not name is 405.
"""

from contextlib import ExitStack
from typing import Any

from django.db.models import QuerySet
from rest_framework import serializers
from rest_framework.mixins import ListModelMixin, RetrieveModelMixin
from rest_framework.request import Request
from rest_framework.viewsets import GenericViewSet

from base.problems import Problem
from base.turns import Turns
from cacheapi.base.access import (
    KeyAuthentication,
    Operators,
    PersonAuthentication,
    ScopesOfView,
    Teams,
    caller,
)
from cacheapi.base.etags import Tagged
from cacheapi.base.fields import EmptySerializer
from cacheapi.base.filters import Filters, TenantFilter
from cacheapi.base.idempotency import once
from cacheapi.base.pages import Pages
from cacheapi.base.queries import StrictQuery
from cacheapi.base.throttles import SlowDown
from tenants.models import Tenant
from tenants.scope import TenantScoped

# Names of rows in addresses. Any other text is 404 without a query.
UUID = "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
SLUG = "[a-z][a-z0-9-]{0,39}"


class TenantOwnedSerializer(serializers.ModelSerializer[Any]):
    """Names its tenant by slug."""

    tenant = serializers.CharField(source="tenant.slug", allow_null=True, read_only=True)


# Half of the threads of a web process: heartbeats of nodes and other tenants need some, too.
TURNS = Turns(
    32, "32 requests of your tenant are under way in this web process: send fewer at once."
)


class ApiView(ScopesOfView, SlowDown, StrictQuery):
    """For keys of teams and operators, and for signed-in people."""

    authentication_classes = (KeyAuthentication, PersonAuthentication)
    permission_classes: tuple[Any, ...] = (Teams,)
    secret_members: tuple[str, ...] = ()  # of answers: shown once, kept nowhere

    def dispatch(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        with ExitStack() as self.turn:  # taken in `initial`, once the caller is known
            return super().dispatch(request, *args, **kwargs)

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        super().initial(request, *args, **kwargs)
        if (tenant_ids := caller(request).tenant_ids) is not None:
            self.turn.enter_context(TURNS.turn(tenant_ids))
        method = (request.method or "").lower()
        if (handler := getattr(self, method, None)) is not None:
            setattr(self, method, once(handler, request, self.secret_members))


class RowsView(Tagged, ApiView, GenericViewSet[Any]):
    model: type[TenantScoped] | type[Tenant]
    operators_only: tuple[str, ...] = ()  # actions
    select: tuple[str, ...] = ("tenant",)
    defer: tuple[str, ...] = ()
    orderings: tuple[str, ...] = ("-created_at",)  # sort keys; the default comes first
    lookup_value_regex = "[1-9][0-9]{0,17}"
    pagination_class = Pages
    filter_backends = (Filters,)
    filterset_class: Any = TenantFilter

    def get_permissions(self) -> Any:
        return [Operators()] if self.action in self.operators_only else super().get_permissions()

    def get_queryset(self) -> QuerySet[Any]:
        if getattr(self, "swagger_fake_view", False):  # the OpenAPI document asks, nobody else
            return self.model._base_manager.none()
        return self.visible().select_related(*self.select).defer(*self.defer)

    def visible(self) -> QuerySet[Any]:
        return caller(self.request).rows(self.model)

    def object_to_change(self) -> Any:
        """The row of this address. Raises Problem (forbidden) for people who may only look."""
        row = self.get_object()
        if not caller(self.request).may_write(row.tenant_id):
            raise Problem("forbidden", "Your role in this tenant lets you look, not change.")
        return row


class ReadOnlyView(ListModelMixin, RetrieveModelMixin, RowsView):
    """List and detail."""


def checked(serializer: Any, request: Request) -> dict[str, Any]:
    """The body of a request. Raises ValidationError naming what is wrong."""
    body = serializer(data=request.data)
    body.is_valid(raise_exception=True)
    return dict(body.validated_data)


def no_body(request: Request) -> None:
    """For actions without members: refuses a body that has some. Raises as `checked`."""
    checked(EmptySerializer, request)
