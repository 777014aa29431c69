"""Tokens that requests found in the cache, by the context that they named, of the last day.

Slices keep the busiest contexts of each bucket of time; a context that is in none has 0.
"""

from collections.abc import Collection

from django.db.models import Sum
from django.utils import timezone

from catalog.models import Slice
from tenants.models import Tenant
from tenants.principal import rows_of

RESOLUTION_S = 600  # kept for longer than a day
DAY_S = 86_400


def hit_tokens_of_day(
    tenants: tuple[Tenant, ...], space_ids: Collection[int], names: Collection[str] | None = None
) -> dict[tuple[int, str], int]:
    """(space, name of the context) → tokens. One statement over at most 6,000 rows a tenant."""
    since = int(timezone.now().timestamp()) - DAY_S
    rows = rows_of(Slice, tenants).filter(
        kind=Slice.Kind.CONTEXT,
        resolution_s=RESOLUTION_S,
        bucket_ts__gt=since - since % RESOLUTION_S,
        space_number__in=list(space_ids),
        hit_tokens__gt=0,
    )
    if names is not None:
        rows = rows.filter(name__in=list(names))
    found = rows.order_by().values("space_number", "name").annotate(tokens=Sum("hit_tokens"))
    return {(row["space_number"], row["name"]): row["tokens"] for row in found}
