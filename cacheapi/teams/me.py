"""/api/v1/me: who asks, and what they may do."""

from typing import Any

from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from cacheapi.base.access import Known, caller
from cacheapi.base.throttles import CallerThrottle
from cacheapi.base.viewsets import ApiView
from cacheapi.teams.keys import KeySerializer
from tenants.models import ApiKey
from tenants.principal import Principal


class OwnTenantSerializer(serializers.Serializer[Any]):
    slug = serializers.CharField()
    name = serializers.CharField()
    may_write = serializers.BooleanField(help_text="whether you may change contexts there")


class RateLimitSerializer(serializers.Serializer[Any]):
    requests = serializers.IntegerField()
    window_s = serializers.IntegerField()


class MeSerializer(serializers.Serializer[Any]):
    id = serializers.CharField(help_text="`key:7` or `user:3`: pins belong to it")
    kind = serializers.ChoiceField(choices=["key", "person"])
    name = serializers.CharField(help_text="as the audit names you")
    role = serializers.ChoiceField(choices=ApiKey.Role.choices)
    scopes = serializers.ListField(child=serializers.ChoiceField(choices=ApiKey.Scope.choices))
    tenants = OwnTenantSerializer(
        many=True, allow_null=True, help_text="null: all, for an operator"
    )
    key = KeySerializer(allow_null=True, help_text="null: a signed-in person")
    rate_limit = RateLimitSerializer(allow_null=True, help_text="null: none")


class MeView(ApiView):
    """The caller."""

    permission_classes = (Known,)

    @extend_schema(responses=MeSerializer)
    def get(self, request: Request) -> Response:
        """Who you are: role, scopes, tenants, the key's end, and how often you may ask."""
        me, key = caller(request), request.auth
        rate = CallerThrottle()
        return Response(
            {
                "id": me.id,
                "kind": "person" if key is None else "key",
                "name": me.name,
                "role": me.role,
                "scopes": sorted(map(str, me.scopes)),
                "tenants": None if me.is_operator else _tenants(me),
                "key": None if key is None else KeySerializer(key).data,
                "rate_limit": None
                if rate.rate is None
                else {"requests": rate.num_requests, "window_s": rate.duration},
            }
        )


def _tenants(me: Principal) -> list[dict[str, Any]]:
    return [
        {"slug": tenant.slug, "name": tenant.name, "may_write": me.may_write(tenant.pk)}
        for tenant in me.tenants
    ]
