"""Named contexts and their pins."""

from uuid import uuid4

from django.db import models
from django.db.models import F, Q
from django.db.models.functions import Substr
from django.utils import timezone

from catalog.models.spaces import Space
from tenants.scope import TenantOwned

ID_BYTES = 16


class Context(TenantOwned):
    """A named chain of block ids. `pinned_until`: the latest end of its pins, possibly past.

    `hot_until`, `durable_until`: the same of its pins of that tier. `state`, `size_bytes` and
    `checked_at` are derived from the index by `contexts.checking`; `revision` counts changes that
    people make, for entity tags.

    In a space with KV groups the chain has the first group's ids; `contexts.parts` derives others.

    `root` is the first id: ids are chained, so contexts share blocks only if it is equal.
    """

    class State(models.TextChoices):
        EXPECTED = "expected"  # made before any of its blocks was stored
        STORED = "stored"  # a request can go on behind its end
        PARTIAL = "partial"  # behind a part of it
        LOST = "lost"  # behind none of it
        EXPIRED = "expired"

    uuid = models.UUIDField(primary_key=True, default=uuid4, editable=False)
    space = models.ForeignKey(Space, on_delete=models.CASCADE, related_name="contexts")
    name = models.CharField(max_length=200)
    label = models.CharField(max_length=100, blank=True, help_text="what retention rules match")
    labels = models.JSONField(default=dict, blank=True, help_text="names and texts that teams give")
    owner = models.CharField(max_length=200, blank=True, help_text="who recorded it: key:7, user:3")
    owner_name = models.CharField(max_length=200, blank=True, help_text="as it was then")
    chain = models.BinaryField(help_text="block ids, 16 bytes each, root first")
    root = models.GeneratedField(
        expression=Substr("chain", 1, ID_BYTES),
        output_field=models.BinaryField(max_length=ID_BYTES),
        db_persist=True,
    )
    blocks = models.PositiveIntegerField(
        help_text="length of the chain, times KV groups of the space"
    )
    tokens = models.BigIntegerField()
    state = models.CharField(max_length=10, choices=State, default=State.STORED)
    size_bytes = models.BigIntegerField(null=True, blank=True, help_text="of its stored blocks")
    pinned_until = models.DateTimeField(null=True, blank=True)
    hot_until = models.DateTimeField(null=True, blank=True)
    durable_until = models.DateTimeField(null=True, blank=True)
    extended_until = models.DateTimeField(null=True, blank=True, help_text="blocks live so long")
    expires_at = models.DateTimeField(null=True, blank=True, help_text="when it will be expired")
    expired_at = models.DateTimeField(null=True, blank=True)
    last_used_at = models.DateTimeField(null=True, blank=True, help_text="by a node's request")
    checked_at = models.DateTimeField(null=True, blank=True, help_text="when the index was asked")
    prompt_tokens = models.BigIntegerField(
        default=0, editable=False, help_text="of requests that named it, as nodes reported"
    )
    hit_tokens = models.BigIntegerField(
        default=0, editable=False, help_text="of prompt_tokens: loaded from a tier"
    )
    sliced_prompt_tokens = models.BigIntegerField(
        default=0, editable=False, help_text="of prompt_tokens: in slices already"
    )
    sliced_hit_tokens = models.BigIntegerField(
        default=0, editable=False, help_text="of hit_tokens: in slices already"
    )
    warned_until = models.DateTimeField(
        null=True, blank=True, help_text="ends up to here were announced"
    )
    revision = models.PositiveIntegerField(default=1)
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
            models.Index(
                fields=("space", "root", "durable_until"),
                condition=Q(durable_until__isnull=False),
                name="context_durable_of_root",
            ),
            models.Index(
                fields=("expires_at",),
                condition=Q(expires_at__isnull=False),
                name="context_expires",
            ),
            models.Index(
                fields=("tenant", "checked_at"),
                condition=Q(expired_at__isnull=True),
                name="context_to_check",
            ),
            models.Index(
                fields=("pinned_until", "tenant"),
                condition=Q(pinned_until__isnull=False),
                name="context_pin_ends",
            ),
            models.Index(
                fields=("extended_until",),
                condition=Q(extended_until__isnull=False),
                name="context_extension_ends",
            ),
            models.Index(
                fields=("tenant", "uuid"),
                condition=Q(prompt_tokens__gt=F("sliced_prompt_tokens")),
                name="context_to_slice",
            ),
            # The orderings of lists; the key breaks ties.
            models.Index(fields=("tenant", "created_at", "uuid"), name="context_by_created"),
            models.Index(fields=("tenant", "updated_at", "uuid"), name="context_by_updated"),
            models.Index(fields=("tenant", "last_used_at", "uuid"), name="context_by_last_used"),
            models.Index(fields=("tenant", "name", "uuid"), name="context_by_name"),
            models.Index(fields=("tenant", "tokens", "uuid"), name="context_by_tokens"),
            models.Index(fields=("tenant", "size_bytes", "uuid"), name="context_by_size"),
            # Of all tenants: the first list that an operator sees.
            models.Index(
                fields=("size_bytes", "uuid"),
                condition=Q(expired_at__isnull=True),
                name="context_largest",
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
        """End of the pins of a pinned context, seconds since 1970."""
        assert self.pinned_until is not None
        return int(self.pinned_until.timestamp())

    @property
    def is_pinned(self) -> bool:
        return self.pinned_until is not None and self.pinned_until > timezone.now()

    @property
    def pin_tier(self) -> str | None:
        """The most that a pin asks for now: durable, hot or any; None without a pin."""
        now = timezone.now()
        ends = {
            Pin.Tier.DURABLE: self.durable_until,
            Pin.Tier.HOT: self.hot_until,
            Pin.Tier.ANY: self.pinned_until,
        }
        return next((str(tier) for tier, end in ends.items() if end and end > now), None)


class Pin(TenantOwned):
    """Keeps a context's blocks until `until`. Each owner has at most one on a context."""

    class Tier(models.TextChoices):
        ANY = "any"  # in a tier, whichever
        HOT = "hot"  # in Valkey
        DURABLE = "durable"  # in S3

    UNKNOWN = "unknown"  # set before pins had owners: operators may remove it

    context = models.ForeignKey(Context, on_delete=models.CASCADE, related_name="pins")
    owner = models.CharField(max_length=200, help_text="key:7 or user:3: stays when a name changes")
    owner_name = models.CharField(max_length=200, help_text="as it was when the pin was set")
    reason = models.CharField(max_length=200, blank=True)
    tier = models.CharField(max_length=10, choices=Tier, default=Tier.ANY)
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
