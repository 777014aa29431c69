"""Deletes old rows: ended sessions and keys, expired contexts, ended pins, audit events, events.

How long each kind is kept is a setting (NEVE_KEEP_…_DAYS; 0: for ever). At most SLICE rows of a
kind go at once, so that a transaction is short; the next tick goes on.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.db.models import Exists, OuterRef, Q, QuerySet
from django.utils import timezone

from catalog.models import Context, NodeSession, Pin
from events import order
from tenants import invitations, sign_ins, signing_in
from tenants.models import ApiKey, AuditEvent

SLICE = 1000


def has_work() -> bool:
    return order.has_old() or any(rows.exists() for rows in _due().values())


def prune() -> dict[str, int]:
    """Returns how many rows of each kind were deleted."""
    counts = {name: _delete(rows) for name, rows in _due().items()}
    return {**counts, "events": order.prune()}


def _delete(rows: QuerySet[Any]) -> int:
    numbers = list(rows.values_list("pk", flat=True)[:SLICE])
    # Filtered again: a context may have been recorded anew. The chain is not read.
    return int(rows.filter(pk__in=numbers).only("pk").delete()[1].get(rows.model._meta.label, 0))


def _due() -> Mapping[str, QuerySet[Any]]:
    """Rows that may be deleted, by kind."""
    due: dict[str, QuerySet[Any]] = {"pins": Pin.unscoped.filter(until__lt=timezone.now())}
    due["wrong_passwords"] = signing_in.surplus()
    due["invitations"] = invitations.ended()
    due["browser_sessions"] = sign_ins.expired()
    due["sign_ins"] = sign_ins.over()
    if before := _before(settings.ENV.keep_sessions_days):
        due["sessions"] = NodeSession.unscoped.filter(ended_at__lt=before)
        # Of nodes that died.
        ended = Q(expires_at__lt=before) | Q(revoked_at__lt=before)
        # A key whose own keys still work stays: revoking it ends them.
        working = ApiKey.unscoped.filter(made_by=OuterRef("pk"), revoked_at=None)
        due["keys"] = ApiKey.unscoped.filter(ended).exclude(Exists(working))
        due["silent_sessions"] = NodeSession.unscoped.filter(
            ended_at=None, last_heartbeat_at__lt=before
        )
    if before := _before(settings.ENV.keep_contexts_days):
        due["contexts"] = Context.unscoped.filter(expired_at__lt=before)
    if before := _before(settings.ENV.keep_audit_days):
        # By number, since no index is on the time alone; both grow together.
        oldest = AuditEvent.unscoped.order_by("pk").values_list("pk", flat=True).first() or 0
        due["audit_events"] = AuditEvent.unscoped.filter(at__lt=before, pk__lt=oldest + SLICE)
    return {name: rows.order_by() for name, rows in due.items()}


def _before(days: int) -> datetime | None:
    return timezone.now() - timedelta(days=days) if days else None
