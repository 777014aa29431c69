"""/api/v1/tenants: tenants and their quotas."""

from typing import Any

import django_filters
from django.db.models import QuerySet
from drf_spectacular.utils import extend_schema, extend_schema_field
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from base.problems import Problem
from cacheapi.base.access import caller
from cacheapi.base.fields import Flag, StrictSerializer, Text, WholeNumber
from cacheapi.base.filters import FlagFilter, TextFilter
from cacheapi.base.viewsets import SLUG, ReadOnlyView, checked, no_body
from cacheapi.teams.removal import CONFIRM, RemovalSerializer, require_confirmed
from catalog.limits import limit_of
from catalog.spaces import weight_of
from contexts.quotas import own_quota
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

    # At least one, not `overcommit` alone. Not `anyOf`: generated clients would drop the members.
    schema = {"minProperties": 1, "not": {"required": ["overcommit"], "maxProperties": 1}}
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


class UsedSerializer(serializers.Serializer[Any]):
    """What the tenant uses of its limits now."""

    hot_bytes = serializers.IntegerField(allow_null=True, help_text="null: Valkey does not answer")
    cold_bytes = serializers.IntegerField(allow_null=True, help_text="null: Valkey does not answer")
    pinned_bytes = serializers.IntegerField(
        allow_null=True, help_text="null: Valkey does not answer"
    )
    spaces = serializers.IntegerField()
    contexts = serializers.IntegerField()
    nodes = serializers.IntegerField(help_text="with young heartbeats")
    keys = serializers.IntegerField(help_text="usable ones")


class OwnQuotaSerializer(serializers.Serializer[Any]):
    hot_bytes = serializers.IntegerField()
    cold_bytes = serializers.IntegerField()
    space_limit = serializers.IntegerField(help_text="spaces")
    context_limit = serializers.IntegerField(help_text="contexts")
    context_block_limit = serializers.IntegerField(help_text="blocks of one context")
    pin_budget_bytes = serializers.IntegerField(
        allow_null=True, help_text="of all pins together; null: no budget"
    )
    node_limit = serializers.IntegerField(help_text="nodes that may be connected")
    key_limit = serializers.IntegerField(help_text="keys that may be usable")
    used = UsedSerializer()


class TenantSerializer(serializers.ModelSerializer[Tenant]):
    quota = QuotaSerializer(read_only=True)

    class Meta:
        model = Tenant
        fields = (
            *("id", "slug", "name", "node_limit", "is_active", "samples_enabled"),
            *("cut_off_at", "cut_off_reason", "created_at", "quota"),
        )
        read_only_fields = fields


@extend_schema_field({"type": "string", "pattern": f"^{SLUG}$", "maxLength": 40})
class Slug(Text):
    pass


class NewQuotaSerializer(QuotaChangeSerializer):
    """Absent members get a default."""

    schema: dict[str, Any] = {}

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        return attrs


class NewTenantSerializer(StrictSerializer):
    slug = Slug(help_text="its name in addresses, which stays: a to z, digits, hyphens; not `all`")
    name = Text(max_length=200)
    node_limit = WholeNumber(max_value=2**31 - 1, required=False, help_text="16 unless given")
    is_active = Flag(default=True)
    quota = NewQuotaSerializer(
        required=False, help_text="1 GiB hot, or half of the room that is left, and 16 GiB cold"
    )


_CHANGES = ("name", "node_limit", "is_active", "samples_enabled")


class TenantChangeSerializer(StrictSerializer):
    """Absent members keep their value."""

    schema = QuotaChangeSerializer.schema
    name = Text(max_length=200, required=False)
    node_limit = WholeNumber(max_value=2**31 - 1, required=False)
    is_active = Flag(
        required=False, help_text="false: keys, sessions and Valkey users end at once; data stays"
    )
    samples_enabled = Flag(
        required=False, help_text="false: nodes send no samples, and stored ones are deleted"
    )
    overcommit = Flag(
        required=False, help_text="activate, though the hot quota does not fit; default false"
    )

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if not attrs.keys() & set(_CHANGES):
            raise serializers.ValidationError(f"give at least one of {', '.join(_CHANGES)}")
        return attrs


class TenantListFilter(django_filters.FilterSet):
    slug = TextFilter()
    is_active = FlagFilter()


class TenantsView(ReadOnlyView):
    """Tenants, for operators; everybody reads the quota of their own."""

    model = Tenant
    select = ("quota",)
    operators_only = (
        *("list", "retrieve", "create", "partial_update", "destroy", "set_quota", "let_in"),
    )
    serializer_class = TenantSerializer
    filterset_class = TenantListFilter
    lookup_field = "slug"
    lookup_value_regex = SLUG
    orderings = ("slug", "created_at")
    takes = {"destroy": ("confirm",)}

    def visible(self) -> QuerySet[Tenant]:
        return caller(self.request).tenant_rows()

    @extend_schema(request=NewTenantSerializer, responses={201: TenantSerializer})
    def create(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Makes a tenant with its quota and its policy."""
        body = checked(NewTenantSerializer, request)
        quota = body.pop("quota", {})
        if Tenant.objects.filter(slug=body["slug"]).exists():
            raise Problem("conflict", f"slug: there is a tenant {body['slug']}.", field="slug")
        tenant = services.create_tenant(**body, **quota, actor=actor_of(request))
        return Response(TenantSerializer(tenant).data, status=201)

    @extend_schema(request=TenantChangeSerializer, responses=TenantSerializer)
    def partial_update(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Changes the tenant. An inactive one's keys, sessions and Valkey users end at once; its
        data stays, and its people see it no more, until it is active again."""
        tenant = self.get_object()
        change = checked(TenantChangeSerializer, request)
        changed = services.change_tenant(tenant=tenant, **change, actor=actor_of(request))
        return Response(TenantSerializer(changed).data)

    @extend_schema(responses=OwnQuotaSerializer)
    @action(methods=["get"], detail=True)
    def quota(self, request: Request, slug: str) -> Response:
        """The limits of a tenant, and what it uses of them now."""
        return Response(OwnQuotaSerializer(own_quota(self.get_object())).data)

    @extend_schema(request=QuotaChangeSerializer, responses=QuotaSerializer)
    @quota.mapping.patch
    def set_quota(self, request: Request, slug: str) -> Response:
        """Sets hard limits. All hot quotas together must fit the hot tier's memory."""
        tenant = self.get_object()
        change = checked(QuotaChangeSerializer, request)
        quota = services.set_quota(tenant=tenant, actor=actor_of(request), **change)
        return Response(QuotaSerializer(quota).data)

    @extend_schema(request=None, responses=TenantSerializer)
    @action(methods=["post"], detail=True, url_path="let-in", url_name="let-in")
    def let_in(self, request: Request, slug: str) -> Response:
        """Lets a tenant's nodes in again that were cut off for harming others."""
        tenant = self.get_object()
        no_body(request)
        services.let_in(tenant=tenant, actor=actor_of(request))
        return Response(TenantSerializer(self.get_object()).data)

    @extend_schema(parameters=[CONFIRM], responses={202: RemovalSerializer})
    def destroy(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Cuts the tenant off at once; its data is deleted within minutes."""
        tenant = self.get_object()
        no_body(request)
        weight = weight_of(tenant.pk)
        require_confirmed(request, tenant.slug, weight)
        services.remove_tenant(tenant=tenant, actor=actor_of(request))
        return Response(weight, status=202)
