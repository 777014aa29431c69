"""Answers stored for a day under the client's Idempotency-Key: a retry gets the same answer.

Answers are in the database, not the cache: a key must survive an outage of valkey-bus, and the
primary key admits only one of several concurrent requests. Must not be here: HTTP, secrets.
"""

import hashlib
from datetime import timedelta

from django.db import IntegrityError
from django.db.models import QuerySet
from django.utils import timezone

from base.models import StoredAnswer
from base.problems import Problem

KEPT = timedelta(hours=24)
# No request runs this long. The process was killed, with an unknown part of its work done.
LOST = timedelta(minutes=5)


def claim(*, caller: str, key: str, fingerprint: str) -> StoredAnswer:
    """Return the stored answer, or a new row without `status`: the caller then does the work and
    calls `keep` or `release`.

    Raises Problem: idempotency-key-reused, idempotency-in-progress.
    """
    digest = hashlib.sha256(f"{caller}\0{key}".encode()).hexdigest()
    now = timezone.now()
    fresh = {"fingerprint": fingerprint, "claimed_at": now, "status": None, "body": ""}
    try:
        row, is_new = StoredAnswer.objects.get_or_create(digest=digest, defaults=fresh)
    except IntegrityError as error:  # another request released the key meanwhile
        raise _in_progress() from error
    age = now - row.claimed_at
    if is_new:
        return row
    if age > KEPT or (row.status is None and age > LOST):
        if not _mine(row).update(**fresh):
            raise _in_progress()
        return StoredAnswer(digest=digest, **fresh)
    if row.fingerprint != fingerprint:
        raise Problem(
            "idempotency-key-reused",
            "Idempotency-Key: another request was sent with this key in the last 24 hours.",
            field="Idempotency-Key",
        )
    if row.status is None:
        raise _in_progress()
    return row


def keep(row: StoredAnswer, *, status: int, body: str) -> None:
    _mine(row).update(status=status, body=body)


def release(row: StoredAnswer) -> None:
    """Free the key after a refusal, so that the client may use it again."""
    _mine(row).delete()


def prune() -> int:
    """Delete rows older than a day, for reconcile. Returns their number."""
    return StoredAnswer.objects.filter(claimed_at__lt=timezone.now() - KEPT).delete()[0]


def _mine(row: StoredAnswer) -> QuerySet[StoredAnswer]:
    """A queryset of the row; empty if another request took the key over."""
    return StoredAnswer.objects.filter(pk=row.pk, claimed_at=row.claimed_at)


def _in_progress() -> Problem:
    return Problem("idempotency-in-progress", "The first request with this key is still running.")
