"""Engines that tokenise and prefill for spaces, prompts of contexts, policies that warm them."""

from django.db import models
from django.db.models import Q
from django.utils import timezone

from catalog.models import Context, Job, NodeSession, Space
from tenants.scope import TenantOwned


class Engine(TenantOwned):
    """An OpenAI-compatible server of vLLM, which the platform calls through `base.outbound`."""

    class State(models.TextChoices):
        UNKNOWN = "unknown"  # not checked yet
        HEALTHY = "healthy"
        UNHEALTHY = "unhealthy"

    class Source(models.TextChoices):
        REGISTERED = "registered"  # by a person or a key
        ANNOUNCED = "announced"  # by a node's handshake: lives as long as its sessions

    name = models.CharField(max_length=100)
    base_url = models.CharField(max_length=500, help_text="without a slash and /v1 at the end")
    model = models.CharField(max_length=200, help_text="name under which the engine serves it")
    sealed_key = models.BinaryField(default=b"", help_text="API key, sealed; empty: none")
    gpus = models.PositiveIntegerField(
        null=True, blank=True, help_text="TP × PP; empty: as its space says"
    )
    is_prefill = models.BooleanField(
        default=False, help_text="of a prefill pool: it computes prompts that others decode"
    )
    source = models.CharField(max_length=10, choices=Source, default=Source.REGISTERED)
    state = models.CharField(max_length=10, choices=State, default=State.UNKNOWN)
    error = models.CharField(max_length=300, blank=True, help_text="why it is unhealthy")
    failures = models.PositiveIntegerField(default=0, help_text="failed checks in a row")
    checked_at = models.DateTimeField(null=True, blank=True)
    check_at = models.DateTimeField(default=timezone.now, help_text="when it is checked next")
    created_at = models.DateTimeField(default=timezone.now)
    updated_at = models.DateTimeField(default=timezone.now)

    class Meta(TenantOwned.Meta):
        ordering = ("-created_at", "-pk")
        constraints = [
            models.UniqueConstraint(
                fields=("tenant", "name"),
                condition=Q(source="registered"),
                name="engine_name_once",
            ),
            models.UniqueConstraint(
                fields=("tenant", "base_url", "model"),
                condition=Q(source="announced"),
                name="engine_announced_once",
            ),
        ]
        indexes = [models.Index(fields=("tenant", "check_at"), name="engine_to_check")]

    def __str__(self) -> str:
        return self.name


class Serving(TenantOwned):
    """An engine serves a space: named by hand, or announced by a session while that is live."""

    engine = models.ForeignKey(Engine, on_delete=models.CASCADE, related_name="servings")
    space = models.ForeignKey(Space, on_delete=models.CASCADE, related_name="servings")
    session = models.ForeignKey(
        NodeSession, on_delete=models.CASCADE, null=True, blank=True, related_name="servings"
    )
    shards = models.PositiveIntegerField(
        null=True, blank=True, help_text="blocks of a chunk, if the node said"
    )

    class Meta(TenantOwned.Meta):
        ordering = ("pk",)
        constraints = [
            models.UniqueConstraint(
                fields=("engine", "space"), condition=Q(session=None), name="serving_by_hand_once"
            ),
            models.UniqueConstraint(
                fields=("engine", "session"),
                condition=Q(session__isnull=False),
                name="serving_of_session_once",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.engine_id} serves {self.space_id}"


class Prompt(TenantOwned):
    """Token ids and salt of a context that was made over REST: user data, sealed.

    Deleted with the context. See `engines.prompts`.
    """

    context = models.OneToOneField(Context, on_delete=models.CASCADE, related_name="prompt")
    sealed = models.BinaryField()
    tokens = models.PositiveIntegerField()
    size_bytes = models.PositiveIntegerField(help_text="of `sealed`")
    created_at = models.DateTimeField(default=timezone.now)

    class Meta(TenantOwned.Meta):
        ordering = ("-created_at", "-pk")

    def __str__(self) -> str:
        return f"{self.tokens} tokens of {self.context_id}"


class WarmPolicy(TenantOwned):
    """Warms a context by the clock, or again whenever blocks of it are lost."""

    class Mode(models.TextChoices):
        SCHEDULE = "schedule"
        KEEP = "keep"

    context = models.ForeignKey(Context, on_delete=models.CASCADE, related_name="warm_policies")
    engine = models.ForeignKey(
        Engine, on_delete=models.SET_NULL, null=True, blank=True, related_name="warm_policies"
    )
    mode = models.CharField(max_length=10, choices=Mode)
    cron = models.CharField(max_length=100, blank=True, help_text="five fields")
    time_zone = models.CharField(max_length=60, default="UTC")
    is_paused = models.BooleanField(default=False)
    error = models.CharField(
        max_length=300, blank=True, help_text="the last failure; why the platform paused it"
    )
    failures = models.PositiveIntegerField(default=0, help_text="failed jobs in a row")
    last_job = models.ForeignKey(
        Job, on_delete=models.SET_NULL, null=True, blank=True, related_name="warm_policies"
    )
    last_run_at = models.DateTimeField(null=True, blank=True)
    next_run_at = models.DateTimeField(null=True, blank=True, help_text="empty: paused")
    created_at = models.DateTimeField(default=timezone.now)
    updated_at = models.DateTimeField(default=timezone.now)

    class Meta(TenantOwned.Meta):
        ordering = ("-created_at", "-pk")
        constraints = [
            models.CheckConstraint(
                name="warm_policy_cron_if_scheduled",
                condition=Q(mode="schedule") & ~Q(cron="") | Q(mode="keep", cron=""),
            ),
        ]
        indexes = [models.Index(fields=("tenant", "next_run_at"), name="warm_policy_due")]

    def __str__(self) -> str:
        return f"{self.mode} {self.context_id}"
