"""What the page Tiers & segments says of memory, S3 and the bytes between them."""

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from catalog.occupancy import Occupancy
from catalog.windows import Window
from dashboard.pages.overview.series import series
from dashboard.pages.tiers.filling import FillingRow, Growth, growths
from dashboard.storage import StorageUse
from dashboard.usage import Tenants
from neve.planner.savings import money_text
from planning import savings
from storage.hot import MEMORY_PER_BYTE
from storage.hot_figures import Primary
from tenants.room import promised_bytes


@dataclass(frozen=True)
class Moved:
    """Means over a window, bytes a second; None: nobody reported."""

    hot_written: float | None
    flushed: float | None
    hot_read: float | None
    cold_read: float | None
    local_read: float | None
    local_written: float | None

    @property
    def is_behind(self) -> bool:
        """Whether flushes carry less than half of what nodes write. Blocks that policies never
        flush count as well, so it is a hint."""
        return bool(self.hot_written) and (self.flushed or 0) < (self.hot_written or 0) / 2


@dataclass(frozen=True)
class Requests:
    """To S3 in this UTC month, by nodes and platform, and what they cost at the prices."""

    puts: int
    gets: int
    egress_bytes: int
    money: str


@dataclass(frozen=True)
class Memory:
    """Of all hot servers, in bytes, beside what quotas promise. `max_bytes` 0: no limit."""

    used_bytes: int
    max_bytes: int
    promised_bytes: int

    @property
    def needed_bytes(self) -> int:
        """For the promise, with headers and index."""
        return int(self.promised_bytes * MEMORY_PER_BYTE)

    @property
    def is_over(self) -> bool:
        return 0 < self.max_bytes < self.needed_bytes


def memory(primaries: list[Primary]) -> Memory:
    limits = [each.max_bytes for each in primaries]
    return Memory(
        sum(each.used_bytes for each in primaries),
        sum(limits) if all(limits) else 0,
        promised_bytes(),
    )


def moved(tenants: Tenants, window: Window) -> Moved:
    found = series(tenants, window)

    def mean(values: list[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return sum(known) / len(known) if known else None

    return Moved(
        hot_written=mean(found.hot_write_bytes),
        flushed=mean(found.cold_write_bytes),
        hot_read=mean(found.hot_read_bytes),
        cold_read=mean(found.cold_read_bytes),
        local_read=mean(found.local_read_bytes),
        local_written=mean(found.local_write_bytes),
    )


def requests(tenants: Tenants) -> Requests | None:
    """None before the first sums of the month."""
    rows = savings.rows([tenant.pk for tenant in tenants], month=savings.this_month())
    if not rows:
        return None
    amount = sum((row.of("requests") + row.of("egress") for row in rows), Decimal(0))
    return Requests(
        puts=sum(row.used.puts for row in rows),
        gets=sum(row.used.gets for row in rows),
        egress_bytes=sum(row.used.egress_bytes for row in rows),
        money=f"{money_text(-amount)} {rows[0].currency}",
    )


def filling_rows(
    tenants: Tenants, use: dict[int, StorageUse], taken: dict[int, Occupancy], now: datetime
) -> list[FillingRow]:
    grown = growths(tenants, now.timestamp())
    return [
        FillingRow(
            tenant=tenant,
            use=use[tenant.pk],
            growth=grown.get(tenant.pk, Growth()),
            dead_bytes=taken[tenant.pk].dead_bytes,
            waiting_bytes=taken[tenant.pk].waiting_bytes,
        )
        for tenant in tenants
    ]
