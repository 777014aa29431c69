"""Named contexts and their pins."""

from uuid import uuid4

from django.db import models
from django.db.models import Q
from django.db.models.functions import Substr
from django.utils import timezone

from catalog.models.spaces import Space
from tenants.scope import TenantOwned

ID_BYTES = 16


class Context(TenantOwned):
    """A named chain of block ids. `pinned_until`: the latest end of its pins, possibly past.

    In a space with KV groups the chain has the first group's ids; `contexts.parts` derives others.

    `root` is the first id: ids are chained, so contexts share blocks only if it is equal.
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
    blocks = models.PositiveIntegerField(
        help_text="length of the chain, times KV groups of the space"
    )
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
        """End of the pins of a pinned context, seconds since 1970."""
        assert self.pinned_until is not None
        return int(self.pinned_until.timestamp())

    @property
    def is_pinned(self) -> bool:
        return self.pinned_until is not None and self.pinned_until > timezone.now()


class Pin(TenantOwned):
    """Keeps a context's blocks until `until`. Each owner has at most one on a context."""

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
