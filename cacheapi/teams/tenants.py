"""/api/v1/tenants: tenants and their quotas."""

from typing import Any

import django_filters
from django.db.models import QuerySet
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from cacheapi.base.access import Operators, caller
from cacheapi.base.fields import Flag, StrictSerializer, WholeNumber
from cacheapi.base.filters import FlagFilter, TextFilter
from cacheapi.base.viewsets import SLUG, ReadOnlyView, checked, no_body
from cacheapi.teams.removal import CONFIRM, RemovalSerializer, require_confirmed
from catalog.limits import limit_of
from catalog.spaces import weight_of
from tenants import services
from tenants.models import Tenant
from tenants.principal import actor_of


class Limit(serializers.IntegerField):
    """The limit in force: the quota's own number, or else the setting's."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(source="*", read_only=True, **kwargs)

    def to_representation(self, value: Any) -> int:
        return limit_of(value, str(self.field_name))


class QuotaSerializer(serializers.Serializer[Any]):
    hot_bytes = serializers.IntegerField()
    cold_bytes = serializers.IntegerField()
    space_limit = Limit(help_text="spaces")
    context_limit = Limit(help_text="contexts")
    context_block_limit = Limit(help_text="blocks of one context")


class RowLimit(WholeNumber):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(max_value=2**31 - 1, required=False, allow_null=True, **kwargs)


_LIMITS = ("hot_bytes", "cold_bytes", "space_limit", "context_limit", "context_block_limit")


class QuotaChangeSerializer(StrictSerializer):
    """Absent members keep their value."""

    schema = {"anyOf": [{"required": [name]} for name in _LIMITS]}
    hot_bytes = WholeNumber(required=False)
    cold_bytes = WholeNumber(required=False)
    overcommit = Flag(
        required=False, help_text="promise more hot memory than the servers have; default false"
    )
    space_limit = RowLimit(help_text="spaces; null: the default")
    context_limit = RowLimit(help_text="contexts; null: the default")
    context_block_limit = RowLimit(help_text="blocks of one context; null: the default")

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if not attrs.keys() & set(_LIMITS):
            raise serializers.ValidationError(f"give at least one of {', '.join(_LIMITS)}")
        return attrs


class TenantSerializer(serializers.ModelSerializer[Tenant]):
    quota = QuotaSerializer(read_only=True)

    class Meta:
        model = Tenant
        fields = ("id", "slug", "name", "node_limit", "is_active", "created_at", "quota")
        read_only_fields = fields


class TenantListFilter(django_filters.FilterSet):
    slug = TextFilter()
    is_active = FlagFilter()


class TenantsView(ReadOnlyView):
    """Tenants and their quotas, for operators."""

    model = Tenant
    select = ("quota",)
    permission_classes = (Operators,)
    serializer_class = TenantSerializer
    filterset_class = TenantListFilter
    lookup_field = "slug"
    lookup_value_regex = SLUG
    orderings = ("slug", "created_at")
    takes = {"destroy": ("confirm",)}

    def visible(self) -> QuerySet[Tenant]:
        return caller(self.request).tenant_rows()

    @extend_schema(request=QuotaChangeSerializer, responses=QuotaSerializer)
    @action(methods=["patch"], detail=True, url_path="quota", url_name="quota")
    def set_quota(self, request: Request, slug: str) -> Response:
        """Sets hard limits. All hot quotas together must fit the hot tier's memory."""
        tenant = self.get_object()
        change = checked(QuotaChangeSerializer, request)
        limits = {"hot_bytes": tenant.quota.hot_bytes, "cold_bytes": tenant.quota.cold_bytes}
        quota = services.set_quota(tenant=tenant, actor=actor_of(request), **{**limits, **change})
        return Response(QuotaSerializer(quota).data)

    @extend_schema(parameters=[CONFIRM], responses={202: RemovalSerializer})
    def destroy(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Cuts the tenant off at once; its data is deleted within minutes."""
        tenant = self.get_object()
        no_body(request)
        weight = weight_of(tenant.pk)
        require_confirmed(request, tenant.slug, weight)
        services.remove_tenant(tenant=tenant, actor=actor_of(request))
        return Response(weight, status=202)
