"""/api/v1/rules: other values for some blocks."""

from typing import Any

from drf_spectacular.utils import extend_schema
from rest_framework.request import Request
from rest_framework.response import Response

from base.problems import Problem
from cacheapi.base.fields import StrictSerializer, Text, WholeNumber
from cacheapi.base.filters import RowFilter, TenantFilter, TextFilter
from cacheapi.base.viewsets import ReadOnlyView, TenantOwnedSerializer, checked, no_body
from cacheapi.teams.terms import OverridesSerializer
from catalog.models import Space
from retention import services
from retention.models import MAX_S, RetentionRule
from retention.services import RULE_FIELDS
from tenants.models import Tenant
from tenants.principal import actor_of
from tenants.scope import tenant_scope


class RuleSerializer(TenantOwnedSerializer):
    class Meta:
        model = RetentionRule
        fields = ("id", "tenant", *RULE_FIELDS)
        read_only_fields = fields


class RuleChangeSerializer(StrictSerializer):
    """Absent members keep their value. A rule needs a space, a label or a context."""

    space = WholeNumber(
        min_value=1, allow_null=True, required=False, help_text="number of the space"
    )
    # DRF takes fields off the class: these two hide nothing of their names.
    label = Text(max_length=100, allow_blank=True, required=False)  # type: ignore[assignment]
    context = Text(  # type: ignore[assignment]
        max_length=200, allow_blank=True, required=False, help_text="a name, or a pattern: repo-*"
    )
    order = WholeNumber(max_value=MAX_S, required=False, help_text="lower wins between equals")
    overrides = OverridesSerializer(required=False)


class RuleValuesSerializer(RuleChangeSerializer):
    """A whole rule."""

    overrides = OverridesSerializer()


class NewRuleSerializer(RuleValuesSerializer):
    tenant = Text(help_text="slug")


class RuleFilter(TenantFilter):
    space = RowFilter(field_name="space_id", help_text="number of the space")
    label = TextFilter()


class RulesView(ReadOnlyView):
    """Other values for the blocks of a space, a label, or contexts by name."""

    model = RetentionRule
    orderings = ("id",)
    operators_only = ("create", "partial_update", "destroy")
    serializer_class = RuleSerializer
    filterset_class = RuleFilter

    @extend_schema(request=NewRuleSerializer, responses={201: RuleSerializer})
    def create(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Adds a rule. First ask a dry run of the policy what it would remove."""
        fields = checked(NewRuleSerializer, request)
        tenant = Tenant.objects.filter(slug=fields.pop("tenant")).first()
        if tenant is None:
            raise Problem("malformed", "tenant: there is no such tenant.", field="tenant")
        fields = _with_space(tenant, fields)
        rule = services.add_rule(tenant=tenant, actor=actor_of(request), **fields)
        return Response(RuleSerializer(rule).data, status=201)

    @extend_schema(request=RuleChangeSerializer, responses=RuleSerializer)
    def partial_update(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Changes a rule."""
        rule = self.get_object()
        fields = _with_space(rule.tenant, checked(RuleChangeSerializer, request))
        rule = services.change_rule(rule=rule, actor=actor_of(request), **fields)
        return Response(RuleSerializer(rule).data)

    @extend_schema(responses={204: None})
    def destroy(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Removes a rule; its blocks follow the policy and the other rules."""
        rule = self.get_object()
        no_body(request)
        services.remove_rule(rule=rule, actor=actor_of(request))
        return Response(status=204)


def _with_space(tenant: Tenant, fields: dict[str, Any]) -> dict[str, Any]:
    """Replaces the space's number by its row. Raises Problem (malformed) if the tenant has none."""
    if fields.get("space") is None:
        return fields
    with tenant_scope(tenant.pk):
        space = Space.objects.filter(pk=fields["space"]).first()
    if space is None:
        raise Problem("malformed", "space: the tenant has no such space.", field="space")
    return {**fields, "space": space}
