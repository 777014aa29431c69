"""Usage of parts of a tenant, summed by time: of spaces and nodes, of contexts, of labels."""

from django.db import models

from catalog.models.spaces import NodeSession
from tenants.scope import TenantOwned


class Slice(TenantOwned):
    """Counts of one part of a tenant over one bucket of time. Written by `catalog.slicing`.

    `bucket_ts` is the bucket's first second (Unix time), a multiple of `resolution_s`. Gauges are
    of the tenant only: its last sample of the bucket, or (`dirty_oldest_s`) its largest.
    """

    class Kind(models.TextChoices):
        TENANT = "tenant"  # all of it
        PLACE = "place"  # a node (host) in a space
        CONTEXT = "context"  # a named context of a space
        LABEL = "label"  # contexts of a space that have a label, "" without any

    kind = models.CharField(max_length=10, choices=Kind)
    resolution_s = models.PositiveIntegerField()
    bucket_ts = models.BigIntegerField()
    space_number = models.BigIntegerField(
        default=0, help_text="primary key of the space, which may be gone; 0: the sum of the rest"
    )
    name = models.CharField(max_length=300, blank=True, help_text="node, context or label")
    prompt_tokens = models.BigIntegerField(default=0)
    hit_tokens = models.BigIntegerField(default=0)
    hit_cold_tokens = models.BigIntegerField(default=0, help_text="of hit_tokens")
    requested_blocks = models.BigIntegerField(default=0)
    hit_blocks = models.BigIntegerField(default=0)
    hit_cold_blocks = models.BigIntegerField(default=0, help_text="of hit_blocks")
    hit_local_tokens = models.BigIntegerField(default=0, help_text="of hit_tokens")
    hit_local_blocks = models.BigIntegerField(default=0, help_text="of hit_blocks")
    local_read_bytes = models.BigIntegerField(default=0)
    hot_read_bytes = models.BigIntegerField(default=0)
    cold_read_bytes = models.BigIntegerField(default=0)
    hot_write_bytes = models.BigIntegerField(default=0)
    put_refused = models.BigIntegerField(default=0, help_text="blocks refused by the hot quota")
    dropped = models.BigIntegerField(default=0)
    cold_refused_blocks = models.BigIntegerField(default=0, help_text="of the tenant only")
    lost_blocks = models.BigIntegerField(default=0, help_text="of the tenant only")
    misses = models.JSONField(default=dict, help_text="MissReason → blocks")
    load_ms = models.JSONField(default=dict, help_text="histogram: upper bound → loads")
    drops = models.JSONField(default=dict, help_text="MissReason → blocks that were not stored")
    hot_used_bytes = models.BigIntegerField(null=True, blank=True)
    cold_used_bytes = models.BigIntegerField(null=True, blank=True)
    dirty_oldest_s = models.BigIntegerField(null=True, blank=True)

    class Meta(TenantOwned.Meta):
        ordering = ("-bucket_ts", "-pk")
        constraints = [
            models.UniqueConstraint(
                fields=("kind", "resolution_s", "tenant", "bucket_ts", "space_number", "name"),
                name="slice_once",
            ),
        ]
        indexes = [
            models.Index(fields=("resolution_s", "bucket_ts", "kind"), name="slice_by_time"),
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.name} at {self.bucket_ts} ({self.resolution_s} s)"


class SliceState(TenantOwned):
    """Up to where a tenant's counts are in its slices."""

    taken_at = models.DateTimeField(null=True, blank=True)
    tier_totals = models.JSONField(null=True, blank=True, help_text="TIER_COUNTERS as read last")

    class Meta(TenantOwned.Meta):
        ordering = ("pk",)
        constraints = [models.UniqueConstraint(fields=("tenant",), name="slice_state_once")]

    def __str__(self) -> str:
        return f"up to {self.taken_at}"


class SlicedSession(TenantOwned):
    """The counts of a session that are in slices: those of heartbeat `seq`."""

    session = models.OneToOneField(
        NodeSession, on_delete=models.CASCADE, primary_key=True, related_name="sliced"
    )
    seq = models.BigIntegerField()
    totals = models.JSONField(default=dict)
    totals_by_name = models.JSONField(default=dict)

    class Meta(TenantOwned.Meta):
        ordering = ("pk",)

    def __str__(self) -> str:
        return f"{self.session_id} up to {self.seq}"
