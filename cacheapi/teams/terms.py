"""Shapes of retention terms: the fields of a policy, and those that a rule replaces."""

from typing import Any

from cacheapi.base.fields import Choice, StrictSerializer, Text, WholeNumber
from neve.index.tier import MOST_WINDOW_S
from retention.models import MAX_S, OVERRIDES, ColdCodec, ColdFull, EvictionPolicy, FlushMode
from retention.terms import PRIORITIES


class PolicyChangeSerializer(StrictSerializer):
    """Absent members keep their value; null is without limit."""

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
    cold_codec = Choice(
        choices=ColdCodec.choices,
        required=False,
        help_text="how blocks are written to S3, without loss; older nodes read no compressed ones",
    )
    lossy_codecs = Text(
        max_length=1000,
        allow_blank=True,
        required=False,
        help_text="models whose nodes may store KV with loss, such as smollm*=int8, *=fp8",
    )


class OverridesSerializer(PolicyChangeSerializer):
    """Fields of the policy that a rule replaces; null is without limit."""

    schema = {"minProperties": 1}

    def get_fields(self) -> Any:
        allowed = ("flush_mode", "cold_codec", *OVERRIDES)
        return {name: field for name, field in super().get_fields().items() if name in allowed}
