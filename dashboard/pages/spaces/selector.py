"""Spaces with their break-even, the newest first."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django.db.models import Count, Q, QuerySet

from catalog.clashes import Compared, compared
from catalog.models import Context, Space
from catalog.nodes import live_since
from contexts.break_even import BreakEven, TierSpeed, break_evens
from dashboard.formats import bytes_quantity
from dashboard.kv_groups import GroupRow, group_rows
from dashboard.lists import Column, List
from dashboard.scope import Scope
from neve.index.tier import Tier
from neve.planner.choice import Decision
from tenants.principal import rows_of

_WORDS = {
    Decision.LOAD_ALL: "loaded",
    Decision.LOAD_PREFIX: "in part",
    Decision.RECOMPUTE: "computed",
}


@dataclass(frozen=True)
class SpaceRow:
    """A space as the table shows it. `groups`: empty if a chunk is one block."""

    space: Space
    even: BreakEven
    groups: list[GroupRow]

    @property
    def identity_words(self) -> str:
        """The layout: KV dtype, chunk, and which rank of how many."""
        identity = self.space.identity
        words = [
            str(identity.get("kv_dtype", "")).partition(":")[0].replace("auto", "KV as the model"),
            f"chunks of {self.space.chunk_tokens} tokens",
        ]
        for kind in ("tp", "pp"):
            size = identity.get(f"{kind}_size", 1)
            if size != 1:
                words.append(f"{kind.upper()} rank {identity.get(f'{kind}_rank', 0)} of {size}")
        if "codec" in identity:
            words.insert(1, self.space.lossy_words)
        return ", ".join(words)

    @property
    def fixed_words(self) -> str:
        fixed = self.even.size.fixed if self.even.size is not None else 0
        return f"+ {bytes_quantity(fixed)} a request" if fixed else ""

    @property
    def basis_words(self) -> str:
        nodes = self.even.nodes
        return f"Median of {nodes} node{'' if nodes == 1 else 's'}." if nodes else ""

    @property
    def live_nodes(self) -> int:
        return int(getattr(self.space, "live_nodes", 0))

    @property
    def hot(self) -> TierSpeed:
        return self.even.tiers[Tier.HOT]

    @property
    def cold(self) -> TierSpeed:
        return self.even.tiers[Tier.COLD]

    @property
    def hour(self) -> list[tuple[str, int]]:
        return _in_words(self.even.decisions_hour)

    @property
    def day(self) -> list[tuple[str, int]]:
        return _in_words(self.even.decisions_day)


def space_rows(spaces: Sequence[Space]) -> list[SpaceRow]:
    """`spaces` have their tenants loaded. At most three queries."""
    evens = break_evens(spaces)
    return [SpaceRow(each, evens[each.pk], group_rows(each)) for each in spaces]


def _in_words(decisions: Mapping[str, int]) -> list[tuple[str, int]]:
    """Decisions that were made; empty without any."""
    return [(word, n) for decision, word in _WORDS.items() if (n := decisions.get(decision, 0))]


def _read(row: Any, scope: Scope) -> str:
    return scope.link("explorer", space=row.space.pk, measure="read_bytes", split="tier")


class SpaceList(List):
    """Spaces, the newest first."""

    name = "spaces"
    columns = (
        Column(
            "name",
            "Space",
            path="space.name",
            order="name",
            link=lambda row, scope: scope.link("space", row.space.pk),
        ),
        Column(
            "tenant",
            "Tenant",
            path="space.tenant.slug",
            order="tenant__slug",
            link=lambda row, scope: scope.link("tenant", row.space.tenant.slug, tenant=None),
        ),
        Column("model", "Model", path="space.identity.model", order="identity__model"),
        Column(
            "layout",
            "Layout",
            kind="html",
            template="pages/spaces/layout.html",
            path="identity_words",
            order="",
        ),
        Column(
            "live",
            "Live nodes",
            kind="count",
            path="live_nodes",
            order="live_nodes",
            link=lambda row, scope: scope.link("nodes", space=row.space.pk),
        ),
        Column(
            "token",
            "A token",
            kind="size",
            path="even.size.per_token",
            order="",
            note=lambda row: row.fixed_words,
        ),
        Column(
            "break_even", "Break-even", kind="rate", path="even.break_even_bytes_per_s", order=""
        ),
        Column("hot", "Hot", kind="rate", path="hot.bytes_per_s", order="", link=_read),
        Column("cold", "Cold", kind="rate", path="cold.bytes_per_s", order="", link=_read),
        Column(
            "verdict", "Verdict", path="even.verdict", order="", note=lambda row: row.basis_words
        ),
        Column(
            "hour",
            "Decided, 1 h",
            kind="html",
            template="pages/spaces/hour.html",
            order="",
            in_csv=False,
        ),
        Column(
            "day",
            "1 day",
            kind="html",
            template="pages/spaces/day.html",
            order="",
            in_csv=False,
            shown=False,
        ),
        Column("fingerprint", "Fingerprint", path="space.fingerprint", order="", shown=False),
        Column("made", "Made", kind="ago", path="space.created_at", order="created_at"),
    )
    search = ("name", "tenant.slug", "identity.model", "fingerprint")
    default_sort = "-made"
    nothing = "pages/spaces/nothing.html"

    def prepared(self, rows: Sequence[Any]) -> Sequence[Any]:
        return space_rows(list(rows))


def spaces_of(scope: Scope) -> QuerySet[Any]:
    """With `live_nodes`: sessions that sent a heartbeat lately."""
    live = Q(sessions__ended_at=None, sessions__last_heartbeat_at__gt=live_since())
    rows = rows_of(Space, scope.tenants).select_related("tenant")
    return rows.annotate(live_nodes=Count("sessions", filter=live))


@dataclass(frozen=True)
class Split:
    """A model that live nodes of a tenant run under several fingerprints at once."""

    tenant: str
    model: str
    spaces: tuple[Space, ...]


def splits(scope: Scope) -> list[Split]:
    """One query. Ranks of one engine have a space each: only equal ranks are compared."""
    groups: dict[tuple[Any, ...], list[Space]] = defaultdict(list)
    for space in spaces_of(scope).filter(live_nodes__gt=0)[:500]:
        identity = space.identity
        ranks = (identity.get("tp_rank", 0), identity.get("pp_rank", 0))
        groups[space.tenant.slug, str(identity.get("model")), *ranks].append(space)
    return [
        Split(key[0], key[1], tuple(found))
        for key, found in sorted(groups.items())
        if len(found) > 1 and key[2:] == (0, 0)
    ]


@dataclass(frozen=True)
class Kin:
    """Another space of the same model and rank, and the fields in which it differs."""

    space: Space
    fields: list[Compared]


def kin_of(space: Space) -> list[Kin]:
    """Those with live nodes first; at most 10. One query."""
    live = Q(sessions__ended_at=None, sessions__last_heartbeat_at__gt=live_since())
    identity = space.identity
    rows = rows_of(Space, (space.tenant,)).filter(
        identity__model=identity.get("model"), is_leaving=False
    )
    for name in ("tp_rank", "pp_rank"):
        rows = rows.filter(**{f"identity__{name}": identity.get(name, 0)})
    found = rows.exclude(pk=space.pk).select_related("tenant")
    ordered = found.annotate(live_nodes=Count("sessions", filter=live)).order_by(
        "-live_nodes", "-pk"
    )
    return [
        Kin(each, [field for field in compared(space, each) if field.differs])
        for each in ordered[:10]
    ]


def contexts_in(space: Space) -> int:
    return rows_of(Context, (space.tenant,)).filter(space=space, expired_at=None).count()
