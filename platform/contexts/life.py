"""How long the blocks of a context live: the rule in force, and when they end."""

from dataclasses import dataclass
from datetime import UTC, datetime

from django.conf import settings

from catalog.models import Context
from contexts.parts import Parts
from neve.index.scan import entries_of
from retention.rulebook import Rulebook
from retention.terms import Rule, Terms
from storage import hot


@dataclass(frozen=True)
class Force:
    """The terms that a context gives to its blocks, and the rules that decide some of them, the
    most specific first; none: the policy alone."""

    terms: Terms
    rules: tuple[Rule, ...]


@dataclass(frozen=True)
class Ends:
    """When stored blocks of a context leave both tiers by their age. `first_at`, `last_at`: None if
    none ends; `endless`: blocks without an end, or kept longer by a pin."""

    first_at: datetime | None
    last_at: datetime | None
    endless: int
    blocks: int


def in_force(book: Rulebook, *, space_id: int, label: str, name: str) -> Force:
    rules: list[Rule] = []
    for rule in book.rules_of(space_id, label, name).values():
        if not any(rule is known for known in rules):  # a rule has a mapping, so no hash
            rules.append(rule)
    return Force(book.of_context(space_id, label, name), tuple(rules))


def ends_of(context: Context) -> Ends:
    """One call for each bucket and 1,000 blocks. Raises Problem (hot-tier-unavailable)."""
    ids = Parts(context.space).of(context.ids())
    with hot.required():
        entries = entries_of(hot.execute, context.tenant_id, settings.ENV.hot_buckets, ids)
    there = [entry for entry in entries if entry is not None]
    ends = [max(entry.expires_s, entry.pinned_s) for entry in there if entry.expires_s]
    first, last = (
        (datetime.fromtimestamp(end_s, UTC) for end_s in (min(ends), max(ends)))
        if ends
        else (None, None)
    )
    return Ends(first, last, len(there) - len(ends), len(there))
