"""Spaces, node sessions, contexts, segments, usage, jobs. Never a row per block."""

from uuid import uuid4

from django.db import models
from django.db.models import F, Q
from django.db.models.functions import Substr
from django.utils import timezone

from tenants.models import ApiKey, Tenant
from tenants.scope import TenantOwned, TenantScoped

ID_BYTES = 16
GAUGES = (
    *("hot_used_bytes", "cold_used_bytes", "dirty_bytes", "dirty_blocks", "dirty_oldest_s"),
    *("unstored_blocks", "cold_dead_bytes", "cold_waiting_bytes"),
)
# What the tiers themselves counted, sampled: `neve.index.tier.Usage` has them since the server's
# start.
TIER_COUNTERS = ("cold_refused_blocks", "cold_evicted_blocks", "lost_blocks")
RESOLUTIONS_S = (10, 60, 3600)


class Space(TenantOwned):
    """One KV layout of one tenant. KV of another space is never readable."""

    name = models.CharField(max_length=200)
    fingerprint = models.CharField(max_length=64, help_text="32 bytes as hex")
    identity = models.JSONField(
        help_text="what the node declared: neve.formats.space.SpaceIdentity"
    )
    chunk_tokens = models.PositiveIntegerField()
    is_leaving = models.BooleanField(default=False, editable=False, help_text="being removed")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta(TenantOwned.Meta):
        ordering = ("-created_at", "-pk")
        constraints = [
            models.UniqueConstraint(fields=("tenant", "name"), name="space_name_once"),
            models.UniqueConstraint(fields=("tenant", "fingerprint"), name="space_layout_once"),
        ]

    def __str__(self) -> str:
        return self.name


class NodeSession(TenantOwned):
    """One node talking to one space, from its handshake to its end."""

    class Breaker(models.TextChoices):
        CLOSED = "closed"
        OPEN = "open"
        HALF_OPEN = "half_open"

    uuid = models.UUIDField(primary_key=True, default=uuid4, editable=False)
    space = models.ForeignKey(Space, on_delete=models.CASCADE, related_name="sessions")
    key = models.ForeignKey(
        ApiKey, on_delete=models.SET_NULL, null=True, editable=False, related_name="sessions"
    )
    node = models.CharField(max_length=100)
    instance = models.CharField(
        max_length=64, blank=True, help_text="which engine of this name; empty: it did not say"
    )
    engine = models.JSONField(default=dict, help_text='{"name": "vllm", "version": "…"}')
    opened_at = models.DateTimeField(default=timezone.now)
    last_heartbeat_at = models.DateTimeField(default=timezone.now)
    last_seq = models.BigIntegerField(default=0, help_text="heartbeats up to here are counted")
    ended_at = models.DateTimeField(null=True, blank=True)
    breaker = models.CharField(max_length=10, choices=Breaker, default=Breaker.CLOSED)
    totals = models.JSONField(default=dict, help_text="counters since the handshake")

    class Meta(TenantOwned.Meta):
        ordering = ("-opened_at", "-pk")
        indexes = [
            models.Index(
                fields=("tenant", "last_heartbeat_at"),
                condition=Q(ended_at=None),
                name="session_live",
            ),
            models.Index(
                fields=("ended_at",), condition=Q(ended_at__isnull=False), name="session_ended"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.node} on {self.space_id}"


class Context(TenantOwned):
    """A named chain of block ids. `pinned_until` is the latest end of its pins; past: not pinned.

    `root` is the first id: ids are chained, so contexts share blocks only where it is equal.
    """

    uuid = models.UUIDField(primary_key=True, default=uuid4, editable=False)
    space = models.ForeignKey(Space, on_delete=models.CASCADE, related_name="contexts")
    name = models.CharField(max_length=200)
    label = models.CharField(max_length=100, blank=True)
    chain = models.BinaryField(help_text="block ids, 16 bytes each, root first")
    root = models.GeneratedField(
        expression=Substr("chain", 1, ID_BYTES),
        output_field=models.BinaryField(max_length=ID_BYTES),
        db_persist=True,
    )
    blocks = models.PositiveIntegerField(help_text="length of the chain")
    tokens = models.BigIntegerField()
    pinned_until = models.DateTimeField(null=True, blank=True)
    extended_until = models.DateTimeField(null=True, blank=True, help_text="blocks live so long")
    expired_at = models.DateTimeField(null=True, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(default=timezone.now)

    class Meta(TenantOwned.Meta):
        ordering = ("-updated_at", "-pk")
        indexes = [
            models.Index(fields=("tenant", "-updated_at"), name="context_recent"),
            models.Index(fields=("space", "root"), name="context_of_root"),
            models.Index(
                fields=("space", "root", "pinned_until"),
                condition=Q(pinned_until__isnull=False),
                name="context_pinned_of_root",
            ),
            models.Index(
                fields=("space", "root", "extended_until"),
                condition=Q(extended_until__isnull=False),
                name="context_extended_of_root",
            ),
            models.Index(
                fields=("expired_at",),
                condition=Q(expired_at__isnull=False),
                name="context_expired",
            ),
        ]
        constraints = [
            models.UniqueConstraint(fields=("tenant", "space", "name"), name="context_name_once"),
        ]

    def __str__(self) -> str:
        return self.name

    def ids(self) -> list[bytes]:
        """The chain as 16-byte ids."""
        chain = bytes(self.chain)
        return [chain[i : i + ID_BYTES] for i in range(0, len(chain), ID_BYTES)]

    def pin_end_s(self) -> int:
        """Of a pinned context."""
        assert self.pinned_until is not None
        return int(self.pinned_until.timestamp())

    @property
    def is_pinned(self) -> bool:
        return self.pinned_until is not None and self.pinned_until > timezone.now()


class Pin(TenantOwned):
    """Somebody keeps a context's blocks until then. Each owner has at most one on a context."""

    UNKNOWN = "unknown"  # set before pins had owners: operators may remove it

    context = models.ForeignKey(Context, on_delete=models.CASCADE, related_name="pins")
    owner = models.CharField(max_length=200, help_text="key:7 or user:3: stays when a name changes")
    owner_name = models.CharField(max_length=200, help_text="as it was when the pin was set")
    reason = models.CharField(max_length=200, blank=True)
    until = models.DateTimeField()
    created_at = models.DateTimeField(default=timezone.now)

    class Meta(TenantOwned.Meta):
        ordering = ("-until", "-pk")
        constraints = [
            models.UniqueConstraint(fields=("context", "owner"), name="pin_once_an_owner"),
        ]
        indexes = [models.Index(fields=("until",), name="pin_ended")]

    def __str__(self) -> str:
        return f"pin of {self.owner_name} until {self.until.isoformat()}"


class Segment(TenantOwned):
    """One S3 object full of blocks. Its primary key is the number in the Valkey index."""

    class State(models.TextChoices):
        UPLOADING = "uploading"
        LIVE = "live"
        DELETING = "deleting"

    READABLE = (State.LIVE, State.DELETING)

    space = models.ForeignKey(Space, on_delete=models.CASCADE, related_name="segments")
    uuid = models.UUIDField(unique=True, default=uuid4)
    object_key = models.CharField(max_length=200, unique=True)
    state = models.CharField(max_length=10, choices=State, default=State.UPLOADING)
    blocks = models.PositiveIntegerField(default=0)
    size_bytes = models.BigIntegerField(default=0)
    live_bytes = models.BigIntegerField(default=0, help_text="when last counted")
    counted_at = models.DateTimeField(null=True, blank=True)
    runs = models.PositiveIntegerField(
        default=0,
        help_text="pieces of its chains: blocks that do not follow their parent",
    )
    links = models.JSONField(
        default=dict, help_text="other segment → chains of it that go on here, when it was written"
    )
    generation = models.PositiveSmallIntegerField(
        default=0, help_text="how often its blocks were merged along their chains"
    )
    indexed_at = models.DateTimeField(
        null=True, blank=True, help_text="when the index had answered for each of its blocks"
    )
    refused = models.JSONField(
        default=list, blank=True, help_text="blocks whose copies here the index did not take then"
    )
    leased_until = models.DateTimeField(
        null=True, blank=True, help_text="a worker merges it into another one until then"
    )
    unreferenced_at = models.DateTimeField(
        null=True, blank=True, help_text="when no block was found in it; deleted after a grace time"
    )
    checked_at = models.DateTimeField(default=timezone.now, help_text="against S3")
    damaged_at = models.DateTimeField(
        null=True, blank=True, help_text="when its object was first found missing or damaged"
    )
    readable_bytes = models.BigIntegerField(
        null=True,
        blank=True,
        help_text="found damaged twice: what ends before may be right; 0: gone, or another object",
    )
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta(TenantOwned.Meta):
        ordering = ("-pk",)
        indexes = [
            models.Index(fields=("tenant", "state"), name="segment_of_tenant"),
            models.Index(fields=("tenant", "state", "generation"), name="segment_by_generation"),
            models.Index(fields=("tenant", "state", "counted_at"), name="segment_to_count"),
            models.Index(fields=("tenant", "state", "live_bytes"), name="segment_by_live_bytes"),
            models.Index(fields=("state", "checked_at"), name="segment_to_check"),
        ]

    def __str__(self) -> str:
        return self.object_key


class Round(TenantScoped):
    """How far reconcile is on its way around one side of the storage, slice by slice."""

    class Side(models.TextChoices):
        BLOCKS = "blocks", "the index of one tenant"
        KEYS = "keys", "all keys of the hot Valkey"
        OBJECTS = "objects", "all objects of the S3 bucket"

    tenant = models.ForeignKey(Tenant, on_delete=models.CASCADE, null=True, blank=True)
    side = models.CharField(max_length=10, choices=Side)
    place = models.JSONField(null=True, blank=True, help_text="where it goes on; null: anew")
    leased_until = models.DateTimeField(null=True, blank=True, help_text="a worker is at it")
    looked_at = models.DateTimeField(null=True, blank=True, help_text="when a slice ended")
    begun_at = models.DateTimeField(null=True, blank=True, help_text="this round")
    ended_at = models.DateTimeField(null=True, blank=True, help_text="the last whole round")

    class Meta(TenantScoped.Meta):
        ordering = ("side", "pk")
        constraints = [
            models.UniqueConstraint(fields=("tenant", "side"), name="round_once_a_tenant"),
            models.UniqueConstraint(
                fields=("side",), condition=Q(tenant=None), name="round_once_of_all"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.side} of {self.tenant_id or 'all'}"


class Stray(models.Model):
    """An S3 object that no segment's row names. It goes when it is found again much later."""

    object_key = models.CharField(max_length=1024, primary_key=True)
    size_bytes = models.BigIntegerField()
    found_at = models.DateTimeField(default=timezone.now, help_text="first")
    due_at = models.DateTimeField(help_text="when it is looked at again")
    is_unclaimed = models.BooleanField(
        default=False, help_text="a segment of a tenant or space that the database does not have"
    )

    class Meta:
        ordering = ("found_at",)
        indexes = [models.Index(fields=("due_at",), name="stray_due")]

    def __str__(self) -> str:
        return self.object_key


class UsageRollup(TenantOwned):
    """Counters of one tenant summed over one bucket of time, and its gauges as last sampled.

    `bucket_ts` is the bucket's first second (Unix time), a multiple of `resolution_s`.
    A gauge is None until a sample falls into the bucket.
    """

    resolution_s = models.PositiveIntegerField(choices=[(r, f"{r} s") for r in RESOLUTIONS_S])
    bucket_ts = models.BigIntegerField()
    requested_tokens = models.BigIntegerField(default=0, help_text="in whole blocks")
    tail_tokens = models.BigIntegerField(default=0, help_text="after prompts' last whole blocks")
    hit_hot_tokens = models.BigIntegerField(default=0)
    hit_cold_tokens = models.BigIntegerField(default=0)
    requested_blocks = models.BigIntegerField(default=0)
    hit_hot_blocks = models.BigIntegerField(default=0)
    hit_cold_blocks = models.BigIntegerField(default=0)
    hot_read_bytes = models.BigIntegerField(default=0)
    cold_read_bytes = models.BigIntegerField(default=0)
    hot_write_bytes = models.BigIntegerField(default=0)
    put_blocks = models.BigIntegerField(default=0)
    promoted_blocks = models.BigIntegerField(default=0)
    promoted_bytes = models.BigIntegerField(default=0)
    put_refused = models.BigIntegerField(default=0)
    dropped = models.BigIntegerField(default=0)
    corrupt = models.BigIntegerField(default=0)
    compared_blocks = models.BigIntegerField(default=0)
    differing_blocks = models.BigIntegerField(default=0)
    misses = models.JSONField(default=dict, help_text="MissReason → blocks")
    load_ms = models.JSONField(default=dict, help_text="histogram: upper bound → loads")
    drops = models.JSONField(default=dict, help_text="MissReason → blocks that were not stored")
    cold_refused_blocks = models.BigIntegerField(default=0)
    cold_evicted_blocks = models.BigIntegerField(default=0)
    lost_blocks = models.BigIntegerField(default=0, help_text="refused, then gone from hot")
    hot_used_bytes = models.BigIntegerField(null=True, blank=True)
    cold_used_bytes = models.BigIntegerField(null=True, blank=True)
    cold_dead_bytes = models.BigIntegerField(null=True, blank=True)
    cold_waiting_bytes = models.BigIntegerField(null=True, blank=True)
    dirty_bytes = models.BigIntegerField(null=True, blank=True)
    dirty_blocks = models.BigIntegerField(null=True, blank=True)
    dirty_oldest_s = models.BigIntegerField(null=True, blank=True)
    unstored_blocks = models.BigIntegerField(null=True, blank=True)
    tier_totals = models.JSONField(
        null=True, blank=True, help_text="TIER_COUNTERS as last sampled; of the coarsest only"
    )

    class Meta(TenantOwned.Meta):
        ordering = ("-bucket_ts", "-pk")
        constraints = [
            models.UniqueConstraint(
                fields=("tenant", "resolution_s", "bucket_ts"), name="usage_bucket_once"
            ),
        ]
        indexes = [models.Index(fields=("resolution_s", "bucket_ts"), name="usage_by_time")]

    def __str__(self) -> str:
        return f"usage of {self.tenant_id} at {self.bucket_ts} ({self.resolution_s} s)"


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
