"""The outbox of events, and the counter that puts committed ones in order.

Invariant: once event N can be read, no event below N appears. `events.order` numbers committed rows
under the lock of `Position`; a transaction that commits late gets a later number.
"""

from uuid import uuid4

from django.db import models
from django.db.models import Q
from django.utils import timezone

from tenants.models import Tenant
from tenants.scope import TenantScoped


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
