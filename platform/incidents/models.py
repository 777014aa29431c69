"""Rules that differ from their defaults, incidents, and people who want mail."""

from datetime import datetime
from uuid import uuid4

from django.conf import settings
from django.db import models
from django.db.models import Q
from django.utils import timezone

from tenants.models import Tenant
from tenants.scope import TenantScoped


class AlertRule(TenantScoped):
    """Overrides a default of `incidents.kinds` for one tenant; `tenant` None: for all of them."""

    tenant = models.ForeignKey(Tenant, on_delete=models.CASCADE, null=True, blank=True)
    kind = models.CharField(max_length=20)
    threshold = models.FloatField()
    for_s = models.PositiveIntegerField()
    is_on = models.BooleanField(default=True)
    updated_at = models.DateTimeField(default=timezone.now)

    class Meta(TenantScoped.Meta):
        ordering = ("kind", "pk")
        constraints = [
            models.UniqueConstraint(fields=("tenant", "kind"), name="alert_rule_once"),
            models.UniqueConstraint(
                fields=("kind",), condition=Q(tenant=None), name="alert_rule_default_once"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.kind} of {self.tenant_id}"


class Incident(TenantScoped):
    """Something that needs a person; at most one of a kind and tenant has not ended.

    `tenant` None: of the platform. `opened_at` None: its rule holds, not long enough yet. `since`:
    when it began. `value`, `before`: in the rule's unit, or ratios of a hit rate; `before` is fixed
    when it opens. `lost_tokens`: prompt tokens that would have been hits at `before`, about.
    """

    uuid = models.UUIDField(primary_key=True, default=uuid4, editable=False)
    tenant = models.ForeignKey(Tenant, on_delete=models.CASCADE, null=True, blank=True)
    kind = models.CharField(max_length=20)
    since = models.DateTimeField()
    opened_at = models.DateTimeField(null=True, blank=True)
    seen_at = models.DateTimeField(default=timezone.now)
    calm_since = models.DateTimeField(null=True, blank=True)
    ended_at = models.DateTimeField(null=True, blank=True)
    cause = models.CharField(max_length=20, blank=True, help_text="of neve.planner.causes")
    words = models.CharField(max_length=300, blank=True)
    value = models.FloatField(null=True, blank=True)
    before = models.FloatField(null=True, blank=True)
    worst = models.FloatField(null=True, blank=True)
    lost_tokens = models.BigIntegerField(default=0)
    slice = models.JSONField(default=dict, help_text="the worst slice: split, key, name, figures")
    levers = models.JSONField(default=list, help_text="settings that help, with present values")
    facts = models.JSONField(default=dict)
    owner = models.CharField(max_length=200, blank=True)
    acknowledged_at = models.DateTimeField(null=True, blank=True)
    acknowledged_by = models.CharField(max_length=200, blank=True)
    muted_until = models.DateTimeField(
        null=True, blank=True, help_text="for the tenant's people; not for operators"
    )
    operators_muted_until = models.DateTimeField(null=True, blank=True)
    mailed = models.CharField(max_length=10, blank=True, help_text="opened, ended: told by mail")
    mail_after = models.DateTimeField(null=True, blank=True)
    mail_attempts = models.PositiveIntegerField(default=0)

    class Meta(TenantScoped.Meta):
        ordering = ("-opened_at", "-pk")
        constraints = [
            models.UniqueConstraint(
                fields=("tenant", "kind"), condition=Q(ended_at=None), name="incident_once"
            ),
            models.UniqueConstraint(
                fields=("kind",),
                condition=Q(ended_at=None, tenant=None),
                name="incident_of_platform_once",
            ),
        ]
        indexes = [
            models.Index(fields=("tenant", "ended_at"), name="incident_ended"),
        ]

    def __str__(self) -> str:
        return f"{self.kind} of {self.tenant_id}"

    @property
    def state(self) -> str:
        """open or ended."""
        return "open" if self.ended_at is None else "ended"

    def muted_until_of(self, *, is_operator: bool) -> datetime | None:
        """Until when it is muted for operators, or for the tenant's people; None: it is not."""
        until = self.operators_muted_until if is_operator else self.muted_until
        return until if until is not None and until > timezone.now() else None


class MailWish(models.Model):
    """A person who wants incidents by mail: of their tenants, an operator of all."""

    user = models.OneToOneField(
        settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="incident_mail"
    )
    created_at = models.DateTimeField(default=timezone.now)

    def __str__(self) -> str:
        return f"mail for {self.user_id}"
