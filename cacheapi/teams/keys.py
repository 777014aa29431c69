"""/api/v1/keys: API keys."""

from typing import Any

import django_filters
from django.utils import timezone
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.mixins import CreateModelMixin
from rest_framework.request import Request
from rest_framework.response import Response

from base.problems import Problem
from cacheapi.base.fields import Choice, Moment, StrictSerializer, Text
from cacheapi.base.filters import TenantFilter
from cacheapi.base.viewsets import ReadOnlyView, TenantOwnedSerializer, checked, no_body
from tenants import services
from tenants.models import ApiKey, Tenant
from tenants.principal import actor_of


class KeySerializer(TenantOwnedSerializer):
    class Meta:
        model = ApiKey
        fields: tuple[str, ...] = (
            *("id", "tenant", "name", "role", "prefix", "created_at", "last_used_at"),
            *("expires_at", "revoked_at"),
        )
        read_only_fields = fields


class NewKeySerializer(StrictSerializer):
    name = Text(max_length=100)
    role = Choice(choices=ApiKey.Role.choices)
    tenant = Text(allow_null=True, default=None, help_text="slug; null for an operator key")
    expires_at = Moment(allow_null=True, default=None)

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        is_operator = attrs["role"] == ApiKey.Role.OPERATOR
        if is_operator != (attrs["tenant"] is None):
            raise serializers.ValidationError(
                {"tenant": "an operator key has none, any other key needs one"}
            )
        if attrs["expires_at"] is not None and attrs["expires_at"] <= timezone.now():
            raise serializers.ValidationError({"expires_at": "needs to lie in the future"})
        return attrs


class IssuedKeySerializer(KeySerializer):
    key = serializers.CharField(
        help_text="the whole key, shown only once", read_only=True, allow_null=True
    )

    class Meta(KeySerializer.Meta):
        fields = (*KeySerializer.Meta.fields, "key")
        read_only_fields = fields


class KeyFilter(TenantFilter):
    role = django_filters.ChoiceFilter(choices=ApiKey.Role.choices)


class KeysView(CreateModelMixin, ReadOnlyView):
    """API keys, without their secrets. Operators issue and revoke them."""

    model = ApiKey
    serializer_class = KeySerializer
    filterset_class = KeyFilter
    operators_only = ("create", "revoke")
    secret_members = ("key",)

    @extend_schema(request=NewKeySerializer, responses={201: IssuedKeySerializer})
    def create(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Issues a key. Only this answer holds the whole key; a repeated answer holds null."""
        body = checked(NewKeySerializer, request)
        tenant = None
        if body["tenant"] is not None:
            tenant = Tenant.objects.filter(slug=body["tenant"]).first()
            if tenant is None:
                raise Problem("malformed", "tenant: there is no such tenant.", field="tenant")
        key, plaintext = services.issue_key(
            tenant=tenant,
            role=body["role"],
            name=body["name"],
            expires_at=body["expires_at"],
            actor=actor_of(request),
        )
        return Response({**KeySerializer(key).data, "key": plaintext}, status=201)

    @extend_schema(request=None, responses=KeySerializer)
    @action(methods=["post"], detail=True)
    def revoke(self, request: Request, pk: str) -> Response:
        """Refuses the key from now on."""
        key = self.get_object()
        no_body(request)
        key = services.revoke_key(key=key, actor=actor_of(request))
        return Response(KeySerializer(key).data)
