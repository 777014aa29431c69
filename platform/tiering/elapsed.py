"""Time limits that block no work after a clock ran ahead and was set back."""

from datetime import timedelta

from django.db.models import Q
from django.utils import timezone


def is_past(field: str, age: timedelta) -> Q:
    """Rows whose `field` is more than `age` ago, or ahead: the clock was set back since."""
    now = timezone.now()
    return Q(**{f"{field}__lt": now - age}) | Q(**{f"{field}__gt": now + age})


def is_leased(field: str, lease: timedelta) -> Q:
    """Rows with an active lease in `field`.

    A lease that ends more than 2 × `lease` ahead is ignored: the clock was set back. Up to that,
    its owner's clock may be a little ahead, or it took the lease after this call.
    """
    now = timezone.now()
    return Q(**{f"{field}__gte": now, f"{field}__lte": now + 2 * lease})
