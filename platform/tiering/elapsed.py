"""Time limits that hold up nothing when a clock ran ahead and was set back."""

from datetime import timedelta

from django.db.models import Q
from django.utils import timezone


def is_past(field: str, age: timedelta) -> Q:
    """Rows whose `field` is longer ago than `age`, or so far ahead: noted before the setting."""
    now = timezone.now()
    return Q(**{f"{field}__lt": now - age}) | Q(**{f"{field}__gt": now + age})


def is_held(field: str, lease: timedelta) -> Q:
    """Rows whose lease, noted in `field`, runs. One that ends twice as far ahead holds nothing.

    Once as far may be of a worker whose clock is a little ahead, or that took it after this was
    called.
    """
    now = timezone.now()
    return Q(**{f"{field}__gte": now, f"{field}__lte": now + 2 * lease})
