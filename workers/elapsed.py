"""Time limits that hold up nothing when a clock ran ahead and was set back."""

from datetime import timedelta

from django.db.models import Q
from django.utils import timezone


def is_past(field: str, age: timedelta) -> Q:
    """Rows whose `field` is longer ago than `age`, or so far ahead: noted before the setting."""
    now = timezone.now()
    return Q(**{f"{field}__lt": now - age}) | Q(**{f"{field}__gt": now + age})
