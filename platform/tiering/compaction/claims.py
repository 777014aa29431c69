"""Leases on segments that a worker merges. A killed worker's leases lapse.

Two workers that merge the same segment all the same only write dead bytes: `relocate` compares
and sets.
"""

import time
from collections.abc import Callable, Sequence
from datetime import timedelta

from django.db import transaction
from django.db.models import Q
from django.utils import timezone

from catalog.models import Segment
from tiering.elapsed import is_leased

LEASE = timedelta(seconds=120)


def is_free() -> Q:
    return ~is_leased("leased_until", LEASE)


def claim(segments: Sequence[int]) -> bool:
    """All of them, or none: then another worker has one, or it is not live any more."""
    with transaction.atomic():
        live = Segment.objects.filter(is_free(), pk__in=segments, state=Segment.State.LIVE)
        rows = list(live.select_for_update().order_by("pk").values_list("pk", flat=True))
        if len(rows) < len(segments):
            return False
        live.update(leased_until=timezone.now() + LEASE)
    return True


def release(segments: Sequence[int]) -> None:
    Segment.objects.filter(pk__in=segments).update(leased_until=None)


def renewer(segments: Sequence[int]) -> Callable[[], None]:
    """A function that renews the claims when a third of the lease is over: call it often."""
    renewed = time.monotonic()

    def renew() -> None:
        nonlocal renewed
        if time.monotonic() - renewed > LEASE.total_seconds() / 3:
            renewed = time.monotonic()
            rows = Segment.objects.filter(pk__in=segments)
            rows.update(leased_until=timezone.now() + LEASE)

    return renew
