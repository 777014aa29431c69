"""Shapes of policies, rules and dry runs."""

from dataclasses import fields
from typing import Any

from rest_framework import serializers

from cacheapi.api_serializers import TenantOwnedSerializer
from cacheapi.fields import Choice, StrictSerializer, Text, WholeNumber
from neve.index.tier import MOST_WINDOW_S
from retention.dry_run import DryRun
from retention.models import (
    MAX_S,
    OVERRIDES,
    ColdFull,
    EvictionPolicy,
    FlushMode,
    RetentionPolicy,
    RetentionRule,
)
from retention.services import FIELDS, RULE_FIELDS
from retention.terms import PRIORITIES


class PolicySerializer(TenantOwnedSerializer):
    is_applied = serializers.BooleanField(help_text="stored blocks follow the last change by now")

    class Meta:
        model = RetentionPolicy
        fields = ("tenant", *FIELDS, "is_applied")
        read_only_fields = fields


class PolicyChangeSerializer(StrictSerializer):
    """What is absent stays; null is without limit."""

    flush_mode = Choice(choices=FlushMode.choices, required=False)
    flush_after_s = WholeNumber(max_value=MAX_S, allow_null=True, required=False)
    hot_idle_s = WholeNumber(min_value=1, max_value=MAX_S, allow_null=True, required=False)
    cold_ttl_s = WholeNumber(min_value=1, max_value=MAX_S, allow_null=True, required=False)
    max_age_s = WholeNumber(min_value=1, max_value=MAX_S, allow_null=True, required=False)
    priority = WholeNumber(max_value=PRIORITIES[-1], required=False, help_text="0 leaves first")
    pin_budget_bytes = WholeNumber(allow_null=True, required=False)
    eviction = Choice(
        choices=EvictionPolicy.choices, required=False, help_text="who leaves a full hot tier first"
    )
    promote_window_s = WholeNumber(
        max_value=MOST_WINDOW_S,
        required=False,
        help_text="a cold block read twice so close together becomes hot again; 0: never",
    )
    cold_full = Choice(
        choices=ColdFull.choices, required=False, help_text="when the cold quota is used up"
    )


class OverridesSerializer(PolicyChangeSerializer):
    """Fields of the policy that a rule replaces; null is without limit."""

    schema = {"minProperties": 1}

    def get_fields(self) -> Any:
        allowed = ("flush_mode", *OVERRIDES)
        return {name: field for name, field in super().get_fields().items() if name in allowed}


class RuleSerializer(TenantOwnedSerializer):
    class Meta:
        model = RetentionRule
        fields = ("id", "tenant", *RULE_FIELDS)
        read_only_fields = fields


class RuleChangeSerializer(StrictSerializer):
    """What is absent stays. At least one of space, label and context is needed."""

    space = WholeNumber(
        min_value=1, allow_null=True, required=False, help_text="number of the space"
    )
    label = Text(max_length=100, allow_blank=True, required=False)
    context = Text(
        max_length=200, allow_blank=True, required=False, help_text="a name, or a pattern: repo-*"
    )
    order = WholeNumber(max_value=MAX_S, required=False, help_text="lower wins between equals")
    overrides = OverridesSerializer(required=False)


class RuleValuesSerializer(RuleChangeSerializer):
    """A whole rule."""

    overrides = OverridesSerializer()


class NewRuleSerializer(RuleValuesSerializer):
    tenant = Text(help_text="slug")


class DryRunRequestSerializer(StrictSerializer):
    """The change: fields of the policy, all rules as they would be, or both."""

    policy = PolicyChangeSerializer(required=False)
    rules = RuleValuesSerializer(many=True, required=False, help_text="absent: those there are")


class DryRunSerializer(serializers.Serializer):
    """What would go at once. Removed: from both tiers; cooled: from the hot tier only."""

    looked_at = serializers.IntegerField(help_text="blocks")
    is_complete = serializers.BooleanField(help_text="false: it is at least so much")
    removed_blocks = serializers.IntegerField()
    removed_hot_bytes = serializers.IntegerField()
    removed_cold_bytes = serializers.IntegerField()
    cooled_blocks = serializers.IntegerField()
    cooled_bytes = serializers.IntegerField()
    contexts = serializers.IntegerField(help_text="that would lose blocks")

    def get_fields(self) -> Any:
        found = super().get_fields()
        assert set(found) == {each.name for each in fields(DryRun)}
        return found
