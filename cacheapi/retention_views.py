"""/api/v1: retention policies, their rules, and what a change of them would remove."""

from dataclasses import asdict
from typing import Any

from drf_spectacular.utils import extend_schema
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from cacheapi import retention_serializers as shapes
from cacheapi.access import Operators, actor
from cacheapi.queries import RowNumber, Text
from cacheapi.viewsets import SLUG, ReadOnlyView, TenantFilter, checked, no_body
from catalog.models import Space
from controlplane import hot
from controlplane.problems import Problem
from retention import services
from retention.dry_run import MOST_BLOCKS, dry_run, proposed_rulebook
from retention.models import RetentionPolicy, RetentionRule
from tenants.models import Tenant
from tenants.scope import tenant_scope


class PoliciesView(ReadOnlyView):
    """How long a tenant's blocks stay, and where, before any rule."""

    model = RetentionPolicy
    serializer_class = shapes.PolicySerializer
    lookup_field = "tenant__slug"
    lookup_url_kwarg = "tenant"
    lookup_value_regex = SLUG
    orderings = ("id",)

    def get_permissions(self) -> Any:
        return [Operators()] if self.action == "partial_update" else super().get_permissions()

    @extend_schema(request=shapes.PolicyChangeSerializer, responses=shapes.PolicySerializer)
    def partial_update(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """New blocks follow at once, stored ones within seconds: see `is_applied`."""
        policy = self.get_object()
        change = checked(shapes.PolicyChangeSerializer, request)
        policy = services.set_policy(tenant=policy.tenant, actor=actor(request), **change)
        return Response(shapes.PolicySerializer(policy).data)

    @extend_schema(request=shapes.DryRunRequestSerializer, responses=shapes.DryRunSerializer)
    @action(methods=["post"], detail=True, url_path="dry-run", url_name="dry-run")
    def dry_run(self, request: Request, tenant: str) -> Response:
        """What a change would remove at once, without changing anything."""
        owner: Tenant = self.get_object().tenant
        change = checked(shapes.DryRunRequestSerializer, request)
        rules = change.get("rules")
        book = proposed_rulebook(
            owner,
            policy=change.get("policy"),
            rules=None if rules is None else [_with_space(owner, rule) for rule in rules],
        )
        with hot.required():
            report = dry_run(owner.pk, book, most_blocks=MOST_BLOCKS)
        return Response(shapes.DryRunSerializer(asdict(report)).data)


class RuleFilter(TenantFilter):
    space = RowNumber(field_name="space_id", help_text="number of the space")
    label = Text()


class RulesView(ReadOnlyView):
    """Other values for the blocks of a space, a label, or contexts by name."""

    model = RetentionRule
    orderings = ("id",)
    serializer_class = shapes.RuleSerializer
    filterset_class = RuleFilter

    def get_permissions(self) -> Any:
        reads = self.action in ("list", "retrieve", None)
        return super().get_permissions() if reads else [Operators()]

    @extend_schema(request=shapes.NewRuleSerializer, responses={201: shapes.RuleSerializer})
    def create(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Adds a rule. A dry run of the policy says before what it would remove."""
        fields = checked(shapes.NewRuleSerializer, request)
        tenant = Tenant.objects.filter(slug=fields.pop("tenant")).first()
        if tenant is None:
            raise Problem("malformed", "tenant: there is no such tenant.", field="tenant")
        fields = _with_space(tenant, fields)
        rule = services.add_rule(tenant=tenant, actor=actor(request), **fields)
        return Response(shapes.RuleSerializer(rule).data, status=201)

    @extend_schema(request=shapes.RuleChangeSerializer, responses=shapes.RuleSerializer)
    def partial_update(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Changes a rule."""
        rule = self.get_object()
        fields = _with_space(rule.tenant, checked(shapes.RuleChangeSerializer, request))
        rule = services.change_rule(rule=rule, actor=actor(request), **fields)
        return Response(shapes.RuleSerializer(rule).data)

    @extend_schema(responses={204: None})
    def destroy(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Removes a rule; its blocks follow what is left."""
        rule = self.get_object()
        no_body(request)
        services.remove_rule(rule=rule, actor=actor(request))
        return Response(status=204)


def _with_space(tenant: Tenant, fields: dict[str, Any]) -> dict[str, Any]:
    """The space's number as its row. Raises Problem (malformed) when the tenant has no such one."""
    if fields.get("space") is None:
        return fields
    with tenant_scope(tenant.pk):
        space = Space.objects.filter(pk=fields["space"]).first()
    if space is None:
        raise Problem("malformed", "space: the tenant has no such space.", field="space")
    return {**fields, "space": space}
