"""How full each tenant's tiers are, how fast they fill, and when they will be full."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from catalog.models import UsageRollup
from dashboard.storage import StorageUse
from dashboard.usage import Tenants
from tenants.models import Tenant
from tenants.principal import rows_of

LOOK_BACK_S = 3600  # the growth is that of the last hour
LEAST_S = 600  # less of history says nothing of a trend
MOST_S = 366 * 86_400  # later than that is "not soon"


@dataclass(frozen=True)
class Growth:
    """Bytes a second over the last hour; None: too little is known."""

    hot: float | None = None
    cold: float | None = None


@dataclass(frozen=True)
class FillingRow:
    tenant: Tenant
    use: StorageUse
    growth: Growth
    dead_bytes: int
    waiting_bytes: int

    @property
    def pk(self) -> int:
        return self.tenant.pk

    @property
    def full_in_s(self) -> float | None:
        """Until the cold quota is reached at this growth; None: not within a year, or unknown."""
        return full_in_s(self.use.cold_bytes, self.use.cold_quota_bytes, self.growth.cold)

    @property
    def cold_per_hour(self) -> float | None:
        return None if self.growth.cold is None else self.growth.cold * 3600


def full_in_s(used: int | None, quota: int | None, per_s: float | None) -> float | None:
    """0 when it is full already. Pure."""
    if used is None or not quota:
        return None
    if used >= quota:
        return 0.0
    if per_s is None or per_s <= 0:
        return None
    left_s = (quota - used) / per_s
    return left_s if left_s <= MOST_S else None


def growths(tenants: Tenants, now_s: float) -> dict[int, Growth]:
    """By tenant id: the slope between the first and the last gauge of the last hour. One query."""
    rows = (
        rows_of(UsageRollup, tenants)
        .filter(resolution_s=60, bucket_ts__gte=int(now_s) - LOOK_BACK_S)
        .filter(hot_used_bytes__isnull=False)
        .order_by("bucket_ts")
        .values("tenant_id", "bucket_ts", "hot_used_bytes", "cold_used_bytes")
    )
    first: dict[int, Mapping[str, Any]] = {}
    last: dict[int, Mapping[str, Any]] = {}
    for row in rows.iterator():
        first.setdefault(row["tenant_id"], row)
        last[row["tenant_id"]] = row
    found = {}
    for tenant_id, early in first.items():
        late = last[tenant_id]
        length_s = late["bucket_ts"] - early["bucket_ts"]
        if length_s < LEAST_S:
            continue
        found[tenant_id] = Growth(
            (late["hot_used_bytes"] - early["hot_used_bytes"]) / length_s,
            ((late["cold_used_bytes"] or 0) - (early["cold_used_bytes"] or 0)) / length_s,
        )
    return found
