"""Background work."""

from uuid import uuid4

from django.db import models
from django.db.models import F, Q
from django.utils import timezone

from tenants.models import Tenant
from tenants.scope import TenantScoped


class Job(TenantScoped):
    """One piece of background work. The row is the status: there is no result backend."""

    class State(models.TextChoices):
        QUEUED = "queued"
        RUNNING = "running"
        DONE = "done"
        FAILED = "failed"
        CANCELLED = "cancelled"

    uuid = models.UUIDField(primary_key=True, default=uuid4, editable=False)
    tenant = models.ForeignKey(Tenant, on_delete=models.CASCADE, null=True, blank=True)
    kind = models.CharField(max_length=40)
    state = models.CharField(max_length=10, choices=State, default=State.QUEUED)
    progress = models.FloatField(default=0, help_text="0 to 1")
    blocks = models.BigIntegerField(default=0)
    bytes = models.BigIntegerField(default=0)
    arguments = models.JSONField(default=dict, help_text="of a request, by name")
    is_requested = models.BooleanField(default=False, help_text="not found by a tick")
    requested_by = models.CharField(max_length=200, blank=True)
    detail = models.JSONField(default=dict, help_text="facts of the kind of work")
    log = models.JSONField(default=list, help_text='lines: {"at": time, "words": text}')
    error = models.TextField(blank=True)
    attempts = models.PositiveIntegerField(default=0)
    created_at = models.DateTimeField(default=timezone.now)
    started_at = models.DateTimeField(null=True, blank=True, help_text="of the last attempt")
    seen_at = models.DateTimeField(null=True, blank=True, help_text="last sign of life")
    finished_at = models.DateTimeField(null=True, blank=True)
    retry_at = models.DateTimeField(
        null=True, blank=True, help_text="failed, and not tried again before"
    )
    sent_at = models.DateTimeField(null=True, blank=True, help_text="a request's last message")
    cancel_asked_at = models.DateTimeField(null=True, blank=True)

    class Meta(TenantScoped.Meta):
        ordering = ("-created_at", "-pk")
        indexes = [
            models.Index(F("created_at").desc(), name="job_recent"),
            models.Index(
                fields=("kind", "tenant"), condition=Q(retry_at__isnull=False), name="job_to_retry"
            ),
            models.Index(fields=("seen_at",), condition=Q(state="running"), name="job_running"),
            models.Index(
                fields=("state",), condition=Q(is_requested=True), name="job_requested_state"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.state}"

    @property
    def duration_s(self) -> float | None:
        """Of the last attempt, so far if it runs; None before the first."""
        if self.started_at is None:
            return None
        return ((self.finished_at or timezone.now()) - self.started_at).total_seconds()
