"""What nodes read of a tenant's segments in a month, as observed: for the price of reading."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from django.db.models import Min, Sum

from catalog.heat import heat_at
from catalog.models import Segment, UsageRollup

OBSERVED: Final = timedelta(days=30)
_LEAST: Final = timedelta(hours=1)  # so that the first minutes of a tenant are no month
_ROLLUP_S: Final = 3600


@dataclass(frozen=True)
class Reads:
    """GETs and bytes in 30 days. `heat`: of all segments together, which share them by theirs."""

    requests: float = 0.0
    bytes: float = 0.0
    heat: float = 0.0

    def of(self, heat: float) -> tuple[float, float]:
        """Requests and bytes in 30 days of a segment with this heat."""
        share = heat / self.heat if self.heat else 0.0
        return self.requests * share, self.bytes * share


def observed(now: datetime) -> Reads:
    """Of the tenant of the scope. Two queries."""
    since_ts = int((now - OBSERVED).timestamp())
    rows = UsageRollup.objects.filter(resolution_s=_ROLLUP_S, bucket_ts__gte=since_ts).order_by()
    sums = rows.aggregate(
        requests=Sum("cold_requests", default=0),
        bytes=Sum("cold_fetched_bytes", default=0),
        first=Min("bucket_ts"),
    )
    if sums["first"] is None:
        return Reads()
    watched_s = max(now.timestamp() - sums["first"], _LEAST.total_seconds())
    times = max(1.0, OBSERVED.total_seconds() / watched_s)
    warm = Segment.objects.filter(state=Segment.State.LIVE, heat__gt=0).only("heat", "read_at")
    heat = sum(heat_at(row, now) for row in warm.iterator(chunk_size=1000))
    return Reads(sums["requests"] * times, sums["bytes"] * times, heat)
