"""One node's session: what is wrong with it, how fast it reads, why it misses."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from django.utils import timezone

from catalog import told, usage
from catalog.models import NodeSession
from catalog.nodes import live_since, totals_of, with_others
from catalog.recent import Lately
from dashboard.pages.nodes.selector import NodeRow, node_rows
from dashboard.pages.why.selector import label_of
from neve.index.tier import Tier
from neve.node.stats import SPEEDS
from tenants.principal import rows_of

MOVED_S: Final = 300.0
MOST_OTHERS: Final = 20


@dataclass(frozen=True)
class Share:
    """Blocks by reason; `ratio`: of the sum."""

    reason: str
    label: str
    blocks: int
    ratio: float


@dataclass(frozen=True)
class TierSpeed:
    """As the node measured its loads, waits included; `moved`: read in the last minutes."""

    tier: str
    bytes_per_s: float | None
    round_trip_s: float | None
    moved_bytes_per_s: float | None
    read_bytes: int


@dataclass(frozen=True)
class Change:
    at: datetime
    words: str
    is_bad: bool


@dataclass(frozen=True)
class NodePage:
    """`versions`: of other live nodes of the tenant, with how many run them."""

    row: NodeRow
    tiers: list[TierSpeed]
    misses: list[Share]
    drops: list[Share]
    breaker: list[Change]
    versions: list[tuple[str, int]]

    @property
    def drifts(self) -> bool:
        return any(version != self.row.version for version, _ in self.versions)

    @property
    def error_at(self) -> datetime | None:
        try:
            return datetime.fromisoformat(str(self.row.about.get("error_at")))
        except ValueError:
            return None


def node_page(session: NodeSession) -> NodePage:
    """`session` with its tenant and space; counts are those of its node. Three queries."""
    nodes = with_others([session], rows_of(NodeSession, (session.tenant,)))
    (row,) = node_rows([session], live_since=live_since(), nodes=nodes)
    named: dict[str, dict[str, int]] = {}
    for part in nodes[session.pk]:
        named = usage.add_by_name(named, usage.known_by_name(part.totals_by_name))
    return NodePage(
        row=row,
        tiers=_tiers(nodes[session.pk]),
        misses=_shares(named.get("misses", {})),
        drops=_shares(named.get("drops", {})),
        breaker=_changes(session),
        versions=_versions(session),
    )


def _tiers(parts: Sequence[NodeSession]) -> list[TierSpeed]:
    speeds: dict[str, float] = {}
    moved: dict[str, float] = {}
    for part in parts:
        stored = part.speeds if isinstance(part.speeds, dict) else {}
        for name in SPEEDS:
            if isinstance(stored.get(name), int | float):
                speeds.setdefault(name, stored[name])
        lately = Lately(
            opened_at=part.opened_at,
            last_at=part.last_heartbeat_at,
            totals=part.totals,
            stored=part.marks,
        )
        counts, took_s = lately.since(timezone.now().timestamp() - MOVED_S)
        for tier in Tier if took_s else ():
            rate = counts[f"{tier}_read_bytes"] / took_s
            moved[tier.value] = moved.get(tier.value, 0.0) + rate
    totals = totals_of(parts)
    return [
        TierSpeed(
            tier.value,
            speeds.get(f"{tier}_bytes_per_s"),
            speeds.get(f"{tier}_round_trip_s"),
            moved.get(tier.value),
            totals.get(f"{tier}_read_bytes", 0),
        )
        for tier in Tier
    ]


def _shares(counts: Mapping[str, int]) -> list[Share]:
    total = sum(counts.values())
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [Share(name, label_of(name), n, n / total) for name, n in ordered if n]


def _changes(session: NodeSession) -> list[Change]:
    """The newest first."""
    found = []
    for at_s, state in reversed(told.changes(session.breaker_log)):
        try:
            at = datetime.fromtimestamp(at_s, UTC)
        except (OverflowError, OSError, ValueError):
            continue
        words = state.replace("_", " ")
        found.append(Change(at, words, state != NodeSession.Breaker.CLOSED))
    return found


def _versions(session: NodeSession) -> list[tuple[str, int]]:
    rows = rows_of(NodeSession, (session.tenant,)).filter(
        ended_at=None, last_heartbeat_at__gt=live_since()
    )
    live = rows.exclude(pk=session.pk).only("engine", "about", "node", "tenant_id", "totals")
    counts: dict[str, int] = {}
    for each in live[:2000]:
        version = NodeRow(each, "live", {}).version
        counts[version] = counts.get(version, 0) + 1
    return sorted(counts.items(), key=lambda item: -item[1])[:MOST_OTHERS]
