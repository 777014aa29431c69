"""What nodes counted, summed over a window and over tenants, from the roll-ups.

None means unknown (nobody reported), 0 means none.
"""

from dataclasses import dataclass, replace
from typing import Any

from catalog.histograms import Percentile, percentile
from catalog.models import GAUGES, TIER_COUNTERS, UsageRollup
from catalog.usage import bounded_sum, sums_by_name
from catalog.windows import Window
from tenants.models import Tenant
from tenants.principal import rows_of

Tenants = tuple[Tenant, ...]
Counts = dict[int, dict[str, int]]  # by bucket, then by column

SUMMED = (
    "requested_tokens",
    "tail_tokens",
    "hit_hot_tokens",
    "hit_cold_tokens",
    "hit_local_tokens",
    "hot_read_bytes",
    "cold_read_bytes",
    "local_read_bytes",
    "local_write_bytes",
    "hot_write_bytes",
)


SUMMED_BLOCKS = (
    "requested_blocks",
    "hit_hot_blocks",
    "hit_cold_blocks",
    "hit_local_blocks",
    "put_refused",
    "corrupt",
    "spared_gpu_us",
    *TIER_COUNTERS,
)


@dataclass(frozen=True)
class Totals:
    """Sums over a window. `reported` is False when no node reported in it."""

    reported: bool
    requested_tokens: int
    hit_hot_tokens: int
    hit_cold_tokens: int
    requested_blocks: int
    hit_hot_blocks: int
    hit_cold_blocks: int
    read_bytes: int
    load_p50: Percentile | None
    load_p99: Percentile | None
    misses: dict[str, int]
    put_refused: int
    corrupt: int
    tail_tokens: int = 0
    spared_gpu_us: int = 0
    hit_local_tokens: int = 0
    hit_local_blocks: int = 0
    cold_refused_blocks: int = 0
    cold_evicted_blocks: int = 0
    lost_blocks: int = 0

    @property
    def hit_tokens(self) -> int:
        return self.hit_hot_tokens + self.hit_cold_tokens + self.hit_local_tokens

    @property
    def hit_ratio(self) -> float | None:
        """Of all prompt tokens, also those after a prompt's last whole block: as `neve replay`."""
        return self.hit_tokens / self.prompt_tokens if self.prompt_tokens else None

    @property
    def prompt_tokens(self) -> int:
        return self.requested_tokens + self.tail_tokens

    @property
    def block_hit_ratio(self) -> float | None:
        """Of the tokens that blocks can hold."""
        return self.hit_tokens / self.requested_tokens if self.requested_tokens else None

    @property
    def hot_block_ratio(self) -> float | None:
        return self.hit_hot_blocks / self.requested_blocks if self.requested_blocks else None

    @property
    def cold_block_ratio(self) -> float | None:
        return self.hit_cold_blocks / self.requested_blocks if self.requested_blocks else None

    @property
    def local_block_ratio(self) -> float | None:
        return self.hit_local_blocks / self.requested_blocks if self.requested_blocks else None

    @property
    def missed_block_ratio(self) -> float | None:
        if not self.requested_blocks:
            return None
        hits = self.hit_hot_blocks + self.hit_cold_blocks + self.hit_local_blocks
        return max(1 - hits / self.requested_blocks, 0)


def counts_by_bucket(tenants: Tenants, window: Window) -> Counts:
    """Of the window and of the one before: one query for all that a page says of both."""
    names = (*SUMMED, *SUMMED_BLOCKS)
    both = replace(window, start_ts=window.previous().start_ts)
    sums = (
        buckets(tenants, both)
        .order_by()
        .values("bucket_ts")
        .annotate(**{f"_{n}": bounded_sum(n) for n in names})
    )
    return {
        ts: dict(zip(names, map(int, counts), strict=True))
        for ts, *counts in sums.values_list("bucket_ts", *(f"_{name}" for name in names))
    }


def totals(
    tenants: Tenants, window: Window, counts: Counts | None = None, *, with_loads: bool = True
) -> Totals:
    """`counts`: of this window, if they are read already. `with_loads` False: without `load_p50`
    and `load_p99`."""
    if counts is None:
        counts = counts_by_bucket(tenants, window)
    found = [each for ts, each in counts.items() if window.start_ts <= ts < window.end_ts]
    summed = {name: sum(each[name] for each in found) for name in (*SUMMED, *SUMMED_BLOCKS)}
    rows = buckets(tenants, window)
    named = sums_by_name(rows, ("misses", "load_ms") if with_loads else ("misses",))
    load_ms = named["load_ms"][()] if with_loads else {}
    return Totals(
        reported=bool(found),
        requested_tokens=summed["requested_tokens"],
        tail_tokens=summed["tail_tokens"],
        hit_hot_tokens=summed["hit_hot_tokens"],
        hit_cold_tokens=summed["hit_cold_tokens"],
        requested_blocks=summed["requested_blocks"],
        hit_hot_blocks=summed["hit_hot_blocks"],
        hit_cold_blocks=summed["hit_cold_blocks"],
        hit_local_tokens=summed["hit_local_tokens"],
        hit_local_blocks=summed["hit_local_blocks"],
        read_bytes=sum(summed[f"{tier}_read_bytes"] for tier in ("hot", "cold", "local")),
        load_p50=percentile(load_ms, 0.5),
        load_p99=percentile(load_ms, 0.99),
        misses=dict(named["misses"][()]),
        put_refused=summed["put_refused"],
        corrupt=summed["corrupt"],
        spared_gpu_us=summed["spared_gpu_us"],
        **{name: summed[name] for name in TIER_COUNTERS},
    )


def last_gauges(tenants: Tenants, now_s: float) -> dict[int, dict[str, int | None]]:
    """The newest gauges of each tenant out of the last minutes of 10 s roll-ups."""
    rows = (
        rows_of(UsageRollup, tenants)
        .filter(resolution_s=10, bucket_ts__gte=int(now_s) - 300, hot_used_bytes__isnull=False)
        .order_by("bucket_ts")
        .values("tenant_id", *GAUGES)
    )
    return {row["tenant_id"]: row for row in rows}


def buckets(tenants: Tenants, window: Window) -> Any:
    return rows_of(UsageRollup, tenants).filter(
        resolution_s=window.range.resolution_s,
        bucket_ts__gte=window.start_ts,
        bucket_ts__lt=window.end_ts,
    )
