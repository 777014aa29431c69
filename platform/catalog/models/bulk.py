"""Actions on many contexts at once."""

from uuid import UUID, uuid4

from django.db import models
from django.db.models import Q
from django.utils import timezone

from catalog.models.contexts import ID_BYTES
from catalog.models.jobs import Job
from tenants.scope import TenantOwned


class BulkAction(TenantOwned):
    """An action on the contexts that its preview chose: they stay the same from then on.

    It waits to be taken until `expires_at`; then `job` does it. `place`: so many of the contexts
    are done, with these `counts`.
    """

    uuid = models.UUIDField(primary_key=True, default=uuid4, editable=False)
    action = models.CharField(max_length=20)
    arguments = models.JSONField(default=dict)
    filter = models.JSONField(default=dict)
    chosen = models.BinaryField(help_text="ids of the contexts, 16 bytes each; empty once done")
    contexts = models.PositiveIntegerField()
    owner = models.CharField(max_length=200, help_text="who made the preview: key:7, user:3")
    owner_name = models.CharField(max_length=200)
    is_operator = models.BooleanField(default=False, help_text="the owner, when it was taken")
    request_id = models.CharField(max_length=64, blank=True)
    made_at = models.DateTimeField(default=timezone.now)
    expires_at = models.DateTimeField()
    job = models.OneToOneField(Job, on_delete=models.CASCADE, null=True, related_name="bulk")
    place = models.PositiveIntegerField(default=0)
    counts = models.JSONField(default=dict)

    class Meta(TenantOwned.Meta):
        ordering = ("-made_at", "-pk")
        indexes = [
            models.Index(
                fields=("tenant", "made_at"), condition=Q(job=None), name="bulk_previewed"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.action} of {self.contexts} contexts"

    def ids(self, first: int, last: int) -> list[UUID]:
        """The chosen contexts at these places, `last` excluded."""
        raw = bytes(self.chosen[ID_BYTES * first : ID_BYTES * last])
        return [UUID(bytes=raw[at : at + 16]) for at in range(0, len(raw), ID_BYTES)]
