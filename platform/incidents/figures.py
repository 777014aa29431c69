"""What rules compare, of all tenants at once: a few statements, whatever the number of tenants."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from valkey.exceptions import ValkeyError

from base import log_events
from catalog.histograms import percentile
from catalog.models import Job, NodeSession, UsageRollup
from catalog.nodes import live_after_s
from catalog.usage import add, bounded, known
from neve.errors import MissReason
from neve.node.stats import LOAD_NAMES
from storage import hot, hot_servers
from tenants.room import promised_bytes

RECENT_S = 300
BASE_S = 1800  # what "now" is held against
WINDOWS_S = (30, 120, 300)  # of "now": the first with enough traffic
LEAST_BLOCKS = 60  # asked for in a window, to speak of a rate
LATEST_BLOCKS = 20
LEAST_BASE_BLOCKS = 200
LEAST_LOADS = 50
LEAST_PUTS = 50
JOBS_S = 900
_COUNTS = (
    *("requested_tokens", "tail_tokens", "hit_hot_tokens", "hit_cold_tokens", "requested_blocks"),
    *("put_blocks", "put_refused", "dropped"),
    *("cold_refused_blocks", "lost_blocks"),
)


@dataclass
class Counted:
    """Sums of buckets. `seconds`: what they cover."""

    seconds: float = 0.0
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_COUNTS, 0))
    misses: dict[str, int] = field(default_factory=dict)

    def add(self, counts: Mapping[str, int], misses: Mapping[str, int]) -> None:
        for name in _COUNTS:
            self.counts[name] += counts[name]
        self.misses = add(self.misses, misses)

    @property
    def prompt_tokens(self) -> int:
        return self.counts["requested_tokens"] + self.counts["tail_tokens"]

    @property
    def hit_ratio(self) -> float | None:
        hits = self.counts["hit_hot_tokens"] + self.counts["hit_cold_tokens"]
        return hits / self.prompt_tokens if self.prompt_tokens else None

    @property
    def requested_blocks(self) -> int:
        return self.counts["requested_blocks"]

    def miss_rate(self, reason: str) -> float:
        """Missed for a reason, of the blocks asked for."""
        return self.misses.get(reason, 0) / self.requested_blocks if self.requested_blocks else 0.0


@dataclass
class Figures:
    """Of one tenant. `now`, `base`: None without enough traffic. `latest_ratio`: hit rate of the
    newest LATEST_BLOCKS or more. `began_ts`: since when it is as low as now, within RECENT_S.
    Nodes by name."""

    now: Counted | None = None
    base: Counted | None = None
    latest_ratio: float | None = None
    began_ts: int | None = None
    recent: Counted = field(default_factory=Counted)
    load_p99_ms: float | None = None
    dirty_oldest_s: int | None = None
    open_breakers: list[str] = field(default_factory=list)
    silent: list[str] = field(default_factory=list)
    failed_jobs: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Memory:
    """Of the hot tier. Ratios: used of maxmemory, promised by quotas of maxmemory."""

    used: float
    promised: float


def read(now: datetime) -> dict[int, Figures]:
    """By tenant id; tenants without any figure are absent. Four statements."""
    found: defaultdict[int, Figures] = defaultdict(Figures)
    _read_usage(found, int(now.timestamp()))
    _read_nodes(found, now)
    rows = Job.unscoped.filter(
        state=Job.State.FAILED,
        finished_at__gte=now - timedelta(seconds=JOBS_S),
        tenant_id__isnull=False,
    )
    for tenant_id, kind in rows.order_by().values_list("tenant_id", "kind")[:10_000]:
        jobs = found[tenant_id].failed_jobs
        jobs[kind] = jobs.get(kind, 0) + 1
    return dict(found)


def read_memory() -> Memory | None:
    """None: no limit, or no server answers. One statement, and a call of each primary."""
    try:
        used = hot_servers.memory()
    except (ValkeyError, OSError) as error:
        log_events.HOT_ROOM_UNKNOWN.log(error=error)
        return None
    if not used.max_bytes:
        return None
    promised = promised_bytes() * hot.MEMORY_PER_BYTE
    return Memory(used.used_bytes / used.max_bytes, promised / used.max_bytes)


def _read_usage(found: defaultdict[int, Figures], now_s: int) -> None:
    fine_from = (now_s - RECENT_S) // 60 * 60
    columns = ("tenant_id", "bucket_ts", "misses", *_COUNTS)
    fine: defaultdict[int, list[tuple[int, dict[str, int], dict[str, int]]]] = defaultdict(list)
    loads: defaultdict[int, dict[str, int]] = defaultdict(dict)
    rows = UsageRollup.unscoped.filter(resolution_s=10, bucket_ts__gte=fine_from)
    named = rows.order_by("bucket_ts").values_list(*columns, "load_ms", "dirty_oldest_s")
    for tenant_id, ts, misses, *counts, load_ms, dirty_s in named.iterator(chunk_size=2000):
        of = found[tenant_id]
        summed = dict(zip(_COUNTS, map(bounded, counts), strict=True))
        missed = known(misses, MissReason)
        fine[tenant_id].append((ts, summed, missed))
        if ts >= now_s - RECENT_S:
            of.recent.add(summed, missed)
            loads[tenant_id] = add(loads[tenant_id], known(load_ms, LOAD_NAMES))
        if ts >= now_s - 60 and dirty_s is not None:
            of.dirty_oldest_s = dirty_s
    base: defaultdict[int, Counted] = defaultdict(Counted)
    rows = UsageRollup.unscoped.filter(
        resolution_s=60,
        bucket_ts__gte=now_s - BASE_S,
        bucket_ts__lt=fine_from,
        requested_blocks__gt=0,
    )
    for tenant_id, _, misses, *counts in rows.order_by().values_list(*columns).iterator(2000):
        summed = dict(zip(_COUNTS, map(bounded, counts), strict=True))
        base[tenant_id].add(summed, known(misses, MissReason))
    for tenant_id, buckets in fine.items():
        _set_windows(found[tenant_id], buckets, base[tenant_id], now_s)
    for tenant_id, histogram in loads.items():
        p99 = percentile(histogram, 0.99) if sum(histogram.values()) >= LEAST_LOADS else None
        found[tenant_id].load_p99_ms = None if p99 is None else p99.milliseconds


def _set_windows(
    of: Figures,
    buckets: list[tuple[int, dict[str, int], dict[str, int]]],
    base: Counted,
    now_s: int,
) -> None:
    for length_s in WINDOWS_S:
        start_ts = (now_s - length_s) // 10 * 10
        window = Counted(seconds=now_s - start_ts)
        for ts, counts, misses in buckets:
            if ts >= start_ts:
                window.add(counts, misses)
        if window.requested_blocks >= LEAST_BLOCKS:
            break
    else:
        return
    of.now = window
    latest = Counted()
    for _, counts, misses in reversed(buckets):
        latest.add(counts, misses)
        if latest.requested_blocks >= LATEST_BLOCKS:
            break
    of.latest_ratio = latest.hit_ratio
    for ts, counts, misses in buckets:
        if ts < start_ts:
            base.add(counts, misses)
    if base.requested_blocks < LEAST_BASE_BLOCKS:
        return
    of.base = base
    middle = ((window.hit_ratio or 0) + (base.hit_ratio or 0)) / 2
    for ts, counts, _ in reversed(buckets):
        step = Counted(counts=counts)
        if step.requested_blocks and (step.hit_ratio or 0) > middle:
            break
        of.began_ts = ts if step.requested_blocks else of.began_ts


def _read_nodes(found: defaultdict[int, Figures], now: datetime) -> None:
    live_since = now - timedelta(seconds=live_after_s())
    rows = NodeSession.unscoped.filter(
        ended_at=None, last_heartbeat_at__gte=now - timedelta(days=1), tenant__is_active=True
    )
    columns = ("tenant_id", "node", "breaker", "last_heartbeat_at")
    names: defaultdict[int, dict[str, str]] = defaultdict(dict)
    for tenant_id, node, breaker, at in rows.order_by("last_heartbeat_at").values_list(*columns):
        # The newest session of a name decides: an engine that crashed and came back is not silent.
        is_live, is_well = at > live_since, breaker == NodeSession.Breaker.CLOSED
        names[tenant_id][node] = "" if is_live and is_well else "breaker" if is_live else "silent"
    for tenant_id, nodes in names.items():
        found[tenant_id].open_breakers = sorted(n for n, s in nodes.items() if s == "breaker")
        found[tenant_id].silent = sorted(n for n, s in nodes.items() if s == "silent")
