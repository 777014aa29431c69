"""Node sessions, the worst first."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db.models import Q

from catalog.models import NodeSession
from catalog.usage import known
from dashboard.usage import Tenants
from neve.node.stats import COUNTERS
from tenants.principal import rows_of


@dataclass(frozen=True)
class NodeRow:
    """A node session as the tables show it. `rank` puts the worst first."""

    session: NodeSession
    state: str  # "live", "silent", "ended"
    hit_ratio: float | None

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
        return {**dict.fromkeys(COUNTERS, 0), **known(self.session.totals, COUNTERS)}

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
        return self.totals["hot_read_bytes"] + self.totals["cold_read_bytes"]

    @property
    def written_bytes(self) -> int:
        return self.totals["hot_write_bytes"]

    @property
    def breaker_words(self) -> str:
        return self.session.get_breaker_display().replace("_", " ").lower()


def sessions(tenants: Tenants, *, now: datetime) -> list[NodeSession]:
    """Open sessions heard of in the last day, and those that ended in the last hour."""
    return list(
        rows_of(NodeSession, tenants)
        .select_related("tenant", "space")
        .defer("marks")
        .filter(
            Q(ended_at=None, last_heartbeat_at__gte=now - timedelta(days=1))
            | Q(ended_at__gte=now - timedelta(hours=1))
        )
    )


def node_rows(sessions: list[NodeSession], *, live_since: datetime) -> list[NodeRow]:
    """The worst first. A session that said nothing since `live_since` is silent."""
    rows = []
    for session in sessions:
        totals = known(session.totals, COUNTERS)
        requested = totals.get("requested_tokens", 0) + totals.get("tail_tokens", 0)
        hits = totals.get("hit_hot_tokens", 0) + totals.get("hit_cold_tokens", 0)
        if session.ended_at is not None:
            state = "ended"
        elif session.last_heartbeat_at <= live_since:
            state = "silent"
        else:
            state = "live"
        rows.append(NodeRow(session, state, hits / requested if requested else None))
    return sorted(rows, key=lambda row: row.rank)
