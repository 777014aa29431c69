"""Contexts: where their blocks are, and the actions on them. Without JavaScript an action reloads
the page; with htmx it swaps the one row."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any
from uuid import UUID

from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect
from django.utils import timezone
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from base.problems import Problem
from catalog.models import Context, Pin
from contexts import pins
from contexts import services as service
from dashboard.access import ALL
from dashboard.page import page, part_of, render_page, render_part, viewer
from tenants.audit import actor_of

ROWS = 25  # each costs a round trip for its residency
PIN_FOR = timedelta(hours=2)


@page("tenant", "q", "page")
@require_GET
def contexts(request: HttpRequest) -> HttpResponse:
    seen_by = viewer(request)
    found = seen_by.rows(Context, seen_by.choose(request.GET.get("tenant", ALL)))
    search = request.GET.get("q", "").strip()
    if search:
        found = found.filter(name__icontains=search)
    page_ = part_of(request, found.select_related("tenant", "space"), ROWS)
    rows, answers, pins_of = [], True, _live_pins(request, page_)
    for context in page_:
        row = _row(request, context, pins_of[context.pk], ask=answers)
        answers = row["residency"] is not None
        rows.append(row)
    return render_page(request, "contexts", {"page": page_, "rows": rows, "search": search})


@page()
@require_POST
def pin(request: HttpRequest, uuid: UUID) -> HttpResponse:
    """Their own pin, as long from now as PIN_FOR."""
    return _act(
        request,
        uuid,
        lambda context: pins.pin(
            context=context, until=timezone.now() + PIN_FOR, actor=actor_of(request)
        ),
    )


@page()
@require_POST
def unpin(request: HttpRequest, uuid: UUID) -> HttpResponse:
    """Ends their own pin; with `all` everybody's, which only operators may."""
    everybody = "all" in request.POST
    return _act(
        request,
        uuid,
        lambda context: pins.unpin(context=context, everybody=everybody, actor=actor_of(request)),
    )


@page()
@require_http_methods(["GET", "POST"])
def expire(request: HttpRequest, uuid: UUID) -> HttpResponse:
    """GET says how much it touches and asks; POST does it."""
    if request.method == "POST":
        return _act(
            request, uuid, lambda context: service.expire(context=context, actor=actor_of(request))
        )
    context, expiry, error = _changeable(request, uuid), None, ""
    try:
        expiry = service.expire(context=context, dry_run=True, actor=actor_of(request))
    except Problem as problem:
        error = problem.detail
    return _ask(request, "pages/contexts/expire.html", context, {"expiry": expiry, "error": error})


@page()
@require_http_methods(["GET", "POST"])
def delete(request: HttpRequest, uuid: UUID) -> HttpResponse:
    """GET says what it does and asks; POST does it, and the row is gone."""
    context = _changeable(request, uuid)
    if request.method == "GET":
        return _ask(request, "pages/contexts/delete.html", context, {})
    try:
        service.delete(context=context, actor=actor_of(request))
    except Problem as problem:
        return _show(request, context, problem.detail)
    return HttpResponse() if is_htmx(request) else redirect("dashboard:contexts")


def is_htmx(request: HttpRequest) -> bool:
    return request.headers.get("HX-Request") == "true"


def _act(request: HttpRequest, uuid: UUID, action: Callable[[Context], object]) -> HttpResponse:
    context = _changeable(request, uuid)
    error = ""
    try:
        action(context)
    except Problem as problem:
        error = problem.detail
    context.refresh_from_db()
    return _show(request, context, error)


def _show(request: HttpRequest, context: Context, error: str) -> HttpResponse:
    if is_htmx(request):
        row = _row(request, context, pins.live_of(context))
        return HttpResponse(
            render_part(request, "pages/contexts/row.html", {"row": row, "error": error})
        )
    return redirect("dashboard:contexts")


def _ask(
    request: HttpRequest, template: str, context: Context, facts: dict[str, Any]
) -> HttpResponse:
    """A question in the place of the row, or alone on the page."""
    row = _row(request, context, pins.live_of(context))
    if is_htmx(request):
        return HttpResponse(render_part(request, template, {"row": row, **facts}))
    return render_page(request, "contexts", {"row": row, "question": template, **facts})


def _live_pins(request: HttpRequest, shown: Iterable[Context]) -> dict[UUID, list[Pin]]:
    """Of all contexts of a page, in one statement."""
    found: defaultdict[UUID, list[Pin]] = defaultdict(list)
    live = viewer(request).rows(Pin).filter(context__in=list(shown), until__gt=timezone.now())
    for row in live:
        found[row.context_id].append(row)
    return found


def _changeable(request: HttpRequest, uuid: UUID) -> Context:
    """Raises Http404 for one they do not see, or may only read."""
    seen_by = viewer(request)
    rows = seen_by.rows(Context).select_related("tenant", "space")
    context: Context = get_object_or_404(rows, pk=uuid)
    if not seen_by.may_change(context.tenant_id):
        raise Http404("viewers change nothing")
    return context


def _row(
    request: HttpRequest, context: Context, live_pins: list[Pin], *, ask: bool = True
) -> dict[str, Any]:
    """`residency` is None when the hot tier does not answer (or was not asked)."""
    residency = None
    if ask:
        try:
            residency = service.residency(context)
        except Problem:
            residency = None
    blocks, me = max(context.blocks, 1), actor_of(request)
    return {
        "context": context,
        "residency": residency,
        "hot_ratio": residency.hot / blocks if residency else None,
        "cold_ratio": residency.cold / blocks if residency else None,
        "lost_ratio": residency.lost / blocks if residency else None,
        "pins": live_pins,
        "has_own_pin": any(pin.owner == me.owner for pin in live_pins),
        "may_unpin_all": me.is_operator and any(pin.owner != me.owner for pin in live_pins),
        "may_change": viewer(request).may_change(context.tenant_id),
    }
