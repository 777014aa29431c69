"""Everything that the overview shows, for the page and for its live updates."""

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from django.conf import settings
from django.db.models import Min

from catalog.models import NodeSession, UsageRollup
from catalog.sessions import live_since
from catalog.usage import bounded_sum
from catalog.windows import Range, Window
from dashboard import probes
from dashboard.formats import AXES
from dashboard.pages.jobs.selector import failed_jobs
from dashboard.pages.nodes.selector import NodeRow, node_rows, sessions
from dashboard.pages.overview.health import Health, assess
from dashboard.pages.overview.misses import MissShare, miss_shares
from dashboard.pages.overview.series import Series, series
from dashboard.storage import StorageUse, leaves_first, storage_use, summed
from dashboard.usage import Tenants, Totals, hit_ratios, totals
from tenants.models import Tenant
from tenants.principal import Principal, rows_of

TOP = 5  # rows of the short tables
RATE_NOW_S = 60  # "now" of a rate: long enough to be calm, short enough to be now


@dataclass(frozen=True)
class TenantRow:
    """What one tenant holds, and its hit rate; None when nothing was asked for."""

    tenant: Tenant
    use: StorageUse
    hit_ratio: float | None


@dataclass(frozen=True)
class Overview:
    """`hit_change`: of the ratio, against the window before; None without both. `read_rate`: bytes
    a second of the last minute."""

    now: datetime
    range: Range
    window: Window
    is_empty: bool
    health: Health
    totals: Totals
    hit_change: float | None
    read_rate: float | None
    storage: StorageUse
    leaves_first: str
    misses: list[MissShare]
    top_tenants: list[TenantRow]
    more_tenants: int
    nodes: list[NodeRow]
    more_nodes: int
    series: Series
    endpoint: str

    def chart(self, since_ts: int = 0) -> dict[str, Any]:
        """The charts' numbers as JSON, from a step on."""
        return {
            "now_s": self.window.now_s,
            "start_s": self.window.start_ts,
            "end_s": min(self.window.now_s, self.window.end_ts),
            "step_s": self.range.step_s,
            "series": asdict(self.series.since(since_ts)),
        }

    def context(self) -> dict[str, Any]:
        """For templates."""
        return {**vars(self), "chart": self.chart(), "axes": AXES}


def overview_of(person: Principal, tenants: Tenants, window: Window) -> Overview:
    now = datetime.fromtimestamp(window.now_s, UTC)
    counted, before = totals(tenants, window), totals(tenants, window.previous())
    uses = storage_use(tenants, window.now_s)
    storage = summed(list(uses.values()))
    nodes = node_rows(sessions(tenants, now=now), live_since=live_since())
    health = assess(
        nodes=nodes,
        hot=probes.HOT.read(),
        cold=probes.COLD.read(),
        workers=probes.WORKERS.read(),
        storage=uses,
        all_storage=storage,
        tenants=tenants,
        totals=counted,
        failed_jobs=failed_jobs(person, now=now),
        now=now,
    )
    ratios = hit_ratios(tenants, window)
    by_size = sorted(tenants, key=lambda one: (-uses[one.pk].held_bytes, one.slug))
    return Overview(
        now=now,
        range=window.range,
        window=window,
        is_empty=not has_ever_connected(tenants),
        health=health,
        totals=counted,
        hit_change=_change(counted.hit_ratio, before.hit_ratio),
        read_rate=read_rate_now(tenants, window.now_s),
        storage=storage,
        leaves_first=leaves_first(tenants),
        misses=miss_shares(counted.misses, before.misses),
        top_tenants=[TenantRow(one, uses[one.pk], ratios.get(one.pk)) for one in by_size[:TOP]],
        more_tenants=max(len(tenants) - TOP, 0),
        nodes=nodes[:TOP],
        more_nodes=max(len(nodes) - TOP, 0),
        series=series(tenants, window),
        endpoint=settings.ENV.url.geturl(),
    )


def read_rate_now(tenants: Tenants, now_s: float) -> float | None:
    """Bytes a second that came from the cache over the last whole buckets; None without any."""
    end_ts = int(now_s) - int(now_s) % 10
    found = (
        rows_of(UsageRollup, tenants)
        .filter(resolution_s=10, bucket_ts__gte=end_ts - RATE_NOW_S, bucket_ts__lt=end_ts)
        .aggregate(read=bounded_sum("hot_read_bytes", "cold_read_bytes"), first=Min("bucket_ts"))
    )
    if found["first"] is None:
        return None
    return float(found["read"]) / (end_ts - int(found["first"]))


def has_ever_connected(tenants: Tenants) -> bool:
    return rows_of(NodeSession, tenants).exists()


def _change(ratio: float | None, before: float | None) -> float | None:
    return None if ratio is None or before is None else ratio - before
