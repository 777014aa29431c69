"""The retention policy of a tenant, and the rules that refine it for some of its blocks."""

from collections.abc import Mapping
from typing import Any

from django.core.exceptions import ValidationError
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.db.models import Q

from neve.index.tier import MOST_WINDOW_S, PROMOTE_WINDOW_S, Eviction
from retention.lossy import read_list
from retention.terms import DEFAULT_PRIORITY, PRIORITIES, Rule, Terms
from tenants.models import Tenant
from tenants.scope import TenantOwned

MAX_S = 2**31 - 1
AT_LEAST_1 = [MinValueValidator(1)]
PRIORITY = [MinValueValidator(PRIORITIES[0]), MaxValueValidator(PRIORITIES[-1])]


class FlushMode(models.TextChoices):
    NOW = "now", "Flush as soon as committed"
    AFTER = "after", "Flush after some seconds"
    NEVER = "never", "Never flush: hot tier only"


class EvictionPolicy(models.TextChoices):
    """Order in which blocks leave a full hot tier. Same names as in benchmarks/policies.py."""

    LRU = "lru", "Least recently used"
    TWO_QUEUES = "2q", "Two queues: what nobody used again leaves first"

    @property
    def number(self) -> Eviction:
        return Eviction[self.name]


class ColdFull(models.TextChoices):
    """Treatment of new blocks when the cold quota is used up."""

    EVICT = "evict", "Make room: the longest unread leave"
    REFUSE = "refuse", "Refuse new blocks"


class ColdCodec(models.TextChoices):
    """Whether blocks are encoded in S3, without loss (`tiering.encoding`)."""

    NONE = "none", "As they are"
    AUTO = "auto", "Compressed where that makes reads faster"
    ALWAYS = "always", "Compressed"


class RetentionPolicy(TenantOwned):
    """Null means no limit. `retention.terms.Terms` explains the fields."""

    FlushMode = FlushMode

    tenant = models.OneToOneField(Tenant, on_delete=models.CASCADE, related_name="retention")
    flush_mode = models.CharField(max_length=5, choices=FlushMode, default=FlushMode.NOW)
    flush_after_s = models.PositiveIntegerField(null=True, blank=True)
    hot_idle_s = models.PositiveIntegerField(null=True, blank=True, validators=AT_LEAST_1)
    cold_ttl_s = models.PositiveIntegerField(null=True, blank=True, validators=AT_LEAST_1)
    max_age_s = models.PositiveIntegerField(null=True, blank=True, validators=AT_LEAST_1)
    priority = models.PositiveSmallIntegerField(default=DEFAULT_PRIORITY, validators=PRIORITY)
    pin_budget_bytes = models.BigIntegerField(null=True, blank=True)
    eviction = models.CharField(
        max_length=3, choices=EvictionPolicy, default=EvictionPolicy.TWO_QUEUES
    )
    promote_window_s = models.PositiveIntegerField(
        default=PROMOTE_WINDOW_S,
        validators=[MaxValueValidator(MOST_WINDOW_S)],
        help_text="a cold block read twice so close together becomes hot again; 0: never",
    )
    cold_full = models.CharField(
        max_length=6,
        choices=ColdFull,
        default=ColdFull.EVICT,
        help_text="when the cold quota is used up",
    )
    cold_codec = models.CharField(
        max_length=6,
        choices=ColdCodec,
        default=ColdCodec.NONE,
        help_text="how blocks are written to S3, without loss; older nodes read no compressed ones",
    )
    lossy_codecs = models.CharField(
        max_length=1000,
        blank=True,
        default="",
        help_text="models whose nodes may store KV with loss, such as smollm*=int8, *=fp8",
    )
    # +1 for each change of the policy or a rule. Stored blocks have the terms of the applied one.
    generation = models.PositiveIntegerField(default=1, editable=False)
    applied_generation = models.PositiveIntegerField(default=1, editable=False)
    applying_until = models.DateTimeField(null=True, blank=True, editable=False)
    walk = models.JSONField(null=True, blank=True, editable=False, help_text="how far it is")

    class Meta(TenantOwned.Meta):
        ordering = ("tenant",)
        verbose_name_plural = "retention policies"
        constraints = [
            models.CheckConstraint(
                name="retention_after_has_seconds",
                condition=Q(flush_mode="after", flush_after_s__isnull=False)
                | (~Q(flush_mode="after") & Q(flush_after_s=None)),
            ),
            models.CheckConstraint(
                name="retention_pin_budget_not_negative",
                condition=Q(pin_budget_bytes=None) | Q(pin_budget_bytes__gte=0),
            ),
            models.CheckConstraint(
                name="retention_promote_window_noted",
                condition=Q(promote_window_s__lte=MOST_WINDOW_S),
            ),
            models.CheckConstraint(
                name="retention_priority_known",
                condition=Q(priority__gte=PRIORITIES[0], priority__lte=PRIORITIES[-1]),
            ),
        ]

    def __str__(self) -> str:
        return f"retention of {self.tenant.slug}"

    def clean(self) -> None:
        """Raises ValidationError that names the field; the constraint's error would not."""
        if (self.flush_mode == FlushMode.AFTER) != (self.flush_after_s is not None):
            raise ValidationError(
                {"flush_after_s": "belongs to flush_mode after, and is needed there"}
            )
        try:
            list(read_list(self.lossy_codecs))
        except ValueError as error:
            raise ValidationError({"lossy_codecs": str(error)}) from error

    @property
    def is_applied(self) -> bool:
        """Whether stored blocks have the terms of the last change."""
        return self.applied_generation >= self.generation

    def terms(self) -> Terms:
        """The policy's terms, before any rule."""
        return Terms(
            flush_after_s=_flush_after(self.flush_mode, self.flush_after_s),
            hot_idle_s=self.hot_idle_s,
            cold_ttl_s=self.cold_ttl_s,
            max_age_s=self.max_age_s,
            priority=self.priority,
            pin_budget_bytes=self.pin_budget_bytes,
            cold_codec=self.cold_codec,
        )

    def as_dict(self) -> dict[str, Any]:
        """Numbers for nodes. `flush_after_s`: 0 means at once, None never."""
        terms = self.terms()
        return {
            "flush_after_s": terms.flush_after_s,
            "hot_idle_s": terms.hot_idle_s,
            "cold_ttl_s": terms.cold_ttl_s,
        }


class RetentionRule(TenantOwned):
    """Overrides the policy for blocks of a space, of a label, or of contexts by name.

    At least one condition. `overrides`: fields of the policy; null means no limit, absent means
    unchanged.
    """

    space = models.ForeignKey("catalog.Space", on_delete=models.CASCADE, null=True, blank=True)
    label = models.CharField(max_length=100, blank=True)
    context = models.CharField(max_length=200, blank=True, help_text="a name, or a pattern: repo-*")
    order = models.PositiveIntegerField(default=0, help_text="lower wins between equals")
    overrides = models.JSONField(help_text='such as {"cold_ttl_s": 3600, "max_age_s": null}')

    class Meta(TenantOwned.Meta):
        ordering = ("tenant", "order", "pk")
        constraints = [
            models.CheckConstraint(
                name="retention_rule_has_a_condition",
                condition=Q(space__isnull=False) | ~Q(label="") | ~Q(context=""),
            ),
        ]

    def __str__(self) -> str:
        conditions = {"space": self.space_id, "label": self.label, "context": self.context}
        return " ".join(f"{name}={value}" for name, value in conditions.items() if value)

    def clean(self) -> None:
        """Raises ValidationError: no condition, another tenant's space, invalid `overrides`."""
        if self.space is None and not self.label and not self.context:
            raise ValidationError({"space": "no condition: give space, label or context"})
        if self.space is not None and self.space.tenant_id != self.tenant_id:
            raise ValidationError({"space": "is no space of this tenant"})
        check_overrides(self.overrides)
        if "cold_codec" in self.overrides and (self.label or self.context):
            raise ValidationError({"overrides": "cold_codec: a whole space has one"})

    def rule(self) -> Rule:
        values = dict(self.overrides)
        if "flush_mode" in values:
            after = values.pop("flush_after_s", None)
            values["flush_after_s"] = _flush_after(values.pop("flush_mode"), after)
        return Rule(
            order=self.order,
            space_id=self.space_id,
            label=self.label or None,
            context=self.context or None,
            values=values,
        )


# Field of a policy → least and greatest value, and whether null (no limit) is allowed.
OVERRIDES: dict[str, tuple[int, int, bool]] = {
    "flush_after_s": (0, MAX_S, True),
    "hot_idle_s": (1, MAX_S, True),
    "cold_ttl_s": (1, MAX_S, True),
    "max_age_s": (1, MAX_S, True),
    "priority": (PRIORITIES[0], PRIORITIES[-1], False),
    "pin_budget_bytes": (0, 2**63 - 1, True),
}


def check_overrides(overrides: Any) -> None:
    """Raises ValidationError that names the wrong field."""
    if not isinstance(overrides, Mapping) or not overrides:
        raise ValidationError({"overrides": "name at least one field of the policy"})
    for name, value in overrides.items():
        if name == "flush_mode":
            if value not in FlushMode.values:
                raise ValidationError({"overrides": "flush_mode: need now, after or never"})
            continue
        if name == "cold_codec":
            if value not in ColdCodec.values:
                raise ValidationError({"overrides": "cold_codec: need none, auto or always"})
            continue
        if name not in OVERRIDES:
            raise ValidationError({"overrides": f"{name}: unknown member, remove it"})
        least, most, may_be_null = OVERRIDES[name]
        if value is None and may_be_null:
            continue
        if type(value) is not int or not least <= value <= most:
            null = " or null" if may_be_null else ""
            raise ValidationError(
                {"overrides": f"{name}: need {least} to {most}{null}, got {value!r}"}
            )
    is_after = overrides.get("flush_mode") == FlushMode.AFTER
    if is_after != (overrides.get("flush_after_s") is not None):
        raise ValidationError(
            {"overrides": "flush_after_s: belongs to flush_mode after, and only to it"}
        )


def _flush_after(mode: str, after_s: int | None) -> int | None:
    return {FlushMode.NOW: 0, FlushMode.NEVER: None}.get(FlushMode(mode), after_s)
