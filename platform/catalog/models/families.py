"""Families: spaces that several models share, and the models that may."""

from django.db import models
from django.utils import timezone

from catalog.models.spaces import Space
from neve.node.membership import MemberState
from tenants.scope import TenantOwned


class Family(TenantOwned):
    """A producer's space under a name. Quota and retention are those of the space."""

    name = models.CharField(max_length=100)
    space = models.OneToOneField(Space, on_delete=models.CASCADE, related_name="family")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta(TenantOwned.Meta):
        ordering = ("name", "pk")
        constraints = [
            models.UniqueConstraint(fields=("tenant", "name"), name="family_name_once"),
        ]

    def __str__(self) -> str:
        return self.name


class FamilyMember(TenantOwned):
    """One model, as one kind of engine and device computes it, and whether its KV is the family's.

    `key` is a digest of model, revision, device, engine and weights: another digest is another
    member, which has proven nothing.
    """

    State = MemberState

    family = models.ForeignKey(Family, on_delete=models.CASCADE, related_name="members")
    key = models.CharField(max_length=32)
    model = models.CharField(max_length=1024)
    revision = models.CharField(max_length=1024)
    device = models.CharField(max_length=100, blank=True)
    engine = models.CharField(max_length=110, help_text="name and version")
    weights = models.CharField(
        max_length=64, blank=True, help_text="digest of weights that were changed in place"
    )
    state = models.CharField(max_length=10, choices=[(each.value, each.value) for each in State])
    generation = models.PositiveIntegerField(
        default=0, help_text="grows when running engines must ask again"
    )
    blocks = models.BigIntegerField(default=0, help_text="equal in every bit, of the last proof")
    near = models.BigIntegerField(default=0, help_text="equal but for rounding, of the last proof")
    layer = models.CharField(max_length=200, blank=True, help_text="where KV differed first")
    first_token = models.BigIntegerField(null=True, blank=True)
    end_token = models.BigIntegerField(null=True, blank=True)
    hit_tokens = models.BigIntegerField(
        default=0, help_text="loaded from blocks that other processes stored"
    )
    created_at = models.DateTimeField(auto_now_add=True)
    decided_at = models.DateTimeField(null=True, blank=True, help_text="attached or refused")
    seen_at = models.DateTimeField(default=timezone.now, help_text="last handshake")

    class Meta(TenantOwned.Meta):
        ordering = ("created_at", "pk")
        constraints = [
            models.UniqueConstraint(fields=("family", "key"), name="family_member_once"),
        ]

    def __str__(self) -> str:
        return f"{self.model} in {self.family_id}"
