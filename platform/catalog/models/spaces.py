"""Spaces, and the sessions of nodes that use them."""

import math
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

from django.db import models
from django.db.models import Q
from django.utils import timezone

from neve.formats.loss import Loss
from neve.formats.space import EXACT
from tenants.models import ApiKey
from tenants.scope import TenantOwned


def ranks_of(identity: Mapping[str, Any]) -> int:
    """TP × PP of a space's engines, as its identity says; 1 if it does not."""
    sizes = (identity.get("tp_size", 1), identity.get("pp_size", 1))
    return math.prod(size for size in sizes if isinstance(size, int))


class Space(TenantOwned):
    """One KV layout of one tenant. KV of another space is never readable."""

    name = models.CharField(max_length=200)
    fingerprint = models.CharField(max_length=64, help_text="32 bytes as hex")
    identity = models.JSONField(
        help_text="what the node declared: neve.formats.space.SpaceIdentity"
    )
    chunk_tokens = models.PositiveIntegerField()
    groups = models.JSONField(
        default=list,
        blank=True,
        help_text="KV groups of which a chunk has a part: neve.formats.parts.PartGroup; "
        "empty: a chunk is one block with the KV of all its tokens",
    )
    selective_weights = models.CharField(
        max_length=64,
        blank=True,
        help_text="digest of the weights that only some tokens reach (rows of embeddings, "
        "experts), as the first engine told it; a family's members have equal ones",
    )
    measured_loss = models.JSONField(
        default=dict,
        editable=False,
        help_text="of a codec with loss, as nodes measured it: neve.formats.loss.Loss",
    )
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

    @property
    def ranks(self) -> int:
        return ranks_of(self.identity)

    @property
    def loss(self) -> Loss | None:
        """None: its blocks are exact."""
        codec = self.identity.get("codec", EXACT)
        return None if codec == EXACT else Loss.from_dict({**self.measured_loss, "codec": codec})

    @property
    def lossy_words(self) -> str:
        """How every page and answer marks it; "" if its blocks are exact."""
        return "" if (loss := self.loss) is None else loss.words

    @property
    def is_canonical(self) -> bool:
        """Whether each KV head is a block of its own, for engines of any TP size: such a layout
        names none."""
        return str(self.identity.get("layout", "")).startswith("by KV head: ")


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
    member = models.ForeignKey(
        "catalog.FamilyMember",
        on_delete=models.SET_NULL,
        null=True,
        editable=False,
        related_name="sessions",
        help_text="of a family, if the node named one",
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
    breaker_log = models.JSONField(
        default=list, editable=False, help_text="changes of the breaker: [Unix time, state]"
    )
    about = models.JSONField(
        default=dict,
        editable=False,
        help_text="as the node tells it: neve's version, clock skew, last error",
    )
    near_stores = models.JSONField(
        default=list, editable=False, help_text="names, the nearest first, as the node told"
    )
    totals = models.JSONField(default=dict, help_text="counters since the handshake")
    totals_by_name = models.JSONField(
        default=dict, editable=False, help_text="misses, load_ms and drops since the handshake"
    )
    speeds = models.JSONField(default=dict, help_text="as its engine measured them last")
    marks = models.JSONField(
        default=list, editable=False, help_text="counters of the last day: catalog.recent"
    )

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
