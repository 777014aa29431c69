"""The page of one incident: what, cause, slice, levers, the time line, and who looks after it."""

from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.contrib.auth import get_user_model
from django.db.models import Q
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect
from django.utils import timezone
from django.views.decorators.http import require_GET, require_POST

from base.problems import Problem
from catalog.changes import Change, changes
from dashboard.incidents import duration_words, hit_line, link_of, shown, spark
from dashboard.page import page, render_page
from dashboard.scope import Scope, scope_of
from incidents import services
from incidents.kinds import HIT_RATE, KINDS
from incidents.models import Incident
from neve.planner.causes import CAUSES
from tenants.models import AuditEvent
from tenants.principal import Principal, actor_of
from tenants.scope import tenant_scope

AROUND = timedelta(minutes=30)  # of changes before it began
MOST_LINES = 60
MUTES = {"1h": timedelta(hours=1), "8h": timedelta(hours=8), "3d": timedelta(days=3)}
_DONE = {
    "incident.open": "opened",
    "incident.reopen": "returned",
    "incident.end": "ended",
    "incident.acknowledge": "acknowledged",
    "incident.mute": "muted or shown again",
    "incident.owner": "owner set",
}


@page()
@require_GET
def incident(request: HttpRequest, person: Principal, uuid: UUID) -> HttpResponse:
    return render_page(request, person, "incident", _context(request, person, _row(person, uuid)))


@page()
@require_POST
def act(request: HttpRequest, person: Principal, uuid: UUID) -> HttpResponse:
    """`do`: acknowledge, mute (with `for`), unmute or owner. 404 for people who may only look."""
    row, actor = _row(person, uuid), actor_of(request, person)
    if not (person.is_operator or (row.tenant_id and person.may_write(row.tenant_id))):
        raise Http404("Your role lets you look, not change.")
    what = request.POST.get("do", "")
    try:
        if what == "acknowledge":
            services.acknowledge(incident=row, actor=actor)
        elif what == "mute" and request.POST.get("for") in MUTES:
            until = timezone.now() + MUTES[request.POST["for"]]
            services.mute(incident=row, until=until, actor=actor)
        elif what == "unmute":
            services.mute(incident=row, until=None, actor=actor)
        elif what == "owner":
            owner = request.POST.get("owner", "").strip()
            services.set_owner(incident=row, owner=owner, actor=actor)
        else:
            raise Problem("malformed", "Choose what to do.")
    except Problem as problem:
        context = _context(request, person, row) | {"error": problem.detail}
        return render_page(request, person, "incident", context, status=problem.status)
    scope = scope_of(request, person)
    back = "overview" if request.POST.get("back") == "overview" else None
    return redirect(scope.link("overview") if back else scope.link("incident", row.pk))


def _row(person: Principal, uuid: UUID) -> Incident:
    rows = person.rows(Incident).filter(opened_at__isnull=False).select_related("tenant")
    row: Incident = get_object_or_404(rows, pk=uuid)
    return row


def _context(request: HttpRequest, person: Principal, row: Incident) -> dict[str, Any]:
    scope = scope_of(request, person)
    line: list[tuple[int, float | None]] = []
    if row.kind == HIT_RATE.name and row.tenant_id is not None:
        with tenant_scope(row.tenant_id):
            line = hit_line(row)
    return {
        "incident": row,
        "shown": shown(row, scope),
        "kind": KINDS[row.kind],
        "lasts": duration_words(row),
        "line": [(datetime.fromtimestamp(ts, scope.zone), ratio) for ts, ratio in line],
        "path": spark((ratio for _, ratio in line), 600, 120),
        "misses": _misses(row),
        "timeline": _timeline(scope, row),
        "people": _people(scope.person, row),
        "mutes": [("1h", "1 hour"), ("8h", "8 hours"), ("3d", "3 days")],
    }


def _misses(row: Incident) -> list[tuple[str, float, float]]:
    """(label, share of asked blocks now, before), those that rose most first."""
    now, before = row.facts.get("misses") or {}, row.facts.get("misses_before") or {}
    found = [
        (CAUSES[r].label if r in CAUSES else r, now.get(r, 0.0), before.get(r, 0.0))
        for r in {*now, *before}
    ]
    return sorted(found, key=lambda each: (each[2] - each[1], each[0]))


def _timeline(scope: Scope, row: Incident) -> list[dict[str, Any]]:
    """What people and the platform did with it, and what changed around it; newest first."""
    events = scope.person.rows(AuditEvent).filter(object_type="incident", object_id=str(row.pk))
    lines: list[dict[str, Any]] = [
        {"at": event.at, "letter": "A", "words": _done(event), "who": event.actor_name, "url": ""}
        for event in events.order_by("-at")[:MOST_LINES]
    ]
    if row.tenant is not None:
        start = (row.since - AROUND).timestamp()
        end = ((row.ended_at or timezone.now()) + timedelta(minutes=5)).timestamp()
        lines += [
            {
                "at": change.at,
                "letter": change.letter,
                "words": change.words,
                "who": change.by,
                "url": _url(scope, change),
            }
            for change in changes([row.tenant], start, end)[:MOST_LINES]
        ]
    lines.append({"at": row.since, "letter": "●", "words": "began", "who": "", "url": ""})
    return sorted(lines, key=lambda each: each["at"], reverse=True)[:MOST_LINES]


def _url(scope: Scope, change: Change) -> str:
    arguments = (change.argument,) if change.argument else ()
    own = {"tenant": change.tenant or None}
    return link_of(scope, (change.page, arguments, own), ("audit", (), own))


def _done(event: AuditEvent) -> str:
    after = event.after or {}
    words = _DONE.get(event.action, event.action)
    if event.action == "incident.mute":
        side = "operators" if "operators_muted_until" in after else "the tenant's people"
        until = after.get("operators_muted_until") or after.get("muted_until")
        if not until:
            return f"shown again to {side}"
        return f"muted for {side} until {until[:16].replace('T', ' ')} UTC"
    if event.action == "incident.owner":
        return f"owner: {after.get('owner') or 'nobody'}"
    return words


def _people(person: Principal, row: Incident) -> list[str]:
    """Whom the form offers as owner. Names of operators are for operators."""
    allowed = Q(is_staff=True) if person.is_operator else Q(pk=None)
    if row.tenant_id is not None:
        allowed |= Q(memberships__tenant_id=row.tenant_id)
    people = get_user_model().objects.filter(allowed, is_active=True).distinct()
    return list(people.order_by("username").values_list("username", flat=True)[:100])
