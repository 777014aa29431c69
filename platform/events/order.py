"""Numbers committed events in order, and deletes old ones.

Numbers are given under the lock of the one row of `Position`, to rows that are committed by then.
So a reader that has seen event N never finds a new one below N, however transactions overlap.
"""

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

from django.conf import settings
from django.db import transaction
from django.db.models import Count, QuerySet
from django.utils import timezone

from events.models import Event, Horizon, Position

BATCH = 500  # rows of one transaction

# Called with newly numbered events, inside the transaction that numbers them.
Follower = Callable[[Sequence[Event]], None]
_followers: list[Follower] = []


def follow(follower: Follower) -> None:
    """For `AppConfig.ready`: what must happen exactly once for each numbered event."""
    _followers.append(follower)


def number() -> int:
    """Numbers up to BATCH events. Returns how many; 0 also while another process does it."""
    if not _unnumbered().exists():
        return 0
    with transaction.atomic():
        Position.objects.get_or_create(pk=1)
        # The rows are read behind the lock: what committed before it was free is among them.
        position = Position.objects.select_for_update(skip_locked=True).filter(pk=1).first()
        if position is None:
            return 0
        rows = list(_unnumbered().order_by("pk")[:BATCH])
        for sequence, row in enumerate(rows, position.last + 1):
            row.sequence = sequence
        Event.unscoped.bulk_update(rows, ["sequence"])
        position.last += len(rows)
        position.save()
        for follower in _followers:
            follower(rows)
    return len(rows)


def number_all(batches: int = 20) -> int:
    """`number` until nothing is left, at most so many times. Returns how many were numbered."""
    total = 0
    for _ in range(batches):
        total += (count := number())
        if count < BATCH:
            break
    return total


def last() -> int:
    """The highest number given so far."""
    return Position.objects.values_list("last", flat=True).first() or 0


def horizon(tenant_ids: frozenset[int] | None) -> int:
    """The highest number among the deleted events of these tenants (None: of all)."""
    rows = Horizon.unscoped.all()
    if tenant_ids is not None:
        rows = rows.filter(tenant_id__in=tenant_ids)
    return rows.order_by("-sequence").values_list("sequence", flat=True).first() or 0


def has_old() -> bool:
    return _old().exists() or bool(_crowded())


def prune(slices: int = 20) -> int:
    """Deletes events older than NEVE_KEEP_EVENTS_DAYS, and the oldest of tenants that have more
    than NEVE_EVENT_LIMIT. Returns how many. Their horizons move in the same transaction."""
    total = 0
    for _ in range(slices):
        total += (count := _delete(_old()))
        if count < BATCH:
            break
    for tenant_id, surplus in _crowded().items():
        # Rows without a tenant are found by None, too; the stubs do not know.
        own = Event.unscoped.filter(tenant=tenant_id)
        rows = own.filter(sequence__isnull=False)
        while surplus > 0 and (count := _delete(rows, min(surplus, BATCH))):
            total, surplus = total + count, surplus - count
    return total


def _unnumbered() -> QuerySet[Event]:
    return Event.unscoped.filter(sequence=None)


def _old() -> QuerySet[Event]:
    """By number, which has an index and grows with time."""
    numbered = Event.unscoped.filter(sequence__isnull=False)
    oldest = numbered.order_by("sequence").values_list("sequence", flat=True).first() or 0
    return numbered.filter(at__lt=_before(), sequence__lt=oldest + BATCH)


def _before() -> datetime:
    return timezone.now() - timedelta(days=settings.ENV.keep_events_days)


def _crowded() -> dict[int | None, int]:
    """Tenants with too many events → how many too many."""
    most = settings.ENV.event_limit
    counted = Event.unscoped.order_by().values("tenant_id").annotate(count=Count("pk"))
    return {each["tenant_id"]: each["count"] - most for each in counted.filter(count__gt=most)}


def _delete(rows: QuerySet[Event], most: int = BATCH) -> int:
    with transaction.atomic():
        found = rows.order_by("sequence").values_list("pk", "tenant_id", "sequence")[:most]
        doomed = list(found)
        newest = {tenant_id: sequence or 0 for _, tenant_id, sequence in doomed}
        for tenant_id, sequence in newest.items():
            row, _ = Horizon.unscoped.get_or_create(tenant_id=tenant_id)
            Horizon.unscoped.filter(pk=row.pk, sequence__lt=sequence).update(sequence=sequence)
        Event.unscoped.filter(pk__in=[pk for pk, *_ in doomed]).delete()
    return len(doomed)
