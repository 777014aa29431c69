"""/api/v1/policies: how long a tenant's blocks stay; what a change would remove."""

from dataclasses import asdict, fields
from typing import Any

from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from cacheapi.base.fields import StrictSerializer
from cacheapi.base.viewsets import SLUG, ReadOnlyView, TenantOwnedSerializer, checked
from cacheapi.teams.rules import RuleValuesSerializer, _with_space
from cacheapi.teams.terms import PolicyChangeSerializer
from contexts.dry_run import MOST_BLOCKS, DryRun, dry_run, proposed_rulebook
from retention import services
from retention.models import RetentionPolicy
from retention.services import FIELDS
from storage import hot
from tenants.models import Tenant
from tenants.principal import actor_of


class PolicySerializer(TenantOwnedSerializer):
    is_applied = serializers.BooleanField(help_text="stored blocks follow the last change by now")

    class Meta:
        model = RetentionPolicy
        fields = ("tenant", *FIELDS, "is_applied")
        read_only_fields = fields


class PolicyDryRunSerializer(StrictSerializer):
    """The change: fields of the policy, all rules as they would be, or both."""

    policy = PolicyChangeSerializer(required=False)
    rules = RuleValuesSerializer(many=True, required=False, help_text="absent: those there are")


class LosingContextSerializer(serializers.Serializer[Any]):
    uuid = serializers.UUIDField()
    name = serializers.CharField()
    last_used_at = serializers.DateTimeField(allow_null=True)
    lost_blocks = serializers.IntegerField()
    blocks = serializers.IntegerField()


class DryRunSerializer(serializers.Serializer[Any]):
    """Blocks that would go at once. Removed: from both tiers; cooled: from the hot tier only."""

    looked_at = serializers.IntegerField(help_text="blocks")
    is_complete = serializers.BooleanField(help_text="false: it is at least so much")
    removed_blocks = serializers.IntegerField()
    removed_hot_bytes = serializers.IntegerField()
    removed_cold_bytes = serializers.IntegerField()
    cooled_blocks = serializers.IntegerField()
    cooled_bytes = serializers.IntegerField()
    contexts = serializers.IntegerField(help_text="that would lose blocks")
    contexts_used_24h = serializers.IntegerField(help_text="of those, used within a day")
    named = LosingContextSerializer(many=True, help_text="the last used of them, at most 5")

    def get_fields(self) -> Any:
        found = super().get_fields()
        assert set(found) == {each.name for each in fields(DryRun)}
        return found


class PoliciesView(ReadOnlyView):
    """How long a tenant's blocks stay, and where, before any rule."""

    model = RetentionPolicy
    serializer_class = PolicySerializer
    lookup_field = "tenant__slug"
    lookup_url_kwarg = "tenant"
    lookup_value_regex = SLUG
    orderings = ("id",)
    operators_only = ("partial_update",)
    reads = ("dry_run",)

    @extend_schema(request=PolicyChangeSerializer, responses=PolicySerializer)
    def partial_update(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """New blocks follow at once, stored ones within seconds: see `is_applied`."""
        policy = self.get_object()
        change = checked(PolicyChangeSerializer, request)
        policy = services.set_policy(tenant=policy.tenant, actor=actor_of(request), **change)
        return Response(PolicySerializer(policy).data)

    @extend_schema(request=PolicyDryRunSerializer, responses=DryRunSerializer)
    @action(methods=["post"], detail=True, url_path="dry-run", url_name="dry-run")
    def dry_run(self, request: Request, tenant: str) -> Response:
        """What a change would remove at once, without changing anything."""
        owner: Tenant = self.get_object().tenant
        change = checked(PolicyDryRunSerializer, request)
        rules = change.get("rules")
        book = proposed_rulebook(
            owner,
            policy=change.get("policy"),
            rules=None if rules is None else [_with_space(owner, rule) for rule in rules],
        )
        with hot.required():
            report = dry_run(owner.pk, book, most_blocks=MOST_BLOCKS)
        return Response(DryRunSerializer(asdict(report)).data)
