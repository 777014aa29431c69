"""The outbox of events, the counter that puts committed ones in order, and webhooks.

Invariant: once event N can be read, no event below N appears. `events.order` numbers committed rows
under the lock of `Position`; a transaction that commits late gets a later number.
"""

from uuid import uuid4

from django.db import models
from django.db.models import Q
from django.utils import timezone

from tenants.models import Tenant
from tenants.scope import TenantOwned, TenantScoped


class Event(TenantScoped):
    """One thing that happened. `sequence` None: not numbered yet, so that nobody reads it.

    `tenant` None: of the platform, for operators only.
    """

    tenant = models.ForeignKey(Tenant, on_delete=models.CASCADE, null=True)
    uuid = models.UUIDField(default=uuid4, unique=True, editable=False)
    sequence = models.BigIntegerField(null=True, unique=True)
    kind = models.CharField(max_length=40)
    subject_type = models.CharField(max_length=40)
    subject_id = models.CharField(max_length=64)
    subject_name = models.CharField(max_length=200)
    data = models.JSONField(default=dict)
    at = models.DateTimeField(default=timezone.now)

    class Meta(TenantScoped.Meta):
        ordering = ("-sequence",)
        indexes = [
            models.Index(fields=("id",), condition=Q(sequence=None), name="event_unnumbered"),
            models.Index(fields=("tenant", "sequence"), name="event_of_tenant"),
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.subject_id}"


class Position(models.Model):
    """One row: the last number given."""

    last = models.BigIntegerField(default=0)

    def __str__(self) -> str:
        return str(self.last)


class Horizon(TenantScoped):
    """The highest number among a tenant's deleted events: whoever read less has missed some."""

    tenant = models.OneToOneField(Tenant, on_delete=models.CASCADE, null=True)
    sequence = models.BigIntegerField(default=0)

    def __str__(self) -> str:
        return str(self.sequence)


class Mark(TenantOwned):
    """A state that was told, so that only its change sends an event: `node:gpu-1` is up,
    `quota:hot` passed 90. No row: 0."""

    name = models.CharField(max_length=210)
    value = models.PositiveIntegerField()

    class Meta(TenantOwned.Meta):
        constraints = [models.UniqueConstraint(fields=("tenant", "name"), name="mark_once")]

    def __str__(self) -> str:
        return f"{self.name}={self.value}"


class Webhook(TenantOwned):
    """An address that gets a tenant's events. Its secrets are derived, and not stored.

    `generation` counts secrets; the one before also signs until `previous_until`. While deliveries
    fail, `failures` counts attempts in a row, and none begins before `quiet_until`.
    """

    uuid = models.UUIDField(primary_key=True, default=uuid4, editable=False)
    url = models.CharField(max_length=500)
    types = models.JSONField(default=list, help_text="names and patterns; empty: every type")
    is_active = models.BooleanField(default=True)
    inactive_reason = models.CharField(max_length=200, blank=True)
    generation = models.PositiveIntegerField(default=1)
    previous_until = models.DateTimeField(null=True)
    failures = models.PositiveIntegerField(default=0)
    failing_since = models.DateTimeField(null=True)
    delivered_at = models.DateTimeField(null=True, help_text="last success")
    quiet_until = models.DateTimeField(null=True)
    leased_until = models.DateTimeField(null=True, help_text="a worker delivers to it")
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(auto_now=True)

    class Meta(TenantOwned.Meta):
        ordering = ("-created_at", "-pk")

    def __str__(self) -> str:
        return self.url


class Delivery(TenantOwned):
    """One event for one webhook. `log`: its attempts, without bodies of answers."""

    class State(models.TextChoices):
        WAITING = "waiting"
        DELIVERED = "delivered"
        FAILED = "failed"

    webhook = models.ForeignKey(Webhook, on_delete=models.CASCADE, related_name="deliveries")
    event = models.ForeignKey(Event, on_delete=models.CASCADE, related_name="deliveries")
    state = models.CharField(max_length=10, choices=State, default=State.WAITING)
    attempts = models.PositiveIntegerField(default=0, help_text="since it was last asked for")
    next_attempt_at = models.DateTimeField(default=timezone.now)
    log = models.JSONField(default=list)
    created_at = models.DateTimeField(default=timezone.now)
    finished_at = models.DateTimeField(null=True)

    class Meta(TenantOwned.Meta):
        ordering = ("-pk",)
        constraints = [
            models.UniqueConstraint(fields=("webhook", "event"), name="delivery_once"),
        ]
        indexes = [
            models.Index(
                fields=("webhook", "next_attempt_at"),
                condition=Q(state="waiting"),
                name="delivery_due",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.event_id} to {self.webhook_id}: {self.state}"
