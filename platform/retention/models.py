"""The retention policy of a tenant: when blocks go to S3, and when they leave a tier."""

from typing import Any

from django.db import models
from django.db.models import Q

from retention.terms import Terms
from tenants.models import Tenant
from tenants.scope import TenantOwned


class RetentionPolicy(TenantOwned):
    """None means without limit."""

    class FlushMode(models.TextChoices):
        NOW = "now", "Flush as soon as committed"
        AFTER = "after", "Flush after some seconds"
        NEVER = "never", "Never flush: hot tier only"

    tenant = models.OneToOneField(Tenant, on_delete=models.CASCADE, related_name="retention")
    flush_mode = models.CharField(max_length=5, choices=FlushMode, default=FlushMode.NOW)
    flush_after_s = models.PositiveIntegerField(null=True, blank=True)
    hot_idle_s = models.PositiveIntegerField(null=True, blank=True)
    cold_ttl_s = models.PositiveIntegerField(null=True, blank=True)
    pin_budget_bytes = models.BigIntegerField(null=True, blank=True)

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
        ]

    def __str__(self) -> str:
        return f"retention of tenant {self.tenant_id}"

    def terms(self) -> Terms:
        """The tenant's own terms, before any rule."""
        return Terms(
            flush_after_s=self.as_dict()["flush_after_s"],
            hot_idle_s=self.hot_idle_s,
            cold_ttl_s=self.cold_ttl_s,
            pin_budget_bytes=self.pin_budget_bytes,
        )

    def as_dict(self) -> dict[str, Any]:
        """The numbers a node is told: `flush_after_s` 0 is now, None is never."""
        after = {"now": 0, "never": None}.get(self.flush_mode, self.flush_after_s)
        return {
            "flush_after_s": after,
            "hot_idle_s": self.hot_idle_s,
            "cold_ttl_s": self.cold_ttl_s,
        }
