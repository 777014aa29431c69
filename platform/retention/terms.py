"""Terms of blocks, by a retention policy and its rules: plain values, pure functions.

Only `resolve` decides which terms apply. `for_blocks` converts them for the hot tier, whose index
stores each block's end, idle time and priority.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import reduce

from neve.index.tier import BlockTerms

PRIORITIES = range(10)  # 0 leaves first
DEFAULT_PRIORITY = 5


@dataclass(frozen=True)
class Terms:
    """How a tenant's blocks are kept. None: never flush (`flush_after_s`), else no limit.

    `cold_ttl_s` and `max_age_s` count from commit. `extend` prolongs `cold_ttl_s`; only a pin
    outlasts `max_age_s`. `pin_budget_bytes`: limit of all pinned bytes of the tenant together.
    `cold_codec`: how the space's blocks are written to S3 (`retention.models.ColdCodec`).
    """

    flush_after_s: int | None = 0
    hot_idle_s: int | None = None
    cold_ttl_s: int | None = None
    max_age_s: int | None = None
    priority: int = DEFAULT_PRIORITY
    pin_budget_bytes: int | None = None
    cold_codec: str = "none"

    def for_blocks(self, until_s: int = 0) -> BlockTerms:
        """Arguments of the hot tier's functions. `until_s`: the end that `extend` set."""
        return BlockTerms(
            flush_after_s=self.flush_after_s,
            ttl_s=self.cold_ttl_s,
            max_age_s=self.max_age_s,
            idle_s=self.hot_idle_s,
            priority=self.priority,
            until_s=until_s,
        )


@dataclass(frozen=True)
class Rule:
    """Overrides for some blocks. `values`: fields of `Terms`; absent ones stay unchanged.

    A condition of None always matches. `context`: a name or a pattern with * and ?. A context is
    more specific than a label, a label more than a space; at equal specificity, the lower `order`
    wins.
    """

    order: int
    space_id: int | None = None
    label: str | None = None
    context: str | None = None
    values: Mapping[str, int | str | None] = field(default_factory=dict)

    def matches(self, *, space_id: int, label: str | None, context: str | None) -> bool:
        if self.context is not None:
            pattern = self.context.replace("[", "[[]")  # a bracket has no special meaning
            if not context or not fnmatchcase(context, pattern):
                return False
        return self.space_id in (None, space_id) and self.label in (None, label)

    @property
    def specificity(self) -> int:
        conditions = (self.context, self.label, self.space_id)
        return sum(1 << 2 - n for n, given in enumerate(conditions) if given is not None)


def in_order(
    rules: Iterable[Rule], *, space_id: int, label: str | None, context: str | None
) -> list[Rule]:
    """Those that match, the most specific first."""
    matching = [r for r in rules if r.matches(space_id=space_id, label=label, context=context)]
    return sorted(matching, key=lambda rule: (-rule.specificity, rule.order))


def resolve(
    policy: Terms,
    rules: Iterable[Rule],
    *,
    space_id: int,
    label: str | None = None,
    context: str | None = None,
) -> Terms:
    """Take each field from the most specific matching rule that has it, else from the policy.

    Without `context`: the terms of new blocks of the space.
    """
    values: dict[str, int | str | None] = {}
    for rule in in_order(rules, space_id=space_id, label=label, context=context):
        values = {**rule.values, **values}
    # A rule names fields of Terms only, each with a value of its type.
    return replace(policy, **values) if values else policy  # type: ignore[arg-type]


def end_of(terms: BlockTerms, stored_s: int) -> int:
    """Expiry of a block stored at `stored_s`, both in seconds since 1970; 0: never.

    Mirrors `end_of` in functions/entries.lua.
    """
    ends = max(stored_s + terms.ttl_s, terms.until_s) if terms.ttl_s else 0
    oldest = stored_s + terms.max_age_s if terms.max_age_s else 0
    return min(ends, oldest) if ends and oldest else ends or oldest


def most_generous(several: Iterable[BlockTerms]) -> BlockTerms:
    """Terms of a block that several contexts hold: the most generous value of each field."""
    return reduce(_join, several)


def _join(a: BlockTerms, b: BlockTerms) -> BlockTerms:
    def longest(x: int | None, y: int | None) -> int | None:
        return None if x is None or y is None else max(x, y)

    flushes = [each.flush_after_s for each in (a, b) if each.flush_after_s is not None]
    return BlockTerms(
        flush_after_s=min(flushes, default=None),
        ttl_s=longest(a.ttl_s, b.ttl_s),
        max_age_s=longest(a.max_age_s, b.max_age_s),
        idle_s=longest(a.idle_s, b.idle_s),
        priority=max(a.priority, b.priority),
        until_s=max(a.until_s, b.until_s),
    )
