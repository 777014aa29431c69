"""The tab Use: hit rate over the window, why blocks were missed, how full the tiers are."""

from dataclasses import dataclass
from datetime import UTC, datetime

from django.db.models import Min, Sum

from catalog.models import Context, NodeSession, Pin, Space
from catalog.nodes import host_of, live_since
from catalog.windows import Window
from contexts.quotas import own_quota
from dashboard.pages.overview.misses import MissShare, miss_shares
from dashboard.pages.overview.series import Series, series
from dashboard.storage import StorageUse, storage_use
from dashboard.usage import Totals, counts_by_bucket, totals
from tenants.models import Tenant
from tenants.principal import rows_of

WIDTH, HEIGHT = 600, 150  # of the drawing, in its own units
MOST_NAMED = 5


@dataclass(frozen=True)
class Curve:
    """Hit rate by step: pieces of a line, as SVG has them, and the table twin, newest first."""

    pieces: list[str]
    rows: list[tuple[datetime, float]]

    @property
    def words(self) -> str:
        """For screen readers."""
        if not self.rows:
            return "No node reported in this window."
        first, last = self.rows[-1][1], self.rows[0][1]
        return f"Hit rate, from {first * 100:.0f} percent to {last * 100:.0f} percent."


@dataclass(frozen=True)
class NodeLine:
    session: NodeSession
    state: str


@dataclass(frozen=True)
class Use:
    now: Totals
    before: Totals
    curve: Curve
    misses: list[tuple[MissShare, float | None]]  # with the change against the window before
    storage: StorageUse
    pinned_bytes: int | None
    pin_budget_bytes: int | None
    pins: int
    next_pin_end: datetime | None
    nodes: int
    troubled: list[NodeLine]
    spaces: list[tuple[Space, int]]  # with the bytes of its contexts

    @property
    def change(self) -> float | None:
        """Of the hit rate, against the window before."""
        if self.now.hit_ratio is None or self.before.hit_ratio is None:
            return None
        return self.now.hit_ratio - self.before.hit_ratio

    @property
    def pinned_ratio(self) -> float | None:
        if self.pinned_bytes is None or not self.pin_budget_bytes:
            return None
        return self.pinned_bytes / self.pin_budget_bytes


def use_of(tenant: Tenant, window: Window) -> Use:
    one = (tenant,)
    counts = counts_by_bucket(one, window)
    now = totals(one, window, counts)
    before = totals(one, window.previous(), counts, with_loads=False)
    quota = own_quota(tenant)
    pins = rows_of(Pin, one).filter(until__gt=datetime.now(UTC))
    ends = pins.aggregate(next=Min("until"))
    live = rows_of(NodeSession, one).filter(ended_at=None, last_heartbeat_at__gt=live_since())
    troubled = live.exclude(breaker=NodeSession.Breaker.CLOSED).order_by("node")
    return Use(
        now=now,
        before=before,
        curve=_curve(series(one, window, counts), window),
        misses=_misses(now, before),
        storage=storage_use(one, window.now_s)[tenant.pk],
        pinned_bytes=quota["used"]["pinned_bytes"],
        pin_budget_bytes=quota["pin_budget_bytes"],
        pins=pins.count(),
        next_pin_end=ends["next"],
        nodes=len({host_of(node) for node in live.values_list("node", flat=True)}),
        troubled=[NodeLine(each, each.get_breaker_display()) for each in troubled[:MOST_NAMED]],
        spaces=_spaces(tenant),
    )


def _misses(now: Totals, before: Totals) -> list[tuple[MissShare, float | None]]:
    then = {each.reason: each.share for each in miss_shares(before.misses)}
    return [
        (each, each.share - then.get(each.reason, 0.0) if then else None)
        for each in miss_shares(now.misses)
    ]


def _spaces(tenant: Tenant) -> list[tuple[Space, int]]:
    """The largest by the bytes of their contexts."""
    sums = dict(
        rows_of(Context, (tenant,))
        .order_by()
        .filter(expired_at=None)
        .values_list("space_id")
        .annotate(size=Sum("size_bytes", default=0))
        .order_by("-size")[:MOST_NAMED]
    )
    newest = rows_of(Space, (tenant,))
    found = list(newest.filter(pk__in=sums)) or list(newest[:MOST_NAMED])
    return sorted(((each, sums.get(each.pk, 0)) for each in found), key=lambda pair: -pair[1])


def _curve(found: Series, window: Window) -> Curve:
    pieces: list[str] = []
    points: list[str] = []
    rows = []
    span = max(window.end_ts - window.start_ts, 1)
    for ts, hot, cold, rest in zip(
        found.ts, found.hot_tokens, found.cold_tokens, found.recomputed_tokens, strict=True
    ):
        asked = None if hot is None or cold is None or rest is None else hot + cold + rest
        if not asked or hot is None or cold is None:
            points = _ended(pieces, points)
            continue
        ratio = (hot + cold) / asked
        x = (ts - window.start_ts) / span * WIDTH
        points.append(f"{x:.1f},{(1 - ratio) * HEIGHT:.1f}")
        rows.append((datetime.fromtimestamp(ts, UTC), ratio))
    _ended(pieces, points)
    return Curve(pieces, rows[::-1])


def _ended(pieces: list[str], points: list[str]) -> list[str]:
    """A line ends where nobody reported; a point alone becomes a short line."""
    if len(points) == 1:
        x, y = points[0].split(",")
        points = [points[0], f"{float(x) + 2:.1f},{y}"]
    if points:
        pieces.append(" ".join(points))
    return []
