"""Everything that the overview shows, for the page and for its live updates."""

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from django.conf import settings
from django.db.models import Min, QuerySet

from catalog.changes import Change
from catalog.measures import MEASURES
from catalog.models import NodeSession, Segment, Store, UsageRollup
from catalog.sessions import live_since
from catalog.slices import Where, spans_of
from catalog.slices import series as slices_series
from catalog.stores import away_rows
from catalog.usage import bounded_sum
from catalog.windows import Range, Window
from dashboard import marks, probes
from dashboard.formats import AXES
from dashboard.incidents import (
    SPARK_STEPS,
    ShownIncident,
    link_of,
    open_incidents,
    shown,
    spark,
)
from dashboard.pages.jobs.selector import failed_jobs
from dashboard.pages.nodes.selector import NodeRow, node_rows, one_a_node, refused_nodes, sessions
from dashboard.pages.overview.health import COLD_FULL, Attention, Health, assess, without
from dashboard.pages.overview.levers import MissRow, miss_rows
from dashboard.pages.overview.misses import MissShare, miss_shares
from dashboard.pages.overview.series import Series, series
from dashboard.scope import Scope
from dashboard.storage import StorageUse, leaves_first, storage_use, summed
from dashboard.usage import Tenants, Totals, counts_by_bucket, totals
from incidents.figures import Memory, read_memory
from planning.prices import in_force, today
from retention.models import RetentionPolicy
from tenants.models import Tenant
from tenants.principal import rows_of

MOST_LINES = 2  # of attention, so that the page fits a screen
MOST_MARKS = 20  # of the list below the charts
TOP = 5  # rows of the short tables
MOST_FOLDED = 20  # lines behind "more": five hundred silent nodes are not read one by one
RATE_NOW_S = 60  # "now" of a rate: long enough to be calm, short enough to be now


@dataclass(frozen=True)
class TenantRow:
    """What one tenant holds."""

    tenant: Tenant
    use: StorageUse

    @property
    def quota_bytes(self) -> int:
        return (self.use.hot_quota_bytes or 0) + (self.use.cold_quota_bytes or 0)

    @property
    def hot_share(self) -> float | None:
        """Held hot, of both quotas."""
        return (self.use.hot_bytes or 0) / self.quota_bytes if self.quota_bytes else None

    @property
    def cold_share(self) -> float | None:
        return (self.use.cold_bytes or 0) / self.quota_bytes if self.quota_bytes else None

    @property
    def of_quota(self) -> float | None:
        """Of the quota that is used up most."""
        return max(filter(None, (self.use.hot_ratio, self.use.cold_ratio)), default=None)

    @property
    def is_full(self) -> bool:
        return (self.use.cold_ratio or 0) >= COLD_FULL


@dataclass(frozen=True)
class Saved:
    """Prefill that loads of the window spared, as engines measured it; 0 where none did."""

    gpu_h: float
    money: float
    currency: str


@dataclass(frozen=True)
class Overview:
    """`hit_change`: of the ratio, against the window before; None without both. `read_rate`: bytes
    a second of the last minute. `changes`: the newest of `changed`, with words and address."""

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
    nodes: list[NodeRow]
    all_nodes: int
    series: Series
    endpoint: str
    attention: list[ShownIncident]
    muted: int
    miss_rows: list[MissRow]
    sparks: dict[str, str]
    links: dict[str, str]
    saved: Saved
    memory: Memory | None
    cold_dead_bytes: int
    cold_waiting_bytes: int
    changed: list[Change]
    changes: list[tuple[Change, str, str]]

    @property
    def case(self) -> ShownIncident | None:
        """What costs most and nobody looks after; else what costs most."""
        free = [one for one in self.attention if one.row.acknowledged_at is None]
        return next(iter(free or self.attention), None)

    @property
    def others(self) -> list[ShownIncident]:
        return [one for one in self.attention if one is not self.case]

    @property
    def lines(self) -> list[ShownIncident | Attention]:
        """What needs somebody besides the case: two lines, or one and the `folded` ones."""
        found: list[ShownIncident | Attention] = [*self.others, *self.health.attention]
        return found if len(found) <= MOST_LINES else found[: MOST_LINES - 1]

    @property
    def folded(self) -> list[ShownIncident | Attention]:
        found: list[ShownIncident | Attention] = [*self.others, *self.health.attention]
        return found[len(self.lines) :]

    @property
    def needs(self) -> int:
        return len(self.attention) + len(self.health.attention)

    def chart(self, since_ts: int = 0) -> dict[str, Any]:
        """The charts' numbers as JSON, from a step on."""
        return {
            "now_s": self.window.now_s,
            "start_s": self.window.start_ts,
            "end_s": min(self.window.now_s, self.window.end_ts),
            "step_s": self.range.step_s,
            "series": asdict(self.series.since(since_ts)),
            "marks": marks.drawn(self.changed),
        }

    def context(self) -> dict[str, Any]:
        """For templates."""
        found = {
            "case": self.case,
            "others": self.others,
            "lines": self.lines,
            "folded": self.folded,
            "most_folded": MOST_FOLDED,
            "needs": self.needs,
        }
        return {**vars(self), **found, "chart": self.chart(), "axes": AXES}


def overview_of(scope: Scope) -> Overview:
    person, tenants, window = scope.person, scope.tenants, scope.window
    now = datetime.fromtimestamp(window.now_s, UTC)
    counts = counts_by_bucket(tenants, window)
    counted = totals(tenants, window, counts)
    before = totals(tenants, window.previous(), counts, with_loads=False)
    policies = list(rows_of(RetentionPolicy, tenants))
    uses = storage_use(tenants, window.now_s, policies=policies)
    storage = summed(list(uses.values()))
    nodes = one_a_node(node_rows(sessions(tenants, now=now), live_since=live_since()))
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
        refused=refused_nodes(tenants, nodes, now=now),
        away=list(away_of(scope)),
    )
    shown_incidents = [shown(row, scope) for row in open_incidents(scope)]
    loud = [one for one in shown_incidents if one.muted_until is None]
    health = without(health, {one.row.kind for one in shown_incidents})
    drawn = series(tenants, window, counts)
    changed = marks.marks_of(scope, window.start_ts, window.end_ts)
    misses = miss_shares(counted.misses, before.misses)
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
        leaves_first=leaves_first(policies),
        misses=misses,
        top_tenants=[TenantRow(one, uses[one.pk]) for one in by_size[:TOP]],
        nodes=nodes[:TOP],
        all_nodes=len(nodes),
        series=drawn,
        endpoint=settings.ENV.url.geturl(),
        attention=loud,
        muted=len(shown_incidents) - len(loud),
        miss_rows=miss_rows(misses, scope, uses, storage, nodes, policies),
        sparks=_sparks(scope, drawn),
        links=_links(scope),
        saved=_saved(counted),
        memory=read_memory() if person.is_operator else None,
        cold_dead_bytes=sum(use.cold_dead_bytes for use in uses.values()),
        cold_waiting_bytes=sum(use.cold_waiting_bytes for use in uses.values()),
        changed=changed,
        changes=[
            (one, marks.words_of(one), marks.url_of(one, scope)) for one in changed[:MOST_MARKS]
        ],
    )


def away_of(scope: Scope) -> QuerySet[Store]:
    """Stores that do not answer; for teams those that hold segments of theirs."""
    rows = away_rows()
    if scope.person.is_operator:
        return rows
    return rows.filter(pk__in=rows_of(Segment, scope.tenants).values("store_id"))


def _saved(counted: Totals) -> Saved:
    prices = in_force(today())
    gpu_h = counted.spared_gpu_us / 3.6e9
    return Saved(gpu_h, gpu_h * float(prices.gpu_hour), prices.currency)


def _added(*lines: list[float | None]) -> list[float | None]:
    """Step by step; None where nobody reported."""
    return [
        None if step[0] is None else sum(value or 0 for value in step)
        for step in zip(*lines, strict=True)
    ]


def _sparks(scope: Scope, drawn: Series) -> dict[str, str]:
    """Paths of the tiles' sparklines, by tile."""
    hits = _added(drawn.hot_tokens, drawn.cold_tokens, drawn.local_tokens)
    asked = _added(hits, drawn.recomputed_tokens)
    read = _added(drawn.hot_read_bytes, drawn.cold_read_bytes, drawn.local_read_bytes)
    ratios = [
        hit / whole if hit is not None and whole else None
        for hit, whole in zip(hits, asked, strict=True)
    ]
    lines = {"hit_rate": ratios, "read_rate": read, "saved": hits}
    found = {name: spark(_thinned(line)) for name, line in lines.items()}
    now_s = scope.window.now_s
    where = Where.of(scope.tenants)
    for tile, measure in (("load_p99", "load_p99"), ("dirty", "dirty_age")):
        span, _ = spans_of(scope.window.start_ts, now_s, "before", now_s=now_s)
        line = slices_series(where, MEASURES[measure], "tenant", span, None, now_s=now_s)
        found[tile] = spark(_thinned(next(iter(line.values()), [])))
    return found


def _thinned(line: list[float | None]) -> list[float | None]:
    """At most SPARK_STEPS means of neighbours."""
    length = -(-len(line) // SPARK_STEPS) or 1
    found: list[float | None] = []
    for start in range(0, len(line), length):
        known = [value for value in line[start : start + length] if value is not None]
        found.append(sum(known) / len(known) if known else None)
    return found


def _links(scope: Scope) -> dict[str, str]:
    """Where each figure leads: into Explorer, one step finer than the scope."""
    finer = "node" if len(scope.tenants) == 1 else "tenant"

    def explore(measure: str, split: str, other: str) -> str:
        return link_of(
            scope, ("explorer", (), {"measure": measure, "split": split}), (other, (), {})
        )

    return {
        "hit_rate": explore("hit_rate", finer, "nodes"),
        "read_rate": explore("read_bytes", "tier", "nodes"),
        "load_p99": explore("load_p99", "node", "nodes"),
        "dirty": explore("dirty_age", finer, "jobs"),
        "tokens": explore("hit_tokens", "tier", "nodes"),
        "bytes": explore("read_bytes", "tier", "tiers"),
        "misses": explore("miss_blocks", "reason", "nodes"),
        "saved": scope.link("savings"),
        "policies": link_of(scope, ("policies", (), {}), ("tenants", (), {})),
    }


def read_rate_now(tenants: Tenants, now_s: float) -> float | None:
    """Bytes a second that came from the cache over the last whole buckets; None without any."""
    end_ts = int(now_s) - int(now_s) % 10
    found = (
        rows_of(UsageRollup, tenants)
        .filter(resolution_s=10, bucket_ts__gte=end_ts - RATE_NOW_S, bucket_ts__lt=end_ts)
        .aggregate(
            read=bounded_sum("hot_read_bytes", "cold_read_bytes", "local_read_bytes"),
            first=Min("bucket_ts"),
        )
    )
    if found["first"] is None:
        return None
    return float(found["read"]) / (end_ts - int(found["first"]))


def has_ever_connected(tenants: Tenants) -> bool:
    return rows_of(NodeSession, tenants).exists()


def _change(ratio: float | None, before: float | None) -> float | None:
    return None if ratio is None or before is None else ratio - before
