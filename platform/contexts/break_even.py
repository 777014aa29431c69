"""From which prefix length on loading beats computing in a space, by its nodes' measurements.

The arithmetic is `neve.planner.breakeven`, as nodes use it for each prefix; speeds are the medians
of live nodes. An engine whose ranks have a space each loads from all of them at once and reports
once: its figures stand in each of these spaces.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

from django.utils import timezone

from catalog import recent
from catalog.models import NodeSession, Space
from catalog.nodes import live_since
from contexts.cost import MOST_NODES
from engines.models import Serving
from neve.formats.parts import PartGroup
from neve.index.tier import Tier
from neve.planner.breakeven import MARGIN, Prefill, Store, break_even_bytes_per_s, break_even_tokens
from neve.planner.choice import COUNTED
from neve.planner.parts import PrefixBytes, loaded_bytes
from neve.planner.speeds import medians
from tenants.models import Tenant
from tenants.principal import rows_of

AT_TOKENS: Final = 8192  # prompt length of the prefill speed and of the break-even bandwidth
MOVED_S: Final = 300.0
MOST_SESSIONS: Final = 2000  # of one day, for the decisions; the latest
# An engine's spaces have these fields of the identity in common.
_SHARED: Final = (
    *("model", "revision", "dtype", "kv_dtype", "layout_version", "engine_block_tokens"),
    *("tp_size", "pp_size"),
)


@dataclass(frozen=True)
class TierSpeed:
    """Loading from one tier. None: not measured.

    `moved_bytes_per_s`: what live nodes read in the last minutes. `wins`: False if no prefix is
    long enough; `from_tokens`: whole chunks from which on a load is worth it.
    """

    bytes_per_s: float | None = None
    round_trip_s: float | None = None
    moved_bytes_per_s: float | None = None
    wins: bool | None = None
    from_tokens: int | None = None


@dataclass(frozen=True)
class BreakEven:
    """`size`: what a prefix weighs, all ranks; None: unknown. `prefill_tokens_per_s` and
    `break_even_bytes_per_s` are of a prompt of AT_TOKENS. `nodes`: live ones that measured.
    Decisions: by `neve.planner.choice.Decision`."""

    size: PrefixBytes | None = None
    prefill_tokens_per_s: float | None = None
    break_even_bytes_per_s: float | None = None
    tiers: Mapping[Tier, TierSpeed] = field(default_factory=dict)
    decisions_hour: Mapping[str, int] = field(default_factory=dict)
    decisions_day: Mapping[str, int] = field(default_factory=dict)
    nodes: int = 0

    @property
    def basis(self) -> str:
        return "measured by the space's nodes" if self.nodes else "unknown"

    @property
    def verdict(self) -> str:
        """One sentence."""
        if self.size is None:
            return "The size of a token is unknown until a node of the space connects again."
        if self.prefill_tokens_per_s is None:
            return (
                "No live node has measured its prefill yet: nodes do with their first prompts of "
                "64 tokens or more."
            )
        # Of the local tier only where nodes have one.
        clauses = [
            _clause(tier, found)
            for tier, found in self.tiers.items()
            if tier is not Tier.LOCAL or found.wins is not None
        ]
        sentence = "; ".join(clauses)
        return f"{sentence[0].upper()}{sentence[1:]}."


def _clause(tier: Tier, found: TierSpeed) -> str:
    if found.wins is None:
        return f"the {tier} tier is not measured yet"
    if not found.wins:
        return f"loading from the {tier} tier never beats computing"
    if found.from_tokens is not None and found.from_tokens > 10**6:
        return f"loading from the {tier} tier beats computing beyond a million tokens only"
    return f"loading from the {tier} tier beats computing from {found.from_tokens:,} tokens on"


def break_evens(spaces: Sequence[Space]) -> dict[int, BreakEven]:
    """By primary key; `spaces` have their tenants loaded. At most three queries in all.

    The caller has checked that it may see them."""
    if not spaces:
        return {}
    now = timezone.now()
    kin = _kin(spaces)
    every = {each.pk: each for group in kin.values() for each in group}
    sessions = _sessions(every, now)
    shards = _shards(every.values())
    found = {}
    for space in spaces:
        group = kin[space.pk]
        mine = [session for each in group for session in sessions[each.pk]]
        sizes = [_size(each, shards.get(each.pk)) for each in group]
        known = [size for size in sizes if size is not None]
        whole = None
        if len(known) == len(sizes):
            whole = PrefixBytes(
                sum(size.per_token for size in known), sum(size.fixed for size in known)
            )
        found[space.pk] = _break_even(space, whole, mine, now)
    return found


def _break_even(
    space: Space, size: PrefixBytes | None, sessions: Sequence[NodeSession], now: datetime
) -> BreakEven:
    since = live_since()
    live = [each for each in sessions if each.ended_at is None and each.last_heartbeat_at > since]
    speeds = medians([each.speeds for each in live if each.speeds][:MOST_NODES])
    lately = [_lately(each) for each in sessions]
    moved = [_lately(each).since(now.timestamp() - MOVED_S) for each in live]
    prefill, even = speeds.prefill, None
    if prefill is not None and size is not None:
        even = break_even_bytes_per_s(prefill, tokens=AT_TOKENS, bytes_per_token=size)
    return BreakEven(
        size,
        None if prefill is None else prefill.tokens_per_s(AT_TOKENS),
        even,
        {
            tier: _tier(
                speeds.stores.get(tier),
                prefill,
                size,
                space.chunk_tokens,
                sum(counts[f"{tier}_read_bytes"] / took_s for counts, took_s in moved if took_s)
                if moved
                else None,
            )
            for tier in Tier
        },
        _decisions(lately, now.timestamp() - recent.HOUR_S),
        _decisions(lately, now.timestamp() - recent.DAY_S),
        speeds.nodes,
    )


def _tier(
    store: Store | None,
    prefill: Prefill | None,
    size: PrefixBytes | None,
    chunk_tokens: int,
    moved_bytes_per_s: float | None,
) -> TierSpeed:
    if store is None:
        return TierSpeed(moved_bytes_per_s=moved_bytes_per_s)
    measured = (store.bytes_per_s, store.round_trip_s, moved_bytes_per_s)
    if prefill is None or size is None:
        return TierSpeed(*measured)
    tokens = break_even_tokens(prefill, store, bytes_per_token=size, margin=MARGIN)
    if tokens is None:
        return TierSpeed(*measured, wins=False)
    return TierSpeed(*measured, True, math.ceil(tokens / chunk_tokens) * chunk_tokens)


def _decisions(lately: Iterable[recent.Lately], start_s: float) -> dict[str, int]:
    counted = [each.since(start_s)[0] for each in lately]
    return {
        str(decision): sum(counts[name] for counts in counted) for decision, name in COUNTED.items()
    }


def _lately(session: NodeSession) -> recent.Lately:
    return recent.Lately(
        opened_at=session.opened_at,
        last_at=session.last_heartbeat_at,
        totals=session.totals,
        stored=session.marks,
    )


def _sessions(spaces: Mapping[int, Space], now: datetime) -> dict[int, list[NodeSession]]:
    """Sessions that sent a heartbeat in the last day, by space, the latest first."""
    rows = rows_of(NodeSession, _tenants(spaces.values())).filter(
        space__in=spaces, last_heartbeat_at__gte=now - timedelta(days=1)
    )
    found: dict[int, list[NodeSession]] = defaultdict(list)
    for row in rows.order_by("-last_heartbeat_at")[:MOST_SESSIONS]:
        found[row.space_id].append(row)
    return found


def _kin(spaces: Sequence[Space]) -> dict[int, list[Space]]:
    """By primary key: the space itself and those of the other ranks of its engines."""
    ranked = [each for each in spaces if each.ranks > 1]
    by_engine: dict[tuple[Any, ...], list[Space]] = defaultdict(list)
    if ranked:
        revisions = {each.identity.get("revision") for each in ranked}
        rows = rows_of(Space, _tenants(ranked)).filter(identity__revision__in=list(revisions))
        for row in rows:
            by_engine[_engine_key(row)].append(row)
    return {each.pk: by_engine[_engine_key(each)] if each.ranks > 1 else [each] for each in spaces}


def _engine_key(space: Space) -> tuple[Any, ...]:
    return (
        space.tenant_id,
        space.chunk_tokens,
        *(str(space.identity.get(name)) for name in _SHARED),
    )


def _shards(spaces: Iterable[Space]) -> dict[int, int]:
    """Blocks of a chunk in spaces of the canonical layout, as nodes announced them."""
    canonical = [each for each in spaces if each.is_canonical]
    if not canonical:
        return {}
    rows = rows_of(Serving, _tenants(canonical)).filter(
        space__in=[each.pk for each in canonical], shards__isnull=False
    )
    return {row.space_id: row.shards or 1 for row in rows.order_by("pk")}


def _tenants(spaces: Iterable[Space]) -> tuple[Tenant, ...]:
    return tuple({each.tenant_id: each.tenant for each in spaces}.values())


def _size(space: Space, shards: int | None) -> PrefixBytes | None:
    """What a request loads of a prefix of this space; None if its number of blocks is unknown."""
    groups = [PartGroup.from_dict(group) for group in space.groups]
    if groups:
        return loaded_bytes(groups, space.chunk_tokens)
    per_token = space.identity.get("bytes_per_token")
    if not isinstance(per_token, int):
        return None
    if space.is_canonical:
        return None if shards is None else PrefixBytes(per_token * shards, 0)
    return PrefixBytes(per_token, 0)
