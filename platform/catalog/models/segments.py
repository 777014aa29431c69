"""Segments in S3, rounds of reconcile, and objects without a row."""

from uuid import uuid4

from django.db import models
from django.db.models import Q
from django.utils import timezone

from catalog.models.spaces import Space
from catalog.models.stores import Store
from tenants.models import Tenant
from tenants.scope import TenantOwned, TenantScoped


class Segment(TenantOwned):
    """One S3 object full of blocks. Its primary key is the number in the Valkey index."""

    class State(models.TextChoices):
        UPLOADING = "uploading"
        LIVE = "live"
        DELETING = "deleting"

    READABLE = (State.LIVE, State.DELETING)

    space = models.ForeignKey(Space, on_delete=models.CASCADE, related_name="segments")
    store = models.ForeignKey(
        Store,
        on_delete=models.PROTECT,
        null=True,
        blank=True,
        related_name="segments",
        help_text="where its object is; empty: the default store",
    )
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
    heat = models.FloatField(
        default=0.0, help_text="minutes in which a node asked for its address, as of `read_at`"
    )
    read_at = models.DateTimeField(
        null=True, blank=True, help_text="when a node last asked for its address"
    )
    moved_at = models.DateTimeField(null=True, blank=True, help_text="to its store, last")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta(TenantOwned.Meta):
        ordering = ("-pk",)
        indexes = [
            models.Index(fields=("tenant", "state"), name="segment_of_tenant"),
            models.Index(fields=("tenant", "state", "generation"), name="segment_by_generation"),
            models.Index(fields=("tenant", "state", "counted_at"), name="segment_to_count"),
            models.Index(fields=("tenant", "state", "live_bytes"), name="segment_by_live_bytes"),
            models.Index(fields=("state", "checked_at"), name="segment_to_check"),
            models.Index(fields=("store", "state", "created_at"), name="segment_by_store"),
        ]

    def __str__(self) -> str:
        return self.object_key


class Round(TenantScoped):
    """The place of reconcile in its round through one side of the storage, slice by slice."""

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
    """An S3 object that no segment's row names in its store; deleted if found again much later."""

    store = models.ForeignKey(Store, on_delete=models.CASCADE, null=True, blank=True)
    object_key = models.CharField(max_length=1024)
    size_bytes = models.BigIntegerField()
    found_at = models.DateTimeField(default=timezone.now, help_text="first")
    due_at = models.DateTimeField(help_text="when it is looked at again")
    is_unclaimed = models.BooleanField(
        default=False, help_text="a segment of a tenant or space that the database does not have"
    )

    class Meta:
        ordering = ("found_at",)
        constraints = [
            models.UniqueConstraint(fields=("store", "object_key"), name="stray_once_a_store"),
            models.UniqueConstraint(
                fields=("object_key",), condition=Q(store=None), name="stray_once_in_default"
            ),
        ]
        indexes = [models.Index(fields=("due_at",), name="stray_due")]

    def __str__(self) -> str:
        return self.object_key
