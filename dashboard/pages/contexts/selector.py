"""What the page Contexts shows: the tree of one space, the selected prefix, and the list."""

from dataclasses import dataclass

from django.db.models import Count, QuerySet
from django.utils import timezone
from valkey.exceptions import ValkeyError

from base.problems import Problem
from catalog.models import Context, Space
from contexts import choosing, life
from contexts.prefix_cache import latest
from contexts.prefixes import Prefix, Tree
from dashboard.pages.contexts.icicle import (
    COLOURS,
    Answer,
    Icicle,
    Selection,
    answers,
    icicle,
    selection,
)
from dashboard.pages.contexts.words import force_text
from dashboard.scope import ALL, Scope
from retention.rulebook import rulebook_of
from storage import hot
from tenants.principal import rows_of


@dataclass(frozen=True)
class Budget:
    """Of all pins of a tenant; `limit_bytes` None: none. `used_bytes` None: not known now."""

    limit_bytes: int | None
    used_bytes: int | None

    def left_bytes(self) -> int | None:
        if self.limit_bytes is None or self.used_bytes is None:
            return None
        return max(0, self.limit_bytes - self.used_bytes)


@dataclass(frozen=True)
class Fills:
    """What fills a space. `tree` None: it is being computed, or `error` says why there is none.
    `spaces`: how many the scope has."""

    space: Space | None
    spaces: int
    tree: Tree | None = None
    error: str = ""
    chart: Icicle | None = None
    answers: tuple[Answer, ...] = ()
    selected: Selection | None = None
    budget: Budget | None = None
    rule: str = ""

    @property
    def is_more_than_left(self) -> bool:
        left = self.budget.left_bytes() if self.budget else None
        node = self.selected.node if self.selected else None
        return left is not None and node is not None and node.total.stored_bytes > left


def rows_in(scope: Scope) -> QuerySet[Context]:
    """The contexts of a scope. Raises Problem (malformed) for a label that cannot be read."""
    if scope.tenant == ALL and scope.space is None:  # operators': without a filter, in index order
        rows = scope.person.rows(Context)
    else:
        rows = rows_of(Context, scope.tenants)
    rows = rows.select_related("tenant", "space")
    if scope.space is not None:
        rows = rows.filter(space=scope.space)
    if scope.label:
        name, has_value, value = scope.label.partition(":")
        rows = (
            choosing.with_labels(rows, f"{name}={value}")
            if has_value
            else rows.filter(label=scope.label)
        )
    return rows


def fills(scope: Scope, *, at: str, top: str, colour: str) -> Fills:
    """`at`, `top`: keys of the selected and the zoomed prefix; without `at` the largest context is
    selected."""
    space, spaces = _space(scope)
    if space is None:
        return Fills(None, spaces)
    try:
        tree = latest(space)
    except Problem as problem:
        return Fills(space, spaces, error=problem.detail)
    if tree is None or not tree.root.contexts:
        return Fills(space, spaces, tree)
    now = timezone.now()
    ready = answers(tree, now=now)
    key = at or (ready[0].node.key if ready else "")
    chosen = selection(tree, key)
    chart = icicle(
        tree, top=top, selected=key, colour=colour if colour in COLOURS else COLOURS[0], now=now
    )
    return Fills(
        *(space, spaces, tree, "", chart, ready, chosen, _budget(space.tenant_id)),
        _rule(space, chosen.node),
    )


def _space(scope: Scope) -> tuple[Space | None, int]:
    """The chosen space, or the one with the most contexts; and how many have some."""
    if scope.space is not None:
        return scope.space, 1
    counts = rows_of(Context, scope.tenants).order_by().values("space").annotate(n=Count("*"))
    found = sorted(counts.values_list("n", "space"), reverse=True)
    if not found:
        return None, 0
    spaces = rows_of(Space, scope.tenants).select_related("tenant")
    return spaces.filter(pk=found[0][1]).first(), len(found)


def _budget(tenant_id: int) -> Budget:
    limit = rulebook_of(tenant_id).policy.pin_budget_bytes
    try:
        return Budget(limit, hot.hot_tier(tenant_id).usage().pinned_bytes)
    except ValkeyError:
        return Budget(limit, None)


def _rule(space: Space, node: Prefix) -> str:
    """Of a prefix that is one context."""
    if node.context is None or node.contexts > 1:
        return ""
    row = rows_of(Context, (space.tenant,)).filter(pk=node.context).only("label", "name").first()
    if row is None:
        return ""
    force = life.in_force(
        rulebook_of(space.tenant_id), space_id=space.pk, label=row.label, name=row.name
    )
    return force_text(force, {space.pk: space.name})
