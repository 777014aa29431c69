"""/api/v1/keys: API keys."""

from datetime import timedelta
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
from cacheapi.base.access import caller
from cacheapi.base.fields import Choice, Duration, Flag, Moment, StrictSerializer, Text
from cacheapi.base.filters import FlagFilter, TenantFilter
from cacheapi.base.viewsets import ReadOnlyView, TenantOwnedSerializer, checked
from tenants import issuing
from tenants.models import ApiKey, Tenant
from tenants.principal import Principal, actor_of

MOST_LIFE_S = 10 * 366 * 86_400


class KeySerializer(TenantOwnedSerializer):
    scopes = serializers.ListField(
        child=serializers.ChoiceField(choices=ApiKey.Scope.choices),
        read_only=True,
        help_text="what the key may do within its role; a node key has none",
    )

    class Meta:
        model = ApiKey
        fields: tuple[str, ...] = (
            *("id", "tenant", "name", "role", "scopes", "prefix", "made_by", "rotated_from"),
            *("created_at", "last_used_at", "expires_at", "revoked_at"),
        )
        read_only_fields = fields


class ExpirySerializer(StrictSerializer):
    """At most one of `expires_at` and `expires_in`."""

    expires_at = Moment(allow_null=True, default=None)
    expires_in = Duration(required=False, max_s=MOST_LIFE_S)

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if "expires_in" in attrs:
            if attrs["expires_at"] is not None:
                raise serializers.ValidationError(
                    {"expires_in": "give either expires_at or expires_in"}
                )
            attrs["expires_at"] = timezone.now() + timedelta(seconds=attrs["expires_in"])
        if attrs["expires_at"] is not None and attrs["expires_at"] <= timezone.now():
            raise serializers.ValidationError({"expires_at": "needs to lie in the future"})
        return attrs


class NewKeySerializer(ExpirySerializer):
    name = Text(max_length=100)
    role = Choice(choices=ApiKey.Role.choices)
    tenant = Text(
        allow_null=True,
        default=None,
        help_text="slug; null for an operator key; absent: your only tenant",
    )
    scopes = serializers.ListField(
        child=Choice(choices=ApiKey.Scope.choices),
        required=False,
        min_length=1,
        max_length=len(ApiKey.Scope),
        help_text="absent: read and write, and keys for an operator; `write` brings `read`; a "
        "node key has none",
    )


class RotateKeySerializer(ExpirySerializer):
    """Without `expires_at` and `expires_in` the new key lives as long as the old one was to."""

    overlap = Duration(
        required=False,
        min_s=0,
        max_s=issuing.MOST_OVERLAP_S,
        help_text="how long the old key still works; 1h unless given",
    )


class RevokeKeySerializer(StrictSerializer):
    keep_made = Flag(
        default=False, help_text="true: keys that this key made stay; else they end, too"
    )


class IssuedKeySerializer(KeySerializer):
    key = serializers.CharField(
        help_text="the whole key, shown only once", read_only=True, allow_null=True
    )

    class Meta(KeySerializer.Meta):
        fields = (*KeySerializer.Meta.fields, "key")
        read_only_fields = fields


class KeyFilter(TenantFilter):
    role = django_filters.ChoiceFilter(choices=ApiKey.Role.choices)
    revoked = FlagFilter(field_name="revoked_at", lookup_expr="isnull", exclude=True)


class KeysView(CreateModelMixin, ReadOnlyView):
    """API keys, without their secrets."""

    scopes_to_read = (ApiKey.Scope.READ, ApiKey.Scope.KEYS)
    scopes_to_change = (ApiKey.Scope.KEYS,)
    model = ApiKey
    serializer_class = KeySerializer
    filterset_class = KeyFilter
    secret_members = ("key",)

    @extend_schema(request=NewKeySerializer, responses={201: IssuedKeySerializer})
    def create(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Issues a key. Only this answer holds the whole key; a repeated answer holds null.

        Operators issue any. Members of role `team`, and team keys with the scope `keys`, issue team
        keys of their tenant; a key issues none that can do more, or lives longer, than itself."""
        issuing.require_issuer(caller(request))
        body = checked(NewKeySerializer, request)
        key, plaintext = issuing.make_key(
            caller=caller(request),
            tenant=_tenant_of(caller(request), body["role"], body["tenant"]),
            role=body["role"],
            name=body["name"],
            scopes=body.get("scopes"),
            expires_at=body["expires_at"],
            actor=actor_of(request),
        )
        return Response({**KeySerializer(key).data, "key": plaintext}, status=201)

    @extend_schema(request=RotateKeySerializer, responses={201: IssuedKeySerializer})
    @action(methods=["post"], detail=True)
    def rotate(self, request: Request, pk: str) -> Response:
        """Issues a key with the same name, role and scopes, which owns the same pins; the old key
        ends after the overlap. Only this answer holds the whole key."""
        key = self.get_object()
        issuing.require_managed(caller(request), key)
        body = checked(RotateKeySerializer, request)
        made, plaintext = issuing.rotate_key(
            caller=caller(request),
            key=key,
            overlap_s=body.get("overlap", 3600),
            expires_at=body["expires_at"],
            actor=actor_of(request),
        )
        return Response({**KeySerializer(made).data, "key": plaintext}, status=201)

    @extend_schema(request=RevokeKeySerializer, responses=KeySerializer)
    @action(methods=["post"], detail=True)
    def revoke(self, request: Request, pk: str) -> Response:
        """Refuses the key from now on, and the keys that it made."""
        key = self.get_object()
        issuing.require_managed(caller(request), key)
        body = checked(RevokeKeySerializer, request)
        key = issuing.revoke_key(
            caller=caller(request),
            key=key,
            keep_made=body["keep_made"],
            actor=actor_of(request),
        )
        return Response(KeySerializer(key).data)


def _tenant_of(issuer: Principal, role: str, slug: str | None) -> Tenant | None:
    """Raises Problem (malformed)."""
    if role == ApiKey.Role.OPERATOR:
        if slug is not None:
            raise Problem("malformed", "tenant: an operator key has none.", field="tenant")
        return None
    if slug is None:
        own = () if issuer.is_operator else issuer.tenants
        if len(own) == 1:
            return own[0]
        raise Problem("malformed", f"tenant: a {role} key needs one.", field="tenant")
    found = issuer.tenant_rows().filter(slug=slug).first()
    if found is None:
        raise Problem("malformed", "tenant: there is no such tenant.", field="tenant")
    return found
