"""Recent requests of nodes, for the page Why?. No prompts."""

from django.db import models

from catalog.models.spaces import NodeSession, Space
from neve.errors import MissReason
from neve.node.requests import Kept, Outcome
from tenants.scope import TenantOwned


class KeptRequest(TenantOwned):
    """A finished request as its node told it: `neve.node.requests.RequestRecord`.

    A session has a ring of them: `slot` is the place in it, so that a node overwrites only its own.
    `base`: the id without what engines put before it; engines append more behind it.
    """

    session = models.ForeignKey(NodeSession, on_delete=models.CASCADE, related_name="requests")
    space = models.ForeignKey(Space, on_delete=models.CASCADE, related_name="requests")
    slot = models.PositiveIntegerField()
    at = models.DateTimeField(help_text="when it ended")
    name = models.CharField(max_length=200, help_text="the engine's id of the request")
    base = models.CharField(max_length=200)
    kept = models.CharField(max_length=10, choices=[(each.value, each.value) for each in Kept])
    prompt_tokens = models.PositiveIntegerField()
    local_tokens = models.PositiveIntegerField(help_text="in the engine's own cache")
    asked_tokens = models.PositiveIntegerField(help_text="of Neve, in whole chunks")
    found_tokens = models.PositiveIntegerField()
    loaded_tokens = models.PositiveIntegerField()
    miss_chunk = models.PositiveIntegerField(null=True, blank=True)
    miss_id = models.BinaryField(blank=True, help_text="first block of that chunk, 16 bytes")
    reason = models.CharField(
        max_length=20, blank=True, choices=[(each.value, each.value) for each in MissReason]
    )
    outcome = models.CharField(
        max_length=12, choices=[(each.value, each.value) for each in Outcome]
    )
    match_ms = models.FloatField(null=True, blank=True)
    load_ms = models.FloatField(null=True, blank=True)
    load_failed = models.BooleanField(default=False)
    stride = models.PositiveIntegerField(default=1)
    chain = models.BinaryField(help_text="ids of every `stride`-th chunk, 16 bytes each")
    kin = models.JSONField(
        default=list, help_text="the same prompt's ids in other spaces: space, stride, Base64"
    )

    class Meta(TenantOwned.Meta):
        ordering = ("-at", "-pk")
        constraints = [
            models.UniqueConstraint(fields=("session", "slot"), name="request_slot_once"),
        ]
        indexes = [
            models.Index(fields=("tenant", "at"), name="request_by_time"),
            models.Index(fields=("tenant", "base"), name="request_by_base"),
        ]

    def __str__(self) -> str:
        return self.name

    @property
    def computed_tokens(self) -> int:
        return max(0, self.prompt_tokens - self.local_tokens - self.loaded_tokens)
