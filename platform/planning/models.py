"""Prices by their first day; what each space used and saved by UTC day."""

from django.db import models
from django.utils import timezone

from catalog.models import NodeSession
from tenants.scope import TenantOwned


def _price(help_text: str) -> models.DecimalField:  # type: ignore[type-arg]
    """Up to a million and nine decimals, as in `neve.planner.prices`."""
    return models.DecimalField(max_digits=16, decimal_places=9, help_text=help_text)


class PriceVersion(models.Model):
    """The prices of the UTC days from `valid_from` on, until the next version's first day."""

    valid_from = models.DateField(unique=True)
    currency = models.CharField(max_length=3)
    gpu_hour = _price("one GPU for one hour")
    hot_gib_hour = _price("one GiB of the hot tier for one hour")
    cold_gib_month = _price("one GiB in the object store for one calendar month")
    put_1000 = _price("1,000 PUT, POST, COPY and LIST requests")
    get_1000 = _price("1,000 GET and HEAD requests")
    egress_gb = _price("10^9 bytes read from the object store")
    updated_at = models.DateTimeField(default=timezone.now)

    class Meta:
        ordering = ("-valid_from",)

    def __str__(self) -> str:
        return f"from {self.valid_from}"


class SpaceDay(TenantOwned):
    """Sums of one space over one UTC day. Stays when the space is removed, for charge-back.

    `space_number` is the space's primary key; 0: what belongs to no known space.
    Counts of heartbeats have the names of `neve.node.stats.COUNTERS`.
    """

    day = models.DateField()
    space_number = models.BigIntegerField()
    space_name = models.CharField(max_length=200, blank=True)
    requested_tokens = models.BigIntegerField(default=0)
    hit_hot_tokens = models.BigIntegerField(default=0)
    hit_cold_tokens = models.BigIntegerField(default=0)
    hit_local_tokens = models.BigIntegerField(default=0)
    hot_write_bytes = models.BigIntegerField(default=0)
    spared_tokens = models.BigIntegerField(default=0)
    spared_gpu_us = models.BigIntegerField(default=0)
    load_gpu_us = models.BigIntegerField(default=0)
    slower_tokens = models.BigIntegerField(default=0)
    slower_gpu_us = models.BigIntegerField(default=0)
    unpriced_tokens = models.BigIntegerField(default=0)
    cold_requests = models.BigIntegerField(default=0, help_text="GETs of nodes")
    cold_fetched_bytes = models.BigIntegerField(default=0, help_text="asked for by those GETs")
    worker_puts = models.BigIntegerField(default=0, help_text="PUT, POST and LIST of the platform")
    worker_gets = models.BigIntegerField(default=0, help_text="GET and HEAD of the platform")
    worker_read_bytes = models.BigIntegerField(default=0, help_text="asked for by those GETs")
    hot_kib_s = models.BigIntegerField(default=0, help_text="KiB × seconds in the hot tier")
    cold_kib_s = models.BigIntegerField(default=0, help_text="KiB × seconds in the object store")
    gap_s = models.PositiveIntegerField(
        default=0, help_text="seconds without samples of held bytes, filled between two samples"
    )

    class Meta(TenantOwned.Meta):
        ordering = ("-day", "-pk")
        constraints = [
            models.UniqueConstraint(
                fields=("tenant", "day", "space_number"), name="space_day_once"
            ),
        ]
        indexes = [models.Index(fields=("day", "tenant"), name="space_day_by_day")]

    def __str__(self) -> str:
        return f"{self.space_number} on {self.day}"


class FoldState(TenantOwned):
    """Up to where a tenant's counts are in its `SpaceDay` rows."""

    folded_at = models.DateTimeField(null=True, blank=True)
    held = models.JSONField(
        default=dict, help_text="space → KiB in the hot tier, KiB in the object store, as sampled"
    )
    requests = models.JSONField(
        default=dict, help_text="storage.s3_requests: field → count, as read last"
    )

    class Meta(TenantOwned.Meta):
        ordering = ("pk",)
        constraints = [models.UniqueConstraint(fields=("tenant",), name="fold_state_once")]

    def __str__(self) -> str:
        return f"up to {self.folded_at}"


class FoldedSession(TenantOwned):
    """The totals of a session that are in `SpaceDay` rows: those of heartbeat `seq`."""

    session = models.OneToOneField(
        NodeSession, on_delete=models.CASCADE, primary_key=True, related_name="folded"
    )
    seq = models.BigIntegerField()
    totals = models.JSONField(default=dict)

    class Meta(TenantOwned.Meta):
        ordering = ("pk",)

    def __str__(self) -> str:
        return f"{self.session_id} up to {self.seq}"
