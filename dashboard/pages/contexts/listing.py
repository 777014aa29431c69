"""The table of contexts: the twin of the prefix tree, and a list of its own."""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from typing import Any

from django.db.models import QuerySet, Sum
from django.utils import timezone

from base.problems import Problem
from catalog.models import Context
from contexts import choosing, life
from contexts.hits import hit_tokens_of_day
from contexts.parts import Parts
from contexts.prefixes import Tree
from contexts.residency import is_lost
from dashboard.lists import Choice, Column, List
from dashboard.pages.contexts.words import force_text, size_text
from neve.index.tier import Location, Tier
from neve.typed import parse_seconds, parse_size
from retention.rulebook import rulebooks_of
from storage import hot

Rows = QuerySet[Context]

STATES = tuple((value, value) for value in Context.State.values)
UNUSED = (("1d", "1 day"), ("7d", "7 days"), ("30d", "30 days"))
SIZES = (("1MiB", "1 MiB"), ("100MiB", "100 MiB"), ("1GiB", "1 GiB"), ("10GiB", "10 GiB"))
MOST_ASKED = 200_000  # blocks of one page, whose places the index is asked for
MOST_SUMMED = 5_000  # rows whose bytes are summed unasked; a narrowed list is always
HELP = "name, agent-*, label:nightly, team=blue, owner:ann, model:qwen, idle>7d, size>1GiB"
_WORD = re.compile(r"(label|owner|model|space):(\S+)|([A-Za-z][\w./-]*=\S*)|(idle|size)>(\S+)")


@dataclass(frozen=True)
class ContextRow:
    """`hot`, `cold`, `lost`: blocks; None while the hot tier does not answer. `bytes`: those of the
    last check, by which the list is sorted; None before the first. `now_bytes`: as the index has
    them now; None while it does not answer. `own_bytes`: of stored blocks that no other context
    has; None: the space's tree is not computed."""

    context: Context
    hot: int | None
    cold: int | None
    lost: int | None
    bytes: int | None
    own_bytes: int | None
    rule: str
    hit_tokens: int
    is_selected: bool = False
    now_bytes: int | None = None

    @property
    def bytes_note(self) -> str:
        """What was stored or left since the last check, at most 5 minutes ago."""
        if self.now_bytes is None or self.now_bytes == self.bytes:
            return ""
        return f"now {size_text(self.now_bytes)}"

    @property
    def shared_bytes(self) -> int | None:
        if self.bytes is None or self.own_bytes is None:
            return None
        return max(0, self.bytes - self.own_bytes)

    @property
    def blocks(self) -> int:
        return (self.hot or 0) + (self.cold or 0) + (self.lost or 0)

    @property
    def shares(self) -> tuple[float, float, float]:
        whole = max(self.blocks, 1)
        return (self.hot or 0) / whole, (self.cold or 0) / whole, (self.lost or 0) / whole

    @property
    def row_class(self) -> str:
        return "is-selected" if self.is_selected else ""


def _unused(rows: Rows, value: str) -> Rows:
    try:
        since = timezone.now() - timedelta(seconds=parse_seconds(value))
    except (ValueError, OverflowError):
        return rows.none()  # nothing fits a word that cannot be read
    return choosing.unused_since(rows, since)


def _larger(rows: Rows, value: str) -> Rows:
    try:
        return rows.filter(size_bytes__gte=parse_size(value))
    except ValueError:
        return rows.none()


class ContextList(List):
    name = "contexts"
    title = "Contexts"
    columns = (
        Column(
            "name",
            "Context",
            kind="html",
            template="pages/contexts/cell_name.html",
            path="context.name",
            order="name",
        ),
        Column("tenant", "Tenant", path="context.tenant.slug", order="tenant__slug", shown=False),
        Column("space", "Space", path="context.space.name", order="space__name", shown=False),
        Column(
            "size",
            "Bytes",
            kind="size",
            path="bytes",
            order="size_bytes",
            hint="of its stored blocks, shared ones included, as last checked: within 5 minutes",
            note=lambda row: row.bytes_note,
        ),
        Column("own", "Own", kind="size", path="own_bytes", order="", hint="nobody shares them"),
        Column("shared", "Shared", kind="size", path="shared_bytes", order=""),
        Column(
            "where",
            "Where",
            kind="html",
            template="pages/contexts/cell_where.html",
            value=lambda row: None if row.hot is None else f"{row.hot}/{row.cold}/{row.lost}",
            order="",
        ),
        Column("tokens", "Tokens", kind="count", path="context.tokens", order="tokens"),
        Column("used", "Last used", kind="ago", path="context.last_used_at", order="last_used_at"),
        Column(
            *("hits", "Hits 24 h", "count"),
            path="hit_tokens",
            order="",
            unit="tok",
            hint="tokens that requests which named it found in the cache",
        ),
        Column("lost", "Lost", kind="count", order="", hint="blocks that are stored nowhere"),
        Column(
            "pinned",
            "Pinned until",
            kind="moment",
            value=lambda row: row.context.pinned_until if row.context.is_pinned else None,
            order="pinned_until",
        ),
        Column("rule", "Rule in force", order=""),
        Column("state", "State", path="context.state", order="state", shown=False),
        Column("label", "Label", path="context.label", order="label", shown=False),
        Column("owner", "Owner", path="context.owner_name", order="owner_name", shown=False),
        Column(
            *("made", "Made", "ago"), path="context.created_at", order="created_at", shown=False
        ),
    )
    filters = (
        Choice("state", "State", STATES),
        Choice(
            "pinned",
            "Pinned",
            (("yes", "yes"), ("no", "no")),
            apply=lambda rows, value: choosing.pinned(rows, value == "yes"),
        ),
        Choice("unused", "Unused for", UNUSED, apply=_unused),
        Choice("larger", "At least", SIZES, apply=_larger),
    )
    search = ("name",)
    search_label = "name*, label:…, idle>7d"
    default_sort = "-size"
    nothing = "pages/contexts/nothing.html"
    row_class = "row_class"

    @cached_property
    def summary(self) -> str:
        """Of all rows that the list finds. Blocks that contexts share count in each of them."""
        if not self.is_narrowed and self.page.paginator.count > MOST_SUMMED:
            return ""
        whole = self.found.order_by().aggregate(whole=Sum("size_bytes"))["whole"]
        return f"{size_text(whole)} in all, shared blocks in each" if whole else ""

    @property
    def tree(self) -> Tree | None:
        return self.extra.get("tree")

    @cached_property
    def help(self) -> str:
        return HELP

    def _searched(self, rows: Rows) -> Rows:
        """Words of the search; the rest is part of the name, or a pattern with *."""
        text = _WORD.sub("", self.search_text).strip()
        for match in _WORD.finditer(self.search_text):
            rows = _narrowed(rows, match)
        if "*" in text or "?" in text:
            return choosing.with_name(rows, text)
        return rows.filter(name__icontains=text) if text else rows

    def on_page(self) -> list[Context]:
        """First which, then the rows: chains make them wide, and sorting them slow."""
        here: Any = self.page.object_list
        keys = list(here.values_list("pk", flat=True))
        found = {row.pk: row for row in self._all.filter(pk__in=keys)}
        return [found[key] for key in keys if key in found]

    def prepared(self, rows: Sequence[Context]) -> list[ContextRow]:
        """One call of the index for each tenant and 1,000 blocks; for CSV no call: its bytes are
        those of the last check."""
        asked = {} if self.wants_csv else _asked(rows)
        tenants = tuple({row.tenant_id: row.tenant for row in rows}.values())
        books = rulebooks_of(tenants)
        names: dict[int, str] = {row.space_id: row.space.name for row in rows}
        hits = hit_tokens_of_day(tenants, names, {row.name for row in rows})
        made = []
        for row in rows:
            force = life.in_force(
                books[row.tenant_id], space_id=row.space_id, label=row.label, name=row.name
            )
            found = hits.get((row.space_id, row.name), 0)
            made.append(self._made(row, asked.get(row.pk), force_text(force, names), found))
        return made

    def _made(
        self, row: Context, answers: list[Any] | None, rule: str, hit_tokens: int
    ) -> ContextRow:
        own_from = own = None
        if self.tree is not None and row.space_id == self.tree.space_id:
            own_from = self.tree.order.own_from(row.pk)
        is_selected = row.pk == self.extra.get("selected")
        if answers is None:
            if own_from is not None and row.size_bytes is not None:
                ids = max(1, row.blocks // max(1, len(row.space.groups)))
                own = round(row.size_bytes * max(0, ids - own_from) / ids)
            return ContextRow(
                row, None, None, None, row.size_bytes, own, rule, hit_tokens, is_selected
            )
        sizes = [each.size_bytes if isinstance(each, Location) else 0 for each in answers]
        groups = max(1, len(row.space.groups))
        if own_from is not None and row.size_bytes is not None:
            # The index's share of the checked bytes: a part never exceeds its whole beside it.
            own = round(row.size_bytes * sum(sizes[own_from * groups :]) / max(1, sum(sizes)))
        return ContextRow(
            row,
            sum(isinstance(each, Location) and each.tier is Tier.HOT for each in answers),
            sum(isinstance(each, Location) and each.tier is Tier.COLD for each in answers),
            _lost(row, answers),
            row.size_bytes,
            own,
            rule,
            hit_tokens,
            is_selected,
            sum(sizes),
        )


def _asked(rows: Sequence[Context]) -> dict[Any, list[Any]]:
    """Context → the index's answer of each of its blocks; empty while it does not answer. A context
    beyond MOST_ASKED is not asked for."""
    by_tenant: defaultdict[int, list[Context]] = defaultdict(list)
    left = MOST_ASKED
    for row in rows:
        if row.blocks <= left:
            by_tenant[row.tenant_id].append(row)
            left -= row.blocks
    found: dict[Any, list[Any]] = {}
    try:
        for tenant_id, members in by_tenant.items():
            blocks = [Parts(row.space).of(row.ids()) for row in members]
            with hot.required():
                answers = hot.hot_tier(tenant_id).match([id_ for ids in blocks for id_ in ids])
            at = 0
            for row, ids in zip(members, blocks, strict=True):
                found[row.pk] = answers[at : at + len(ids)]
                at += len(ids)
    except Problem:
        return found
    return found


def _lost(row: Context, answers: list[Any]) -> int:
    parts = Parts(row.space)
    if not parts.groups:
        return sum(map(is_lost, answers))
    needed = parts.is_needed(len(answers) // len(parts.groups))
    return sum(is_needed and is_lost(each) for is_needed, each in zip(needed, answers, strict=True))


def _narrowed(rows: Rows, match: re.Match[str]) -> Rows:
    name, value, label, limit, least = match.groups()
    if name == "label":
        return rows.filter(label=value)
    if name == "owner":
        return rows.filter(owner_name__icontains=value)
    if name == "model":
        return rows.filter(space__identity__model__icontains=value)
    if name == "space":
        return rows.filter(space__name__icontains=value)
    if label:
        return choosing.with_labels(rows, label)
    if limit == "size":
        return _larger(rows, least)
    return _unused(rows, least)
