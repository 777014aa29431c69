"""A tenant's policy and rules as one immutable value that resolves terms."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from neve.index.tier import PROMOTE_WINDOW_S, BlockTerms, Eviction
from retention.models import ColdFull, EvictionPolicy, RetentionPolicy, RetentionRule
from retention.terms import Rule, Terms, in_order, resolve
from tenants.models import Tenant
from tenants.principal import rows_of
from tenants.scope import tenant_scope


@dataclass(frozen=True)
class Rulebook:
    policy: Terms
    rules: tuple[Rule, ...] = ()
    eviction: Eviction = Eviction.TWO_QUEUES
    promote_window_s: int = PROMOTE_WINDOW_S
    cold_evicts: bool = True

    def of_space(self, space_id: int) -> Terms:
        """Terms of the blocks of a space that no context holds."""
        return resolve(self.policy, self.rules, space_id=space_id)

    def of_context(self, space_id: int, label: str, name: str) -> Terms:
        return resolve(self.policy, self.rules, space_id=space_id, label=label, context=name)

    def rules_of(self, space_id: int, label: str, name: str) -> dict[str, Rule]:
        """Field of `Terms` → the rule that decides it for a context; absent: the policy does."""
        found: dict[str, Rule] = {}
        for rule in in_order(self.rules, space_id=space_id, label=label, context=name):
            found = {**dict.fromkeys(rule.values, rule), **found}
        return found

    def spaces(self) -> dict[int, BlockTerms]:
        """Terms of spaces that rules name; all other spaces have the policy's terms."""
        named = {rule.space_id for rule in self.rules if rule.space_id is not None}
        return {space_id: self.of_space(space_id).for_blocks() for space_id in named}

    @property
    def looks_at_contexts(self) -> bool:
        """Whether any rule names a label or context, so that blocks of one space may differ."""
        return any(rule.label is not None or rule.context is not None for rule in self.rules)


def rulebook_of(tenant_id: int) -> Rulebook:
    """Costs two database queries."""
    with tenant_scope(tenant_id):
        return _rulebook(RetentionPolicy.objects.get(), RetentionRule.objects.all())


def rulebooks_of(tenants: tuple[Tenant, ...]) -> dict[int, Rulebook]:
    """By tenant. Costs two database queries, whatever the number of tenants."""
    rules = defaultdict(list)
    for rule in rows_of(RetentionRule, tenants):
        rules[rule.tenant_id].append(rule)
    policies = rows_of(RetentionPolicy, tenants)
    return {policy.tenant_id: _rulebook(policy, rules[policy.tenant_id]) for policy in policies}


def _rulebook(policy: RetentionPolicy, rules: Iterable[RetentionRule]) -> Rulebook:
    return Rulebook(
        policy.terms(),
        tuple(rule.rule() for rule in rules),
        EvictionPolicy(policy.eviction).number,
        policy.promote_window_s,
        policy.cold_full == ColdFull.EVICT,
    )
