"""Usage of a tenant, summed by time."""

from django.db import models

from tenants.scope import TenantOwned

GAUGES = (
    *("hot_used_bytes", "cold_used_bytes", "dirty_bytes", "dirty_blocks", "dirty_oldest_s"),
    *("unstored_blocks", "cold_dead_bytes", "cold_waiting_bytes"),
)
# Counts of the tiers, sampled from `neve.index.tier.Usage`, where they count since the server's
# start.
TIER_COUNTERS = ("cold_refused_blocks", "cold_evicted_blocks", "lost_blocks")
RESOLUTIONS_S = (10, 60, 3600)


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
    put_states = models.BigIntegerField(default=0, help_text="of put_blocks: states")
    promoted_blocks = models.BigIntegerField(default=0)
    promoted_bytes = models.BigIntegerField(default=0)
    put_refused = models.BigIntegerField(default=0)
    dropped = models.BigIntegerField(default=0)
    corrupt = models.BigIntegerField(default=0)
    compared_blocks = models.BigIntegerField(default=0)
    differing_blocks = models.BigIntegerField(default=0)
    family_hit_tokens = models.BigIntegerField(default=0, help_text="stored by other processes")
    decided_all = models.BigIntegerField(
        default=0, help_text="found prefixes that nodes chose to load whole"
    )
    decided_prefix = models.BigIntegerField(
        default=0, help_text="found prefixes of which nodes chose to load the first part"
    )
    decided_recompute = models.BigIntegerField(
        default=0, help_text="found prefixes that nodes chose to compute"
    )
    spared_tokens = models.BigIntegerField(
        default=0, help_text="of loads that ended sooner than computing"
    )
    spared_gpu_us = models.BigIntegerField(
        default=0, help_text="prefill that those loads spared: microseconds × GPUs of the engine"
    )
    load_gpu_us = models.BigIntegerField(
        default=0, help_text="wait for those loads: microseconds × GPUs of the engine"
    )
    slower_tokens = models.BigIntegerField(
        default=0, help_text="of loads that took longer than computing"
    )
    slower_gpu_us = models.BigIntegerField(
        default=0, help_text="time that those loads lost: microseconds × GPUs of the engine"
    )
    unpriced_tokens = models.BigIntegerField(
        default=0, help_text="loaded before the node had measured its prefill"
    )
    cold_requests = models.BigIntegerField(default=0, help_text="GETs of nodes to S3")
    cold_fetched_bytes = models.BigIntegerField(default=0, help_text="asked for by those GETs")
    hit_local_tokens = models.BigIntegerField(default=0, help_text="of nodes' local tiers")
    hit_local_blocks = models.BigIntegerField(default=0)
    local_read_bytes = models.BigIntegerField(default=0)
    local_write_bytes = models.BigIntegerField(default=0)
    local_evicted_blocks = models.BigIntegerField(default=0)
    local_bad_blocks = models.BigIntegerField(
        default=0, help_text="files that failed verification, and were deleted"
    )
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
