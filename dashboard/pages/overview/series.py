"""Rates per step, for the charts and the tables below them."""

from bisect import bisect_left
from collections import defaultdict
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any

from catalog.models import Segment
from catalog.windows import Window
from dashboard.usage import SUMMED, Counts, Tenants, counts_by_bucket
from tenants.principal import rows_of


@dataclass(frozen=True)
class Series:
    """Rates per second, one value a step; None where nobody reported. `ts` are step starts."""

    ts: list[int]
    hot_tokens: list[float | None]
    cold_tokens: list[float | None]
    local_tokens: list[float | None]
    recomputed_tokens: list[float | None]
    hot_read_bytes: list[float | None]
    cold_read_bytes: list[float | None]
    local_read_bytes: list[float | None]
    hot_write_bytes: list[float | None]
    cold_write_bytes: list[float | None]
    local_write_bytes: list[float | None]

    def since(self, ts: int) -> "Series":
        """The steps from `ts` on."""
        first = bisect_left(self.ts, ts)
        return Series(*(getattr(self, column.name)[first:] for column in fields(self)))

    def token_rows(self) -> list[tuple[Any, ...]]:
        """(when, hot, cold, local, recomputed), the newest first: the table behind the chart."""
        return self._rows(
            self.hot_tokens, self.cold_tokens, self.local_tokens, self.recomputed_tokens
        )

    def byte_rows(self) -> list[tuple[Any, ...]]:
        """(when, read hot, cold, local, written hot, cold, local), the newest first."""
        return self._rows(
            *(self.hot_read_bytes, self.cold_read_bytes, self.local_read_bytes),
            *(self.hot_write_bytes, self.cold_write_bytes, self.local_write_bytes),
        )

    def _rows(self, *columns: list[float | None]) -> list[tuple[Any, ...]]:
        times = [datetime.fromtimestamp(ts, UTC) for ts in self.ts]
        return list(zip(times, *columns, strict=True))[::-1]


def series(tenants: Tenants, window: Window, counts: Counts | None = None) -> Series:
    """The window's steps. One that has barely begun is left out: its rate would be noise.
    `counts`: of this window, if they are read already."""
    sums: dict[int, dict[str, int]] = {}
    for ts, counted in (counts_by_bucket(tenants, window) if counts is None else counts).items():
        summed = sums.setdefault(window.step_of(ts), dict.fromkeys(SUMMED, 0))
        for name in SUMMED:
            summed[name] += counted[name]
    flushed = _flushed_bytes(tenants, window)
    found = Series(*([] for _ in fields(Series)))
    for ts in window.steps():
        elapsed_s = window.elapsed_s(ts)
        if elapsed_s < 10:
            continue
        step = sums.get(ts)
        found.ts.append(ts)
        for values, name in (
            (found.hot_tokens, "hit_hot_tokens"),
            (found.cold_tokens, "hit_cold_tokens"),
            (found.local_tokens, "hit_local_tokens"),
            (found.local_read_bytes, "local_read_bytes"),
            (found.local_write_bytes, "local_write_bytes"),
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


def _recomputed(step: dict[str, int]) -> int:
    return max(
        step["requested_tokens"]
        + step["tail_tokens"]
        - step["hit_hot_tokens"]
        - step["hit_cold_tokens"]
        - step["hit_local_tokens"],
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
