"""What rules compare, of all tenants at once: a few statements, whatever the number of tenants."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from valkey.exceptions import ValkeyError

from base import log_events
from catalog.histograms import percentile
from catalog.models import Job, NodeSession, UsageRollup
from catalog.nodes import live_after_s
from catalog.stores import away_rows
from catalog.usage import add, bounded, known
from incidents.fall import BUCKET_S, COUNTS, Bucket, Counted
from neve.errors import MissReason
from neve.node.stats import LOAD_NAMES
from storage import hot, hot_servers
from tenants.room import promised_bytes

RECENT_S = 300
BASE_S = 1800  # what "now" is held against
LEAST_LOADS = 50
LEAST_PUTS = 50
JOBS_S = 900


@dataclass
class Figures:
    """Of one tenant. `buckets`: of the last RECENT_S, oldest first; `older`: from BASE_S ago up to
    them; `recent`: their sum. Nodes by name."""

    now_s: int = 0
    buckets: list[Bucket] = field(default_factory=list)
    older: Counted = field(default_factory=Counted)
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


@dataclass(frozen=True)
class StoreAway:
    """A store that does not answer. `since_ts`: since when; `error`: its last one."""

    name: str
    since_ts: float
    error: str


class Rows:
    """What was read, by tenant id. A tenant's rows are looked at by `of` alone: ones that cannot be
    read stop no other tenant's figures."""

    def __init__(self, now: datetime) -> None:
        self.now = now
        self.fine: defaultdict[int, list[tuple[Any, ...]]] = defaultdict(list)
        self.coarse: defaultdict[int, list[tuple[Any, ...]]] = defaultdict(list)
        self.nodes: defaultdict[int, list[tuple[str, str, datetime]]] = defaultdict(list)
        self.jobs: defaultdict[int, list[str]] = defaultdict(list)

    def of(self, tenant_id: int) -> Figures:
        now_s = int(self.now.timestamp())
        found = Figures(now_s)
        _count_fine(found, self.fine[tenant_id])
        for misses, *counts in self.coarse[tenant_id]:
            found.older.add(_counts(counts), known(misses, MissReason))
        _count_nodes(found, self.nodes[tenant_id], self.now)
        found.failed_jobs = dict(Counter(self.jobs[tenant_id]))
        return found


def read(now: datetime) -> Rows:
    """Of all tenants. Four statements."""
    rows, now_s = Rows(now), int(now.timestamp())
    fine_from = (now_s - RECENT_S) // 60 * 60
    fine = UsageRollup.unscoped.filter(resolution_s=BUCKET_S, bucket_ts__gte=fine_from)
    columns = ("bucket_ts", "load_ms", "dirty_oldest_s", "misses", *COUNTS)
    for id_, *row in fine.order_by("bucket_ts").values_list("tenant_id", *columns).iterator(2000):
        rows.fine[id_].append(tuple(row))
    coarse = UsageRollup.unscoped.filter(
        resolution_s=60,
        bucket_ts__gte=now_s - BASE_S,
        bucket_ts__lt=fine_from,
        requested_blocks__gt=0,
    )
    for id_, *row in coarse.order_by().values_list("tenant_id", "misses", *COUNTS).iterator(2000):
        rows.coarse[id_].append(tuple(row))
    sessions = NodeSession.unscoped.filter(
        ended_at=None, last_heartbeat_at__gte=now - timedelta(days=1), tenant__is_active=True
    ).order_by("last_heartbeat_at")
    for id_, *row in sessions.values_list("tenant_id", "node", "breaker", "last_heartbeat_at"):
        rows.nodes[id_].append(tuple(row))
    jobs = Job.unscoped.filter(
        state=Job.State.FAILED,
        finished_at__gte=now - timedelta(seconds=JOBS_S),
        tenant_id__isnull=False,
    )
    for id_, kind in jobs.order_by().values_list("tenant_id", "kind")[:10_000]:
        rows.jobs[id_].append(kind)
    return rows


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


def read_stores() -> list[StoreAway]:
    """Those that are away, the longest first. One statement."""
    rows = away_rows().values_list("name", "failing_since", "error")
    return [StoreAway(name, since.timestamp(), error) for name, since, error in rows if since]


def _counts(counts: Iterable[int]) -> dict[str, int]:
    return dict(zip(COUNTS, map(bounded, counts), strict=True))


def _count_fine(found: Figures, rows: Iterable[tuple[Any, ...]]) -> None:
    loads: dict[str, int] = {}
    for ts, load_ms, dirty_s, misses, *counts in rows:
        bucket = Bucket(ts, _counts(counts), known(misses, MissReason))
        found.buckets.append(bucket)
        if ts >= found.now_s - RECENT_S:
            found.recent.add(bucket.counts, bucket.misses)
            loads = add(loads, known(load_ms, LOAD_NAMES))
        if ts >= found.now_s - 60 and dirty_s is not None:
            found.dirty_oldest_s = dirty_s
    if sum(loads.values()) >= LEAST_LOADS and (p99 := percentile(loads, 0.99)):
        found.load_p99_ms = p99.milliseconds


def _count_nodes(
    found: Figures, sessions: Iterable[tuple[str, str, datetime]], now: datetime
) -> None:
    live_since = now - timedelta(seconds=live_after_s())
    names: dict[str, str] = {}
    for node, breaker, at in sessions:
        # The newest session of a name decides: an engine that crashed and came back is not silent.
        is_live, is_well = at > live_since, breaker == NodeSession.Breaker.CLOSED
        names[node] = "" if is_live and is_well else "breaker" if is_live else "silent"
    found.open_breakers = sorted(name for name, state in names.items() if state == "breaker")
    found.silent = sorted(name for name, state in names.items() if state == "silent")
