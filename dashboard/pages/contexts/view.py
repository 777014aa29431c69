"""The page Contexts, and the actions on one. Without JavaScript an action reloads the page; with
htmx it swaps the one row."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import UUID

from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect
from django.utils import timezone
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from base.problems import Problem
from catalog.models import Context
from contexts import expiry, pins
from contexts import services as service
from dashboard.page import chosen_tenants, page, part_of, render_page, render_part
from dashboard.pages.contexts.selector import context_row, context_rows
from tenants.principal import Principal, actor_of, rows_of

ROWS = 25  # each costs a round trip for its residency
PIN_FOR = timedelta(hours=2)


@page("tenant", "q", "page")
@require_GET
def contexts(request: HttpRequest, person: Principal) -> HttpResponse:
    found = rows_of(Context, chosen_tenants(request, person)).select_related("tenant", "space")
    search = request.GET.get("q", "").strip()
    if search:
        found = found.filter(name__icontains=search)
    shown = part_of(request, found, ROWS)
    context = {"page": shown, "rows": context_rows(person, shown), "search": search}
    return render_page(request, person, "contexts", context)


@page()
@require_POST
def pin(request: HttpRequest, person: Principal, uuid: UUID) -> HttpResponse:
    """Sets the person's own pin, which ends after PIN_FOR."""
    until, actor = timezone.now() + PIN_FOR, actor_of(request, person)
    return _act(
        request, person, uuid, lambda context: pins.pin(context=context, until=until, actor=actor)
    )


@page()
@require_POST
def unpin(request: HttpRequest, person: Principal, uuid: UUID) -> HttpResponse:
    """Ends the person's own pin; with `all` everybody's, which only operators may."""
    everybody, actor = "all" in request.POST, actor_of(request, person)
    return _act(
        request,
        person,
        uuid,
        lambda context: pins.unpin(context=context, everybody=everybody, actor=actor),
    )


@page()
@require_http_methods(["GET", "POST"])
def expire(request: HttpRequest, person: Principal, uuid: UUID) -> HttpResponse:
    """GET says how much it touches and asks; POST does it."""
    actor = actor_of(request, person)
    if request.method == "POST":
        return _act(
            request, person, uuid, lambda context: expiry.expire(context=context, actor=actor)
        )
    context, preview, error = _changeable(person, uuid), None, ""
    try:
        preview = expiry.expire(context=context, dry_run=True, actor=actor)
    except Problem as problem:
        error = problem.detail
    return _ask(request, person, "expire", context, {"expiry": preview, "error": error})


@page()
@require_http_methods(["GET", "POST"])
def delete(request: HttpRequest, person: Principal, uuid: UUID) -> HttpResponse:
    """GET says what it does and asks; POST does it, and the row is gone."""
    context = _changeable(person, uuid)
    if request.method == "GET":
        return _ask(request, person, "delete", context, {})
    try:
        service.delete(context=context, actor=actor_of(request, person))
    except Problem as problem:
        return _show(request, person, context, problem.detail)
    return HttpResponse() if is_htmx(request) else redirect("dashboard:contexts")


def is_htmx(request: HttpRequest) -> bool:
    return request.headers.get("HX-Request") == "true"


def _act(
    request: HttpRequest, person: Principal, uuid: UUID, action: Callable[[Context], object]
) -> HttpResponse:
    context, error = _changeable(person, uuid), ""
    try:
        action(context)
    except Problem as problem:
        error = problem.detail
    context.refresh_from_db()
    return _show(request, person, context, error)


def _show(request: HttpRequest, person: Principal, context: Context, error: str) -> HttpResponse:
    if not is_htmx(request):
        return redirect("dashboard:contexts")
    facts = {"row": context_row(person, context), "error": error}
    return HttpResponse(render_part(request, "pages/contexts/row.html", facts))


def _ask(
    request: HttpRequest, person: Principal, name: str, context: Context, facts: dict[str, Any]
) -> HttpResponse:
    """A question in the place of the row, or alone on the page. `name`: of its template."""
    question = f"pages/contexts/{name}.html"
    facts = {"row": context_row(person, context), **facts}
    if is_htmx(request):
        return HttpResponse(render_part(request, question, facts))
    return render_page(request, person, "contexts", {"question": question, **facts})


def _changeable(person: Principal, uuid: UUID) -> Context:
    """Raises Http404 for a context that the person does not see, or may only read."""
    rows = person.rows(Context).select_related("tenant", "space")
    context: Context = get_object_or_404(rows, pk=uuid)
    if not person.may_write(context.tenant_id):
        raise Http404("viewers change nothing")
    return context
