"""One action on many contexts from the page: what it touches in words, then the bulk job.

The set is a prefix with all below it, the ticked rows, or all that the list finds. `contexts.bulk`
freezes it in a preview; the button of the preview takes it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from django.db.models import QuerySet
from django.http import Http404, HttpRequest
from django.utils import timezone

from base.problems import Problem
from catalog.models import BulkAction, Context, Job, Pin
from contexts import bulk, choosing
from dashboard.pages.contexts.listing import ContextList
from dashboard.pages.contexts.selector import rows_in
from dashboard.pages.contexts.words import VERBS, contexts_text, length_text, size_text
from dashboard.scope import Scope
from neve.formats.labels import is_name, is_value
from neve.typed import parse_moment, parse_seconds
from tenants.principal import Principal, actor_of

MOST_REASON = 200  # characters
MOST_EXTENDED_S = 365 * 86_400  # as REST has it


@dataclass(frozen=True)
class Asked:
    """What a preview asks. `lines`: what it touches; `button`: repeats it."""

    preview: bulk.Preview
    title: str
    lines: tuple[str, ...]
    button: str
    is_removing: bool

    @property
    def token(self) -> UUID:
        return self.preview.bulk.pk

    @property
    def is_empty(self) -> bool:
        return self.preview.bulk.contexts == self.preview.refused_count


def preview(request: HttpRequest, person: Principal, scope: Scope) -> Asked:
    """Raises Problem: malformed (what was typed), forbidden, and those of `bulk.preview`."""
    if not any(person.may_write(tenant.pk) for tenant in person.tenants):
        raise Http404("viewers change nothing")
    action = request.POST.get("action", "")
    if action not in bulk.ACTIONS:
        raise Problem("malformed", "There is no such action.", field="action")
    found, filter_ = _chosen(request, person, scope)
    tenant_id = _tenant_of(found)
    if not person.may_write(tenant_id):
        raise Http404("viewers change nothing")
    arguments = _arguments(request, action, scope)
    made = bulk.preview(
        tenant_id=tenant_id,
        found=found,
        action=action,
        arguments=arguments,
        filter_=filter_,
        actor=actor_of(request, person),
    )
    return _asked(made, arguments, scope, person)


def take(request: HttpRequest, person: Principal) -> Job:
    """Raises Problem: not-found, preview-expired, limit-reached."""
    try:
        token = UUID(request.POST["token"])
    except ValueError:
        raise bulk.unknown_token() from None
    row = person.rows(BulkAction).defer("chosen").filter(pk=token).first()
    if row is None or not person.may_write(row.tenant_id):
        raise bulk.unknown_token()
    return bulk.take(bulk=row, actor=actor_of(request, person))


def _chosen(
    request: HttpRequest, person: Principal, scope: Scope
) -> tuple[QuerySet[Context], dict[str, str]]:
    """The set, and how it was found, in the words of the REST filters where they have some."""
    what, rows = request.POST.get("what", ""), person.rows(Context)
    if what == "below":
        space, key = request.POST.get("of", ""), request.POST.get("key", "")
        if not (space.isascii() and space.isdigit() and len(space) < 19):
            raise Http404("no such space")
        found = rows.filter(space_id=int(space), expired_at=None)
        if not key:
            return found, {"space": space}
        return choosing.under(found, key), {"space": space, "under": key}
    if what == "ticked":
        ids = ",".join(request.POST.getlist("ids"))
        if not ids:
            raise Problem("malformed", "Tick the rows that you mean first.", field="ids")
        return choosing.with_ids(rows, ids), {"ids": ids}
    if what == "found":
        found = rows_below(request, rows_in(scope))
        query = {name: str(value) for name, value in request.GET.items() if value}
        return ContextList(request, scope, found).found, query
    raise Http404("no such set")


def rows_below(request: HttpRequest, rows: QuerySet[Context]) -> QuerySet[Context]:
    """Of the list: those with the beginning `under`; expired ones only if the state is asked for.
    Raises Problem (malformed)."""
    under = request.GET.get("under", "")
    if under:
        rows = choosing.under(rows, under)
    return rows if request.GET.get("state") else rows.filter(expired_at=None)


def _tenant_of(found: QuerySet[Context]) -> int:
    tenants = list(found.order_by().values_list("tenant_id", flat=True).distinct()[:2])
    if len(tenants) > 1:
        raise Problem(
            "malformed",
            "These contexts are of several tenants, and an action is of one: choose a tenant.",
            field="tenant",
        )
    if not tenants:
        raise Problem("malformed", "No context is left here.", field="ids")
    return int(tenants[0])


def until_of(text: str, scope: Scope) -> datetime:
    """Raises Problem (malformed) with examples."""
    try:
        return parse_moment(text, now=timezone.now().astimezone(scope.zone))
    except ValueError as error:
        raise Problem("malformed", f"until: {error}.", field="until") from None


def seconds_of(text: str) -> int:
    """Raises Problem (malformed) with examples."""
    try:
        seconds = parse_seconds(text)
    except ValueError as error:
        raise Problem("malformed", f"by: {error}.", field="for") from None
    if not 0 < seconds <= MOST_EXTENDED_S:
        raise Problem("malformed", "by: need 1 s to 365 d.", field="for")
    return seconds


def labels_of(text: str) -> dict[str, str | None]:
    """ "team=blue, stage=": an empty value removes. Raises Problem (malformed)."""
    changes: dict[str, str | None] = {}
    for each in filter(None, (part.strip() for part in text.split(","))):
        name, has_value, value = each.partition("=")
        if not has_value or not is_name(name.strip()) or not is_value(value.strip()):
            raise Problem("malformed", f"“{each}” is no name=value.", field="labels")
        changes[name.strip()] = value.strip() or None
    return changes


def _arguments(request: HttpRequest, action: str, scope: Scope) -> dict[str, Any]:
    """JSON values. Raises Problem (malformed)."""
    typed = {name: request.POST.get(name, "").strip() for name in ("until", "for", "label")}
    if action == "pin":
        until = until_of(typed["until"], scope)
        reason = request.POST.get("reason", "").strip()[:MOST_REASON]
        tier = request.POST.get("tier", Pin.Tier.ANY)
        if tier not in Pin.Tier.values:
            raise Http404("no such tier")
        return {"until": until.isoformat(), "reason": reason, "tier": tier}
    if action == "extend":
        return {"for_s": seconds_of(typed["for"] or typed["until"])}
    if action == "label":
        if "=" in typed["label"]:
            return {"labels": labels_of(typed["label"])}
        return {"label": typed["label"][:100]}
    return {}


_REFUSED = {
    "tokens-unknown": "without known tokens: they were named by requests, not made over REST",
    "no-engine": "in spaces that no healthy engine serves",
}


def _asked(
    made: bulk.Preview, arguments: Mapping[str, Any], scope: Scope, person: Principal
) -> Asked:
    action, weight = made.bulk.action, made.weight
    count = contexts_text(made.bulk.contexts - made.refused_count)
    about = "about " if weight.is_estimate else ""
    lines: list[str] = []
    button = f"{VERBS[action][0]} {count}"
    stays = (
        f"{about}{size_text(weight.shared_bytes)} shared with "
        f"{contexts_text(weight.sharers)} outside stay"
        f"{'s' if weight.shared_blocks == 1 else ''}."
    )
    if action == "expire":
        button += f": frees {about}{size_text(made.freed_bytes)}"
        lines.append(
            f"Frees {about}{size_text(made.freed_bytes)}: {size_text(made.freed_hot_bytes)} in "
            f"Valkey at once, {size_text(made.freed_cold_bytes)} in S3 as segments are compacted; "
            "a block may be in both."
        )
        if weight.shared_blocks:
            lines.append(stays[0].upper() + stays[1:])
        lines.append(
            "Your own pins end. This cannot be undone: what is asked for again is computed again."
        )
    elif action == "pin":
        until = datetime.fromisoformat(arguments["until"])
        when = moment_in(until, scope)
        button += f" until {when}"
        lines.append(
            f"Keeps {about}{size_text(weight.bytes)} until {when}, under any quota pressure."
        )
    elif action == "extend":
        button += f" by {length_text(arguments['for_s'])}"
        lines.append(
            f"{about}{size_text(weight.bytes)}".capitalize()
            + f" live at least {length_text(arguments['for_s'])} from now, in both tiers."
        )
    elif action == "warm":
        lines.append(
            "An engine of the space computes each prompt whose tokens are known, so that its "
            "blocks are stored; at most 100 wait at a time."
        )
        for kind, words in _REFUSED.items():
            if number := made.refused.get(kind):
                lines.append(f"Left out: {contexts_text(number)} {words}.")
    elif action == "label":
        words = arguments.get("label") or ", ".join(
            f"{name}={value}" if value else f"no {name}"
            for name, value in arguments.get("labels", {}).items()
        )
        button += f" “{words}”"
        lines.append("Rules that match a label give blocks their terms.")
    elif action == "unpin":
        lines.append("Ends your own pins. Blocks that another pin keeps stay.")
    else:
        lines.append("Forgets names and pins. Blocks stay as long as their space says.")
    if made.pinned_by_others and action in bulk.REMOVING:
        who = contexts_text(made.pinned_by_others)
        if person.is_operator:
            lines.append(f"{who} have pins of others, which end.")
        else:
            lines.append(f"{who} stay, since somebody else pinned them.")
    return Asked(
        made, f"{VERBS[action][0]} {count}?", tuple(lines), button, action in bulk.REMOVING
    )


def moment_in(at: datetime, scope: Scope) -> str:
    """ "Fri 4 Dec, 18:00", in the reader's zone."""
    here = at.astimezone(scope.zone)
    return f"{here:%a} {here.day} {here:%b}, {here:%H:%M}"
