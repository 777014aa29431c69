"""One context: where its chain is, how long its blocks live, who keeps it, what happened to it and
with whom it shares."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from django.utils import timezone

from base.problems import Problem
from catalog.models import Context, Pin
from contexts import life, pins
from contexts.diff import Diff, diff
from contexts.prefix_cache import latest
from contexts.residency import Residency, Run, residency_of
from dashboard.pages.contexts.words import source_text, terms_text
from events.models import Event
from retention.rulebook import rulebook_of
from tenants.models import AuditEvent
from tenants.principal import Principal, rows_of

MOST_RUNS = 200  # that the strip draws
MOST_MOMENTS = 50  # of the timeline
MOST_SHARERS = 10
MOST_FOUND = 20  # contexts that a search for the other one offers

_EVENTS: Mapping[str, str] = {
    "context.stored": "all blocks are stored",
    "context.lost": "blocks were lost",
    "context.expiring_soon": "an end is near",
}
_ACTIONS: Mapping[str, str] = {
    "context.record": "recorded",
    "context.create": "made before its blocks were stored",
    "context.update": "renamed or labelled",
    "context.pin": "pinned",
    "context.unpin": "unpinned",
    "context.pin_refused": "a pin was refused by the budget",
    "context.extend": "extended",
    "context.expire": "expired",
    "context.expire_at": "its expiry was scheduled",
    "context.warm": "a warm-up was requested",
    "context.delete": "deleted",
}


@dataclass(frozen=True)
class Piece:
    """A run of the strip. `x`, `width`: percent of its tokens."""

    run: Run
    x: float
    width: float

    @property
    def kind(self) -> str:
        return self.run.tier or "lost"

    @property
    def last_token(self) -> int:
        return self.run.first_token + self.run.tokens


@dataclass(frozen=True)
class Moment:
    """Something that happened. `who`: "" for nodes and the platform."""

    at: datetime
    words: str
    who: str = ""
    more: str = ""


@dataclass(frozen=True)
class Sharer:
    id: UUID
    name: str
    tokens: int
    is_pinned: bool


@dataclass(frozen=True)
class Life:
    """`ends` None: the hot tier does not answer. `source`: the rules in force, or the policy."""

    terms: str
    source: str
    ends: life.Ends | None


@dataclass(frozen=True)
class Shares:
    """`others` None: the space's tree is being computed. `own_bytes`: that nobody shares."""

    others: int | None
    nearest: tuple[Sharer, ...] = ()
    own_tokens: int | None = None


def strip(residency: Residency, tokens: int) -> list[Piece]:
    whole = max(1, tokens)
    return [
        Piece(run, round(100 * run.first_token / whole, 3), round(100 * run.tokens / whole, 3))
        for run in residency.runs[:MOST_RUNS]
    ]


def residency(context: Context) -> Residency | None:
    try:
        return residency_of(context)
    except Problem:
        return None


def life_of(context: Context) -> Life:
    book = rulebook_of(context.tenant_id)
    force = life.in_force(book, space_id=context.space_id, label=context.label, name=context.name)
    source = source_text(force.rules, {context.space_id: context.space.name})
    try:
        ends = life.ends_of(context)
    except Problem:
        ends = None
    return Life(terms_text(force.terms), source, ends)


def shares_of(context: Context) -> Shares:
    try:
        tree = latest(context.space)
    except Problem:
        tree = None
    if tree is None or tree.order.place(context.pk) is None:
        return Shares(None)
    order, chunk = tree.order, context.space.chunk_tokens
    groups = max(1, len(context.space.groups))
    ids = max(1, context.blocks // groups)

    def tokens(shared: int) -> int:
        return min(context.tokens, round(shared / ids * context.tokens) // chunk * chunk)

    found = dict(order.sharers(context.pk, MOST_SHARERS))
    rows = rows_of(Context, (context.tenant,)).filter(pk__in=found)
    known = {row.pk: row for row in rows.only("name", "pinned_until")}
    nearest = tuple(
        Sharer(pk, known[pk].name, tokens(shared), known[pk].is_pinned)
        for pk, shared in found.items()
        if pk in known
    )
    return Shares(
        order.sharing(context.pk), nearest, context.tokens - tokens(order.own_from(context.pk) or 0)
    )


def pins_of(person: Principal, context: Context) -> list[tuple[Pin, bool]]:
    """Pins that have not ended, the latest end first, and whether each is the person's own."""
    return [(pin, pin.owner == person.id) for pin in pins.live_of(context)]


def timeline(person: Principal, context: Context) -> list[Moment]:
    """What audit and events know, the newest first, with the last use."""
    audit = person.rows(AuditEvent).filter(
        tenant_id=context.tenant_id, object_type="context", object_id=str(context.pk)
    )
    events = person.rows(Event).filter(
        tenant_id=context.tenant_id, subject_id=str(context.pk), kind__in=tuple(_EVENTS)
    )
    found = [
        Moment(each.at, _ACTIONS.get(each.action, each.action), each.actor_name, _changed(each))
        for each in audit.order_by("-at")[:MOST_MOMENTS]
    ]
    found += [
        Moment(each.at, _EVENTS[each.kind], more=_facts(each))
        for each in events.order_by("-at")[:MOST_MOMENTS]
    ]
    if context.last_used_at is not None:
        found.append(Moment(context.last_used_at, "used last by a request"))
    if not any(each.words == _ACTIONS["context.record"] for each in found):
        found.append(Moment(context.created_at, "made", context.owner_name))
    return sorted(found, key=lambda moment: moment.at, reverse=True)[:MOST_MOMENTS]


def _changed(event: AuditEvent) -> str:
    """Names and ends that differ, in words."""
    before, after = event.before or {}, event.after or {}
    if event.before is None:
        return ""
    return ", ".join(
        f"{name.replace('_', ' ')} {_short(after[name])}"
        for name in ("name", "label", "pinned_until", "extended_until", "expires_at")
        if name in after and before.get(name) != after[name]
    )


def _short(value: Any) -> str:
    if value in (None, ""):
        return "none"
    try:
        at = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return str(value)
    return f"{timezone.localtime(at):%Y-%m-%d %H:%M}"


def _facts(event: Event) -> str:
    data = event.data
    if event.kind == "context.lost":
        return f"{data.get('lost_blocks', '?')} blocks"
    if event.kind == "context.expiring_soon":
        return f"{data.get('ends', '')} {_short(data.get('at'))}"
    return ""


@dataclass(frozen=True)
class Compared:
    """With another context. `candidates`: of a search by name that found none or several."""

    text: str
    other: Context | None = None
    diff: Diff | None = None
    candidates: tuple[Context, ...] = ()


def compared(person: Principal, context: Context, text: str) -> Compared | None:
    """`text`: an id, or a name of the same tenant; empty: nothing is compared."""
    text = text.strip()[:200]
    if not text:
        return None
    rows = person.rows(Context).filter(tenant_id=context.tenant_id).exclude(pk=context.pk)
    rows = rows.defer("chain").select_related("space")
    try:
        found = list(rows.filter(pk=UUID(text)))
    except ValueError:
        found = list(rows.filter(name=text)[:2])
        if len(found) != 1:
            found = list(rows.filter(name__icontains=text).order_by("name")[:MOST_FOUND])
    if len(found) != 1:
        return Compared(text, candidates=tuple(found))
    return Compared(text, found[0], diff(context, found[0]))
