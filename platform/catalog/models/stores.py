"""Stores: buckets between which segments move, copies of segments there, and rules of moves."""

from django.db import models
from django.db.models import Q
from django.utils import timezone

from tenants.models import Tenant
from tenants.scope import TenantOwned


def _price(help_text: str) -> models.DecimalField:  # type: ignore[type-arg]
    """Up to a million and nine decimals, as in `planning.models`."""
    words = f"{help_text}; empty: the platform's price"
    return models.DecimalField(
        max_digits=16, decimal_places=9, null=True, blank=True, help_text=words
    )


class Store(models.Model):
    """One S3 endpoint, bucket and class, with its prices. Segments name it (empty: the default).

    The row of the default store holds its priority and prices; the environment has the rest.
    """

    name = models.CharField(max_length=40, unique=True)
    is_default = models.BooleanField(default=False)
    endpoint = models.CharField(max_length=300, blank=True)
    bucket = models.CharField(max_length=63, blank=True)
    region = models.CharField(max_length=60, blank=True)
    access_key = models.CharField(max_length=200, blank=True)
    sealed_secret = models.BinaryField(default=b"", help_text="secret key, sealed")
    credentials_env = models.CharField(
        max_length=60,
        blank=True,
        help_text="prefix of two variables of the environment, …_ACCESS_KEY and …_SECRET_KEY; "
        "empty: the row's own",
    )
    storage_class = models.CharField(
        max_length=40, blank=True, help_text="of its objects, such as STANDARD_IA; empty: S3's own"
    )
    priority = models.PositiveSmallIntegerField(
        default=100, help_text="readers take the copy with the smallest, but near stores first"
    )
    gib_month = _price("one GiB for one calendar month")
    put_1000 = _price("1,000 PUT, POST, COPY and LIST requests")
    get_1000 = _price("1,000 GET and HEAD requests")
    egress_gb = _price("10^9 bytes read")
    move_bytes_per_s = models.BigIntegerField(
        default=100_000_000, help_text="bound of moves into it, of all workers together"
    )
    error = models.CharField(max_length=300, blank=True, help_text="why it does not answer")
    failing_since = models.DateTimeField(null=True, blank=True)
    created_at = models.DateTimeField(default=timezone.now)
    updated_at = models.DateTimeField(default=timezone.now)

    class Meta:
        ordering = ("priority", "pk")
        constraints = [
            models.UniqueConstraint(
                fields=("is_default",), condition=Q(is_default=True), name="store_one_default"
            ),
            models.UniqueConstraint(
                fields=("endpoint", "bucket"),
                condition=Q(is_default=False),
                name="store_bucket_once",
            ),
        ]

    def __str__(self) -> str:
        return self.name


class SegmentCopy(TenantOwned):
    """A segment's object in another store than the one that its row names."""

    class State(models.TextChoices):
        ARRIVING = "arriving"  # being written, or left so by a killed worker
        KEPT = "kept"  # readable, and stays
        LEAVING = "leaving"  # the old place of a moved one: readable for the grace time
        DELETING = "deleting"

    READABLE = (State.KEPT, State.LEAVING)

    segment = models.ForeignKey("catalog.Segment", on_delete=models.CASCADE, related_name="copies")
    store = models.ForeignKey(
        Store, on_delete=models.PROTECT, null=True, blank=True, related_name="copies"
    )
    state = models.CharField(max_length=10, choices=State, default=State.ARRIVING)
    target = models.ForeignKey(
        Store,
        on_delete=models.SET_NULL,
        null=True,
        blank=True,
        related_name="+",
        help_text="of a leaving one: where the segment went",
    )
    size_bytes = models.BigIntegerField(default=0)
    reason = models.CharField(max_length=100, blank=True, help_text="name of the rule")
    since = models.DateTimeField(default=timezone.now, help_text="when it got its state")
    leased_until = models.DateTimeField(null=True, blank=True, help_text="a worker writes it")

    class Meta(TenantOwned.Meta):
        ordering = ("-since", "-pk")
        constraints = [
            models.UniqueConstraint(fields=("segment", "store"), name="copy_once_a_store"),
            models.UniqueConstraint(
                fields=("segment",), condition=Q(store=None), name="copy_once_in_default"
            ),
        ]
        indexes = [models.Index(fields=("state", "since"), name="copy_by_state")]

    def __str__(self) -> str:
        return f"segment {self.segment_id} in {self.store_id or 'default'}"


class MoveRule(models.Model):
    """Which segments move, or are copied, to which store. The first rule that fits a segment
    decides. Conditions that are empty do not count."""

    name = models.CharField(max_length=100, unique=True)
    position = models.PositiveSmallIntegerField(default=100, help_text="smaller ones come first")
    is_active = models.BooleanField(default=True)
    tenant = models.ForeignKey(
        Tenant, on_delete=models.CASCADE, null=True, blank=True, help_text="empty: all tenants"
    )
    source = models.ForeignKey(
        Store,
        on_delete=models.CASCADE,
        null=True,
        blank=True,
        related_name="rules_from",
        help_text="empty: any other",
    )
    target = models.ForeignKey(Store, on_delete=models.CASCADE, related_name="rules_to")
    is_copy = models.BooleanField(default=False, help_text="the old place stays as a copy")
    least_age_s = models.PositiveIntegerField(
        null=True, blank=True, help_text="written so long ago"
    )
    least_idle_s = models.PositiveIntegerField(
        null=True, blank=True, help_text="no node asked for its address for so long"
    )
    least_heat = models.FloatField(
        null=True,
        blank=True,
        help_text="minutes in which a node asked for its address, halved every six hours",
    )
    payback_days = models.PositiveSmallIntegerField(
        null=True, blank=True, help_text="the cheaper place pays for the move within so many"
    )
    created_at = models.DateTimeField(default=timezone.now)
    updated_at = models.DateTimeField(default=timezone.now)

    class Meta:
        ordering = ("position", "pk")

    def __str__(self) -> str:
        return self.name
