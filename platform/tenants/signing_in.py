"""Sign-in by password: a limit on attempts, and their audit.

Every password goes through this backend, from whatever form. An attempt is written before its
password is checked, so that many at once cannot pass the limit. Refused attempts write nothing:
repeating them lengthens neither the audit trail nor the lock.
"""

from datetime import datetime, timedelta
from typing import Any

from django.contrib.auth.backends import ModelBackend
from django.contrib.auth.models import User
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils import timezone

from tenants.models import AuditEvent

WINDOW = timedelta(minutes=10)
MOST_OF_NAME = 10  # wrong passwords of one name from one address in WINDOW
MOST_OF_ADDRESS = 100  # of all names from one address in WINDOW

KEPT_REFUSALS = 10_000  # the newest wrong passwords; older ones than WINDOW beyond these go

TRYING, GOOD, BAD = "login.try", "login", "login.fail"


class SignInBackend(ModelBackend):
    """Django's accounts. A refusal stands in `request.locked_until`, for the page that asked."""

    def authenticate(
        self,
        request: HttpRequest | None,
        username: str | None = None,
        password: str | None = None,
        **others: Any,
    ) -> User | None:
        """Raises PermissionDenied while too many passwords were wrong."""
        if username is None or password is None:
            return None
        address = request.META.get("REMOTE_ADDR", "") if request is not None else ""
        _refuse_locked(request, username, address)
        attempt = AuditEvent.unscoped.create(
            actor_name=username[:200],
            address=address[:64],
            request_id=getattr(request, "request_id", ""),
            action=TRYING,
            object_type="address",
            object_id=address[:64],
        )
        try:
            _refuse_locked(request, username, address, attempt=attempt)
        except PermissionDenied:
            attempt.delete()
            raise
        user = super().authenticate(request, username=username, password=password, **others)
        attempt.action = BAD if user is None else GOOD
        attempt.save(update_fields=["action"])
        return user


def locked_until(
    username: str, address: str, *, attempt: AuditEvent | None = None
) -> datetime | None:
    """When the next password of this name may come from this address; None: now.

    `attempt` and later attempts are not counted.
    """
    now = timezone.now()
    # An attempt whose process died stays a try, and counts as wrong.
    tried: QuerySet[AuditEvent] = AuditEvent.unscoped.filter(
        tenant=None,
        at__gt=now - WINDOW,
        action__in=(TRYING, BAD),
        object_type="address",
        object_id=address[:64],
    )
    if attempt is not None:
        tried = tried.filter(pk__lt=attempt.pk)
    ends = []
    for rows, most in (
        (tried.filter(actor_name=username[:200]), MOST_OF_NAME),
        (tried, MOST_OF_ADDRESS),
    ):
        times = list(rows.order_by("-at").values_list("at", flat=True)[:most])
        if len(times) == most:
            ends.append(times[-1] + WINDOW)
    return max(ends, default=None)


def surplus() -> QuerySet[AuditEvent]:
    """Events of wrong passwords that may be deleted: a flood of them must not fill the table."""
    refused = AuditEvent.unscoped.filter(tenant=None, action__in=(TRYING, BAD))
    newest = refused.order_by("-pk").values_list("pk", flat=True)
    oldest_kept = newest[KEPT_REFUSALS : KEPT_REFUSALS + 1].first()
    old = refused.filter(at__lt=timezone.now() - WINDOW)
    return old.none() if oldest_kept is None else old.filter(pk__lte=oldest_kept)


def _refuse_locked(
    request: HttpRequest | None, username: str, address: str, *, attempt: AuditEvent | None = None
) -> None:
    until = locked_until(username, address, attempt=attempt)
    if until is None:
        return
    if request is not None:
        request.locked_until = until  # type: ignore[attr-defined]
    raise PermissionDenied("too many wrong passwords")
