"""Turns and places of rounds: one worker at a time goes around a side, in slices.

A killed worker's turn lapses. The place is kept when a turn ends, so at most one slice is repeated.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.db.models import Q
from django.utils import timezone

from catalog.models import Round
from tiering.elapsed import is_leased

LEASE = timedelta(minutes=15)  # longer than Celery lets any task run
PAUSE = timedelta(minutes=10)  # between two rounds of one side and tenant


@dataclass
class Turn:
    """`place` is JSON; None: the beginning, or, after the work, the end of the round."""

    place: Any
    is_new: bool

    def end_round(self) -> None:
        self.place = None


@contextmanager
def turn(side: Round.Side, tenant_id: int | None = None) -> Iterator[Turn | None]:
    """Takes the turn; None: another worker has it, or the last round has just ended."""
    # The plugin of mypy does not see that the key may be null.
    row, _ = Round.unscoped.get_or_create(side=side, tenant_id=tenant_id)  # type: ignore[misc]
    now = timezone.now()
    is_fresh = Q(place__isnull=True, ended_at__gte=now - PAUSE, ended_at__lte=now)
    is_taken = is_leased("leased_until", LEASE)
    mine = Round.unscoped.filter(pk=row.pk).exclude(is_taken).exclude(is_fresh)
    if not mine.update(leased_until=now + LEASE):
        yield None
        return
    row.refresh_from_db()
    given, has_failed = Turn(row.place, row.place is None), True
    row.begun_at = now if given.is_new else row.begun_at
    try:
        yield given
        has_failed = False
    finally:
        ended = timezone.now()
        row.place, row.looked_at, row.leased_until = given.place, ended, None
        if given.place is None and not has_failed:  # a failed first slice is no round
            row.ended_at = ended
        row.save(update_fields=["place", "begun_at", "looked_at", "ended_at", "leased_until"])


def longest_ago(side: Round.Side, tenants: Sequence[int]) -> list[int]:
    """These tenants, the longest wait for a turn first."""
    rows = Round.unscoped.filter(side=side).values_list("tenant_id", "looked_at")
    looked = {tenant: at for tenant, at in rows if at is not None}
    first = [tenant for tenant in tenants if tenant not in looked]
    return first + sorted((t for t in tenants if t in looked), key=lambda t: looked[t])
