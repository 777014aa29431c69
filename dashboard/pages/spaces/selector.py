"""Spaces with their break-even, the newest first."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from catalog.models import Space
from contexts.break_even import BreakEven, TierSpeed, break_evens
from dashboard.kv_groups import GroupRow, group_rows
from neve.index.tier import Tier
from neve.planner.choice import Decision

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
        return ", ".join(words)

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
