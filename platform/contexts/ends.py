"""Scheduled expiries, and events that tell of ends which are near."""

from collections.abc import Iterator
from datetime import datetime, timedelta

from django.db import transaction
from django.db.models import F, Q
from django.utils import timezone

from base.problems import Problem
from catalog.models import Context
from contexts import rows
from contexts.expiry import expire
from events.services import emit_many
from tenants.audit import SYSTEM
from tenants.scope import tenant_scope

NEAR = timedelta(minutes=10)
MOST = 200  # contexts of a tenant in one turn
_ENDS = {"pinned_until": "pin", "extended_until": "extension", "expires_at": "expiry"}


def tenants_with_work() -> list[int]:
    """Active tenants with a context that is to be expired now, or whose end is near."""
    now = timezone.now()
    due = Context.unscoped.filter(_due(now) | _near(now), tenant__is_active=True)
    return list(due.order_by().values_list("tenant_id", flat=True).distinct())


def expire_due(tenant_id: int) -> int:
    """Expire contexts whose time has come and that nobody pins. Returns how many.

    Raises Problem (hot-tier-unavailable): the next turn goes on.
    """
    with tenant_scope(tenant_id):
        due = list(Context.objects.filter(_due(timezone.now())).order_by("expires_at")[:MOST])
    for context in due:
        try:
            expire(context=context, actor=SYSTEM)
        except Problem as problem:
            if problem.kind != "not-found":  # deleted meanwhile
                raise
    return len(due)


def announce_near(tenant_id: int) -> int:
    """Tell once of each end within `NEAR`. Returns how many contexts had one."""
    now = timezone.now()
    with tenant_scope(tenant_id), transaction.atomic():
        found = list(
            Context.objects.select_for_update()
            .filter(_near(now))
            .defer("chain")
            .order_by("pk")[:MOST]
        )
        told = [
            (rows.subject(context), {"at": at.isoformat(), "ends": ends})
            for context in found
            for at, ends in _untold(context, now)
        ]
        emit_many("context.expiring_soon", tenant_id=tenant_id, items=told)
        for context in found:
            context.warned_until = max(at for at, _ in _untold(context, now))
        Context.objects.bulk_update(found, ["warned_until"])
    return len(found)


def _due(now: datetime) -> Q:
    is_free = Q(pinned_until=None) | Q(pinned_until__lte=now)
    return Q(expires_at__lte=now, expired_at=None) & is_free


def _near(now: datetime) -> Q:
    """Contexts with an end within `NEAR` that is later than those told of."""
    found = Q()
    for name in _ENDS:
        is_news = Q(warned_until=None) | Q(**{f"{name}__gt": F("warned_until")})
        found |= Q(**{f"{name}__range": (now, now + NEAR)}) & is_news
    return found & Q(expired_at=None)


def _untold(context: Context, now: datetime) -> Iterator[tuple[datetime, str]]:
    for name, ends in _ENDS.items():
        at = getattr(context, name)
        is_news = context.warned_until is None or (at is not None and at > context.warned_until)
        if at is not None and now <= at <= now + NEAR and is_news:
            yield at, ends
