"""The page Contexts: what fills a space, the list, and actions on many contexts."""

from dataclasses import replace
from typing import Any
from uuid import UUID

from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase
from django.shortcuts import redirect
from django.urls import reverse
from django.utils import timezone
from django.views.decorators.http import require_GET, require_POST

from base.problems import Problem
from catalog.models import Job
from dashboard.page import page, render_page, render_part
from dashboard.pages.contexts import act as acting
from dashboard.pages.contexts.listing import ContextList
from dashboard.pages.contexts.selector import fills, rows_in
from dashboard.pages.contexts.words import VERBS, outcome_text
from dashboard.scope import scope_of
from tenants.principal import Principal

TAKES = (*ContextList.takes(), "under", "at", "top", "colour", "job")


@page(*TAKES)
@require_GET
def contexts(request: HttpRequest, person: Principal) -> HttpResponseBase:
    return _shown(request, person)


@page(*TAKES)
@require_POST
def act(request: HttpRequest, person: Principal) -> HttpResponseBase:
    """Without a token: says what the action touches, and asks. With it: starts the job."""
    scope = replace(scope_of(request, person), path=reverse("dashboard:contexts"))
    request.neve_scope = scope  # type: ignore[attr-defined]  # links lead to the page itself
    facts: dict[str, Any] = {"back": _back(request), "act_url": request.get_full_path()}
    try:
        if "token" in request.POST:
            job = acting.take(request, person)
            address = f"{_back(request)}{'&' if '?' in _back(request) else '?'}job={job.pk}"
            if is_htmx(request):
                return HttpResponse(headers={"HX-Redirect": address})
            return redirect(address)
        facts["asked"] = acting.preview(request, person, scope)
    except Problem as problem:
        facts |= {"error": problem.detail, "status": problem.status}
    if is_htmx(request):
        facts |= {"person": person, "scope": scope}
        with timezone.override(scope.zone):
            return HttpResponse(render_part(request, "pages/contexts/act.html", facts))
    return _shown(request, person, facts)


def _shown(
    request: HttpRequest, person: Principal, facts: dict[str, Any] | None = None
) -> HttpResponseBase:
    scope = scope_of(request, person)
    asked = {name: request.GET.get(name, "") for name in ("at", "top", "colour", "under", "job")}
    rows = acting.rows_below(request, rows_in(scope))
    if request.GET.get("format"):
        listing = ContextList(request, scope, rows.defer("chain"))
        if listing.wants_csv:
            return listing.csv()
    found = fills(scope, at=asked["at"], top=asked["top"], colour=asked["colour"])
    node = found.selected.node if found.selected else None
    listing = ContextList(
        *(request, scope, rows),
        tree=found.tree,
        selected=node.context if node and node.contexts == 1 else None,
        may_change=any(person.may_write(tenant.pk) for tenant in scope.tenants),
    )
    space = found.space
    return render_page(
        request,
        person,
        "contexts",
        {
            **{"fills": found, "listing": listing, "query": request.GET.urlencode()},
            **{"under": asked["under"], "job": _job(person, asked["job"])},
            "may_change": space is not None and person.may_write(space.tenant_id),
            "now": timezone.now(),
            **(facts or {}),
        },
        status=(facts or {}).get("status", 200),
    )


def _job(person: Principal, text: str) -> dict[str, Any] | None:
    """The action that was started last, as it stands. Raises Http404 for no job of theirs."""
    if not text:
        return None
    try:
        job = person.rows(Job).filter(pk=UUID(text)).select_related("bulk").first()
    except ValueError:
        job = None
    if job is None or not hasattr(job, "bulk"):
        raise Http404("no such job")
    verb = VERBS[job.bulk.action][1]
    return {"job": job, "verb": verb, "bulk": job.bulk, "outcome": outcome_text(job.detail or {})}


def _back(request: HttpRequest) -> str:
    """The page that an action came from, without the job before."""
    query = request.GET.copy()
    query.pop("job", None)
    path = request.path.removesuffix("act")
    return f"{path}?{query.urlencode()}" if query else path


def is_htmx(request: HttpRequest) -> bool:
    return request.headers.get("HX-Request") == "true"
