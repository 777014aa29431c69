"""What the overview shows, read from the roll-ups. Reads only; returns dataclasses in plain units.

None means unknown (nobody reported), 0 means none.
"""

from bisect import bisect_left
from collections import defaultdict
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any

from django.db.models import Min

from catalog.models import NodeSession, Segment, UsageRollup
from catalog.usage import bounded_sum
from dashboard.access import rows_of
from dashboard.usage import SUMMED, Tenants, buckets
from dashboard.windows import Window

RATE_NOW_S = 60  # "now" of a rate: long enough to be calm, short enough to be now
MISS_WORDS = {
    "never_stored": ("Never stored", "first time seen: nothing to fix"),
    "evicted": ("Evicted hot", "the hot tier was full, without a cold copy: raise the hot quota"),
    "evicted_cold": ("Evicted cold", "the cold tier was full: raise the cold quota"),
    "unflushed": ("Not flushed", "the cold tier refused it: raise the cold quota, end pins"),
    "unsupported": ("Unsupported", "stored by a newer version of Neve: update the node"),
    "idle": ("Idle", "the idle rule removed it, without a cold copy: flush it, or set hot_idle_s"),
    "expired": ("Expired", "retention or a person ended it"),
    "quota": ("Over quota", "refused when it was stored"),
    "fingerprint": ("Fingerprint", "stored by another model or layout"),
    "timeout": ("Timeout", "storage answered too late"),
    "breaker": ("Breaker open", "the node is serving without Neve"),
    "corrupt": ("Corrupt", "failed verification and was dropped"),
    "clock": ("Clock", "S3's clock and the platform's differ: set both by NTP"),
    "denied": ("Denied", "S3 refuses what the platform signs: check its S3 key and region"),
}


@dataclass(frozen=True)
class Series:
    """Rates per second, one value a step; None where nobody reported. `ts` are step starts."""

    ts: list[int]
    hot_tokens: list[float | None]
    cold_tokens: list[float | None]
    recomputed_tokens: list[float | None]
    hot_read_bytes: list[float | None]
    cold_read_bytes: list[float | None]
    hot_write_bytes: list[float | None]
    cold_write_bytes: list[float | None]

    def since(self, ts: int) -> "Series":
        """The steps from `ts` on."""
        first = bisect_left(self.ts, ts)
        return Series(*(getattr(self, column.name)[first:] for column in fields(self)))

    def token_rows(self) -> list[tuple[Any, ...]]:
        """(when, hot, cold, recomputed), the newest first: the table behind the chart."""
        return self._rows(self.hot_tokens, self.cold_tokens, self.recomputed_tokens)

    def byte_rows(self) -> list[tuple[Any, ...]]:
        """(when, hot read, cold read, hot written, cold written), the newest first."""
        return self._rows(
            self.hot_read_bytes, self.cold_read_bytes, self.hot_write_bytes, self.cold_write_bytes
        )

    def _rows(self, *columns: list[float | None]) -> list[tuple[Any, ...]]:
        times = [datetime.fromtimestamp(ts, UTC) for ts in self.ts]
        return list(zip(times, *columns, strict=True))[::-1]


@dataclass(frozen=True)
class MissShare:
    reason: str
    label: str
    hint: str
    blocks: int
    share: float  # of all missed blocks
    of_largest: float  # for the bar


def oldest_bucket_ts(tenants: Tenants) -> int | None:
    """Where kept data begins, in any resolution."""
    found = rows_of(UsageRollup, tenants).aggregate(oldest=Min("bucket_ts"))
    return None if found["oldest"] is None else int(found["oldest"])


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


def series(tenants: Tenants, window: Window) -> Series:
    """The window's steps. One that has barely begun is left out: its rate would be noise."""
    sums: dict[int, dict[str, int]] = {}
    rows = buckets(tenants, window).order_by().values("bucket_ts")
    for row in rows.annotate(**{f"sum_{name}": bounded_sum(name) for name in SUMMED}):
        summed = sums.setdefault(window.step_of(row["bucket_ts"]), dict.fromkeys(SUMMED, 0))
        for name in SUMMED:
            summed[name] += int(row[f"sum_{name}"])
    flushed = _flushed_bytes(tenants, window)
    found = Series([], [], [], [], [], [], [], [])
    for ts in window.steps():
        elapsed_s = window.elapsed_s(ts)
        if elapsed_s < 10:
            continue
        step = sums.get(ts)
        found.ts.append(ts)
        for values, name in (
            (found.hot_tokens, "hit_hot_tokens"),
            (found.cold_tokens, "hit_cold_tokens"),
            (found.hot_read_bytes, "hot_read_bytes"),
            (found.cold_read_bytes, "cold_read_bytes"),
            (found.hot_write_bytes, "hot_write_bytes"),
        ):
            values.append(step[name] / elapsed_s if step else None)
        found.recomputed_tokens.append(_recomputed(step) / elapsed_s if step else None)
        cold_write = flushed.get(ts)
        known = step is not None or cold_write is not None
        found.cold_write_bytes.append((cold_write or 0) / elapsed_s if known else None)
    return found


def miss_shares(misses: dict[str, int]) -> list[MissShare]:
    """Reasons that happened, the most frequent first."""
    counted = {reason: blocks for reason, blocks in misses.items() if blocks > 0}
    total, largest = sum(counted.values()), max(counted.values(), default=0)
    shares = []
    for reason, blocks in sorted(counted.items(), key=lambda item: (-item[1], item[0])):
        label, hint = MISS_WORDS.get(reason, (reason.replace("_", " "), ""))
        shares.append(MissShare(reason, label, hint, blocks, blocks / total, blocks / largest))
    return shares


def has_ever_connected(tenants: Tenants) -> bool:
    return rows_of(NodeSession, tenants).exists()


def _recomputed(step: dict[str, int]) -> int:
    return max(
        step["requested_tokens"]
        + step["tail_tokens"]
        - step["hit_hot_tokens"]
        - step["hit_cold_tokens"],
        0,
    )


def _flushed_bytes(tenants: Tenants, window: Window) -> dict[int, int]:
    """Bytes that became live segments, by step: the cold tier's writes."""
    first = datetime.fromtimestamp(window.start_ts, UTC)
    last = datetime.fromtimestamp(window.end_ts, UTC)
    rows = rows_of(Segment, tenants).filter(created_at__gte=first, created_at__lt=last)
    flushed: dict[int, int] = defaultdict(int)
    for created_at, size_bytes in rows.order_by().values_list("created_at", "size_bytes"):
        flushed[window.step_of(int(created_at.timestamp()))] += size_bytes
    return flushed
