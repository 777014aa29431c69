"""Rows of the platform itself, without a tenant."""

from django.db import models


class StoredAnswer(models.Model):
    """The answer to a change, under its Idempotency-Key. `status` None: still in progress.

    `digest` names the caller and the key, `fingerprint` the request; both SHA-256 in hex.
    """

    digest = models.CharField(primary_key=True, max_length=64)
    fingerprint = models.CharField(max_length=64)
    claimed_at = models.DateTimeField(db_index=True)
    status = models.PositiveSmallIntegerField(null=True)
    body = models.TextField(blank=True)

    def __str__(self) -> str:
        return f"{self.digest[:8]}…: {self.status or 'in progress'}"
