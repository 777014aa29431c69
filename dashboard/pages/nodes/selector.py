"""Node sessions, the worst first."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from django.db.models import Q

from catalog import slices
from catalog.models import NodeSession
from catalog.nodes import engine_of, host_of, together, totals_of
from catalog.sessions import REFUSAL_S, REFUSED
from dashboard.lists import Choice, Column, List
from dashboard.scope import Scope
from dashboard.usage import Tenants
from neve.node.stats import COUNTERS
from tenants.models import AuditEvent
from tenants.principal import rows_of

MOST_SKEW_S: Final = 5.0
MOST_REFUSED: Final = 20


@dataclass(frozen=True)
class NodeRow:
    """A node as the tables show it. `rank` puts the worst first.

    `session` stands for those whose counters add up (`catalog.nodes.together`); `sums`: theirs.
    `spark`: path of an SVG, the hit rate over the scope's window.
    """

    session: NodeSession
    state: str  # "live", "silent", "ended"
    sums: Mapping[str, int] = field(hash=False)
    spark: str = ""

    @property
    def hit_ratio(self) -> float | None:
        hits = sum(self.totals[f"hit_{tier}_tokens"] for tier in ("hot", "cold", "local"))
        return hits / self.prompt_tokens if self.prompt_tokens else None

    @property
    def rank(self) -> tuple[int, str]:
        if self.state == "silent":
            return 0, self.session.node
        is_well = self.session.breaker == NodeSession.Breaker.CLOSED and not self.is_alone
        if self.state == "live" and not is_well:
            return 1, self.session.node
        return (2 if self.state == "live" else 3), self.session.node

    @property
    def state_words(self) -> str:
        return {"live": "● live", "silent": "▲ silent", "ended": "○ ended"}[self.state]

    @property
    def totals(self) -> dict[str, int]:
        return {**dict.fromkeys(COUNTERS, 0), **self.sums}

    @property
    def prompt_tokens(self) -> int:
        return self.totals["requested_tokens"] + self.totals["tail_tokens"]

    @property
    def dropped(self) -> int:
        return self.totals["dropped"]

    @property
    def states(self) -> int:
        """Stored states of linear attention."""
        return self.totals["put_states"]

    @property
    def is_alone(self) -> bool:
        """Its engine computes other KV than is stored, so it neither loads nor saves any more."""
        return self.totals["differing_blocks"] > 0

    @property
    def read_bytes(self) -> int:
        return sum(self.totals[f"{tier}_read_bytes"] for tier in ("hot", "cold", "local"))

    @property
    def written_bytes(self) -> int:
        return self.totals["hot_write_bytes"]

    @property
    def breaker_words(self) -> str:
        return self.session.get_breaker_display().replace("_", " ").lower()

    @property
    def why(self) -> str:
        """What is wrong with it; "" if nothing is."""
        if self.state == "silent":
            return "no heartbeat: it may still serve, without Neve"
        if self.is_alone:
            return "alone: stored KV is not what its engine computes"
        if self.session.breaker != NodeSession.Breaker.CLOSED:
            return f"breaker {self.breaker_words}: it serves without Neve"
        if self.state == "live" and abs(self.skew_s or 0.0) > MOST_SKEW_S:
            return f"its clock is off by {self.skew_s:+.1f} s"
        return ""

    @property
    def about(self) -> dict[str, Any]:
        return self.session.about if isinstance(self.session.about, dict) else {}

    @property
    def skew_s(self) -> float | None:
        """How far its clock is ahead of the platform's, the heartbeat's way included."""
        return self.about.get("skew_s")

    @property
    def version(self) -> str:
        """Of its engine and of Neve."""
        engine = self.session.engine if isinstance(self.session.engine, dict) else {}
        words = [str(engine.get("name", "")), str(engine.get("version", ""))]
        if neve := self.about.get("version"):
            words.append(f"· neve {neve}")
        return " ".join(word for word in words if word) or "—"

    @property
    def order(self) -> int:
        """The worst first: silent, in trouble, live, ended."""
        return self.rank[0] if not (self.why and self.rank[0] == 2) else 1

    @property
    def cell_class(self) -> str:
        return "hot" if self.order < 2 else ""


def sessions(tenants: Tenants, *, now: datetime) -> list[NodeSession]:
    """Open sessions heard of in the last day, and those that ended in the last hour."""
    return list(
        rows_of(NodeSession, tenants)
        .prefetch_related("tenant", "space")  # few, which hundreds of sessions share
        .defer("marks", "breaker_log", "totals_by_name", "speeds")
        .filter(
            Q(ended_at=None, last_heartbeat_at__gte=now - timedelta(days=1))
            | Q(ended_at__gte=now - timedelta(hours=1))
        )
    )


def refused_nodes(
    tenants: Tenants, rows: Sequence["NodeRow"], *, now: datetime
) -> list[dict[str, str]]:
    """What the audit trail says of nodes that were refused lately and have no live session since.

    One query. `rows`: of the nodes.
    """
    lately = now - timedelta(seconds=2 * REFUSAL_S)
    events = rows_of(AuditEvent, tenants).filter(action=REFUSED, at__gte=lately)
    live = [row.session for row in rows if row.state == "live"]
    joined: dict[tuple[int | None, str], datetime] = {
        (one.tenant_id, one.node): one.opened_at for one in live
    }
    found: dict[tuple[int | None, str], dict[str, str]] = {}
    for event in events.order_by("-at")[:MOST_REFUSED]:
        told = event.after if isinstance(event.after, dict) else {}
        key = event.tenant_id, str(told.get("node", ""))
        since = joined.get(key)
        if since is None or since < event.at:
            found.setdefault(key, {name: str(value) for name, value in told.items()})
    return list(found.values())


def node_rows(
    sessions: Sequence[NodeSession],
    *,
    live_since: datetime,
    nodes: Mapping[UUID, Sequence[NodeSession]] | None = None,
) -> list[NodeRow]:
    """The worst first. A session that said nothing since `live_since` is silent.

    `nodes`: as `catalog.nodes.together` answers; by default of `sessions` alone.
    """
    nodes = together(sessions) if nodes is None else nodes
    rows = [
        NodeRow(session, _state(session, live_since), totals_of(nodes[session.pk]))
        for session in sessions
    ]
    return sorted(rows, key=lambda row: row.rank)


def one_a_node(rows: Sequence[NodeRow]) -> list[NodeRow]:
    """Without parts that are in the same state as their node: their counts stand in its row."""
    nodes = {_place(row) for row in rows if row.session.node == engine_of(row.session.node)}
    return [
        row
        for row in rows
        if row.session.node == engine_of(row.session.node) or _place(row) not in nodes
    ]


def _place(row: NodeRow) -> tuple[object, ...]:
    one = row.session
    return one.tenant_id, one.space_id, engine_of(one.node), row.state, one.breaker


def _state(session: NodeSession, live_since: datetime) -> str:
    if session.ended_at is not None:
        return "ended"
    return "silent" if session.last_heartbeat_at <= live_since else "live"


def _explore(measure: str, split: str) -> Any:
    """The link of a figure: its measure of this node in the Explorer, over the scope's window."""

    def address(row: NodeRow, scope: Scope) -> str:
        one = {"tenant": row.session.tenant.slug, "node": host_of(row.session.node), "space": None}
        return scope.link("explorer", **one, measure=measure, split=split)

    return address


SINCE: Final = "since this session connected"


class NodeList(List):
    """Sessions, the worst first. Choices of space and version are those of the rows."""

    name = "nodes"
    columns = (
        Column(
            "node",
            "Node",
            path="session.node",
            link=lambda row, scope: scope.link("node", row.session.pk),
            note=lambda row: row.why,
        ),
        Column("state", "State", kind="state", words=lambda row: row.state_words),
        Column(
            "tenant",
            "Tenant",
            path="session.tenant.slug",
            link=lambda row, scope: scope.link("tenant", row.session.tenant.slug, tenant=None),
        ),
        Column(
            "space",
            "Space",
            path="session.space.name",
            link=lambda row, scope: scope.link("space", row.session.space_id),
            note=lambda row: row.session.space.lossy_words,
        ),
        Column("version", "Version"),
        Column("breaker", "Breaker", path="breaker_words"),
        Column(
            "asked",
            "Asked for",
            kind="count",
            path="prompt_tokens",
            unit="tok",
            hint=SINCE,
            link=_explore("hit_tokens", "space"),
        ),
        Column(
            *("hit_ratio", "Hit rate"),
            kind="percent",
            hint=SINCE,
            link=_explore("hit_rate", "space"),
        ),
        Column(
            "spark",
            "Hit rate in the range",
            kind="html",
            template="pages/nodes/spark.html",
            order="",
            in_csv=False,
        ),
        Column(
            *("read", "Read"),
            kind="size",
            path="read_bytes",
            hint=SINCE,
            link=_explore("read_bytes", "tier"),
        ),
        Column(
            "written",
            "Written",
            kind="size",
            path="written_bytes",
            hint=SINCE,
            link=_explore("write_bytes", "space"),
            note=lambda row: f"{row.states} states stored" if row.states else "",
        ),
        Column("dropped", "Dropped", kind="count", hint=SINCE, link=_explore("dropped", "space")),
        Column("skew", "Clock", kind="html", path="skew_s", template="pages/nodes/skew.html"),
        Column("opened", "Connected", kind="ago", path="session.opened_at"),
        Column("heard", "Heard", kind="ago", path="session.last_heartbeat_at"),
    )
    filters = (
        Choice("state", "State", (("live", "live"), ("silent", "silent"), ("ended", "ended"))),
        Choice(
            "in_space",
            "Space",
            lambda listing: _values(listing, _space_of),
            path="session.space.name",
        ),
        Choice("version", "Version", lambda listing: _values(listing, _version_of)),
    )
    search = ("session.node", "session.space.name", "session.tenant.slug", "version", "why")
    default_sort = "order"
    nothing = "pages/nodes/nothing.html"
    row_class = "cell_class"

    def prepared(self, rows: Sequence[Any]) -> Sequence[Any]:
        return with_sparks(self.scope, rows) if not self.wants_csv else rows


def _space_of(row: NodeRow) -> str:
    return row.session.space.name


def _version_of(row: NodeRow) -> str:
    return row.version


def _values(listing: List, of: Any) -> tuple[tuple[str, str], ...]:
    found = sorted({of(row) for row in listing._all})
    return tuple((each, each) for each in found[:100])


def with_sparks(scope: Scope, rows: Sequence[NodeRow]) -> list[NodeRow]:
    """With the hit rate of each node over the scope's window. A few queries, whatever the rows."""
    if not rows:
        return []
    where = slices.Where.of(scope.tenants, space=scope.space)
    measure = slices.measure_named("hit_rate")
    now_s = float(scope.window.now_s)
    span, _ = slices.spans_of(
        scope.window.start_ts, min(scope.window.end_ts, now_s), "before", now_s=now_s
    )
    keys = {row: slices.Key(row.session.tenant_id, 0, host_of(row.session.node)) for row in rows}
    lines = slices.series(where, measure, "node", span, set(keys.values()), now_s=now_s)
    return [replace(row, spark=_path(lines.get(key, []))) for row, key in keys.items()]


def _path(values: Sequence[float | None]) -> str:
    """In a box of 96 × 22: a rate of 1 is at the top. Gaps stay gaps."""
    step = 96 / max(1, len(values) - 1)
    words, is_open = [], False
    for n, value in enumerate(values):
        if value is None:
            is_open = False
            continue
        y = 21 - 20 * min(1.0, max(0.0, value))
        words.append(f"{'L' if is_open else 'M'}{n * step:.1f} {y:.1f}")
        is_open = True
    return " ".join(words)
