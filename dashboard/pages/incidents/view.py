"""The page Incidents: open ones first, the rules behind them, and who gets mail."""

from typing import Any

from django.conf import settings
from django.db.models import Case, F, When
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.shortcuts import redirect
from django.utils import timezone
from django.views.decorators.http import require_GET, require_POST

from base.problems import Problem
from dashboard.incidents import shown
from dashboard.lists import Choice, Column, List
from dashboard.page import page, render_page, require_operator
from dashboard.scope import ALL, scope_of
from incidents import rules, services
from incidents.kinds import KINDS
from incidents.models import Incident
from neve.planner.causes import CAUSES
from tenants.principal import Principal, actor_of


class IncidentList(List):
    name = "incidents"
    columns = (
        Column(
            "words",
            "What",
            link=lambda row, scope: scope.link("incident", row.pk),
            value=lambda row: row.words or KINDS[row.kind].label,
        ),
        Column(
            "tenant",
            "Tenant",
            path="tenant.slug",
            link=lambda row, scope: (
                scope.link("tenants", tenant=row.tenant.slug) if row.tenant else None
            ),
        ),
        Column(
            "cause",
            "Cause",
            value=lambda row: CAUSES[row.cause].label if row.cause in CAUSES else "",
        ),
        Column(
            "state",
            "State",
            "state",
            order="ended_at",
            value=lambda row: "done" if row.ended_at else "failed",
            words=lambda row: _state(row),
        ),
        Column("since", "Since", "moment"),
        Column("ended_at", "Ended", "moment"),
        Column("lost_tokens", "Tokens lost", "count", hint="computed again, about"),
        Column("owner", "Owner"),
        Column("kind", "Rule", shown=False),
        Column("acknowledged_at", "Acknowledged", "moment", shown=False),
        Column("muted_until", "Muted until", "moment", path="my_muted_until", shown=False),
    )
    filters = (
        Choice(
            "state",
            "State",
            (("open", "Open"), ("ended", "Ended")),
            apply=lambda rows, value: rows.filter(ended_at__isnull=value == "open"),
        ),
        Choice("kind", "Rule", tuple((kind.name, kind.label) for kind in KINDS.values())),
    )
    search = ("words", "tenant__slug", "owner", "cause")
    default_sort = "-since"
    nothing = "pages/incidents/nothing.html"


def _state(row: Any) -> str:
    if row.ended_at is not None:
        return "○ ended"
    if row.my_muted_until is not None:
        return "▲ muted"
    return "▲ acknowledged" if row.acknowledged_at else "▲ open"


@page(*IncidentList.takes())
@require_GET
def incidents(request: HttpRequest, person: Principal) -> HttpResponseBase:
    scope = scope_of(request, person)
    rows = person.rows(Incident).filter(opened_at__isnull=False).select_related("tenant")
    if scope.tenant != ALL or scope.space is not None:
        rows = rows.filter(tenant__in=scope.tenants)
    side = "operators_muted_until" if person.is_operator else "muted_until"
    is_muted = When(**{f"{side}__gt": timezone.now()}, then=F(side))
    listing = IncidentList(request, scope, rows.annotate(my_muted_until=Case(is_muted)))
    if listing.wants_csv:
        return listing.csv()
    return render_page(
        request, person, "incidents", {"listing": listing, **_rules(request, person)}
    )


@page()
@require_POST
def set_rule(request: HttpRequest, person: Principal, kind: str) -> HttpResponse:
    """Sets a rule of the scope's tenant, or of all; `reset` removes what was set."""
    require_operator(person)
    scope = scope_of(request, person)
    tenant = None if scope.tenant == ALL else scope.tenants[0]
    named, actor = rules.kind_named(kind), actor_of(request, person)
    try:
        if "reset" in request.POST:
            rules.reset(kind=named, tenant=tenant, actor=actor)
        else:
            rules.change(
                kind=named,
                tenant=tenant,
                actor=actor,
                threshold=_number(request, "threshold"),
                for_s=int(_number(request, "for_s")),
                is_on="is_on" in request.POST,
            )
    except Problem as problem:
        context = {"error": problem.detail, **_rules(request, person)}
        return render_page(request, person, "incidents", context, status=problem.status)
    return redirect(scope.link("incidents") + "#rules")


@page()
@require_POST
def wish_mail(request: HttpRequest, person: Principal) -> HttpResponse:
    wants = request.POST.get("wants") == "1"
    services.wish_mail(
        user_id=int(person.id.removeprefix("user:")), wants=wants, actor=actor_of(request, person)
    )
    return redirect(scope_of(request, person).link("incidents") + "#mail")


def _number(request: HttpRequest, name: str) -> float:
    """Raises Problem (malformed)."""
    try:
        value = float(request.POST.get(name, ""))
    except ValueError:
        value = float("nan")
    if not abs(value) < 1e12:
        raise Problem("malformed", f"{name}: give a number.", field=name)
    return value


def _rules(request: HttpRequest, person: Principal) -> dict[str, Any]:
    scope = scope_of(request, person)
    of = None if scope.tenant == ALL else scope.tenants[0]
    id_ = None if of is None else of.pk
    found = rules.in_force([id_])[id_]
    return {
        "rules": [
            {"kind": kind, "rule": found[kind.name]}
            for kind in KINDS.values()
            if of is None or kind.of_tenant
        ],
        "rules_of": of,
        "has_mail": bool(settings.ENV.mail_url),
        "wants_mail": _wants(person),
        "shown": shown,
    }


def _wants(person: Principal) -> bool:
    return services.wants_mail(int(person.id.removeprefix("user:")))
