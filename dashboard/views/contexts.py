"""Contexts: where their blocks are, and the actions on them. Without JavaScript an action reloads
the page; with htmx it swaps the one row."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import UUID

from django.core.paginator import Paginator
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect
from django.utils import timezone
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from catalog import contexts as service
from catalog.models import Context
from controlplane.problems import Problem
from dashboard.access import ALL
from dashboard.pages import page, render_page, render_part, viewer
from tenants.audit import actor_of

ROWS = 25  # each costs a round trip for its residency
PIN_FOR = timedelta(hours=2)


@page
@require_GET
def contexts(request: HttpRequest) -> HttpResponse:
    seen_by = viewer(request)
    found = seen_by.rows(Context, seen_by.choose(request.GET.get("tenant", ALL)))
    search = request.GET.get("q", "").strip()
    if search:
        found = found.filter(name__icontains=search)
    page_ = Paginator(found.select_related("tenant", "space"), ROWS).get_page(
        request.GET.get("page")
    )
    rows, answers = [], True
    for context in page_:
        row = _row(request, context, ask=answers)
        answers = row["residency"] is not None
        rows.append(row)
    return render_page(request, "contexts", {"page": page_, "rows": rows, "search": search})


@page
@require_POST
def pin(request: HttpRequest, uuid: UUID) -> HttpResponse:
    return _act(
        request,
        uuid,
        lambda context: service.pin(
            context=context, until=timezone.now() + PIN_FOR, actor=actor_of(request)
        ),
    )


@page
@require_POST
def unpin(request: HttpRequest, uuid: UUID) -> HttpResponse:
    return _act(
        request, uuid, lambda context: service.unpin(context=context, actor=actor_of(request))
    )


@page
@require_http_methods(["GET", "POST"])
def expire(request: HttpRequest, uuid: UUID) -> HttpResponse:
    """GET says how much it touches and asks; POST does it."""
    if request.method == "POST":
        return _act(
            request, uuid, lambda context: service.expire(context=context, actor=actor_of(request))
        )
    row = _row(request, _changeable(request, uuid))
    if is_htmx(request):
        return HttpResponse(render_part(request, "context_expire", {"row": row}))
    return render_page(request, "contexts", {"rows": [row], "is_asking": True})


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
    if is_htmx(request):
        return HttpResponse(
            render_part(request, "context_row", {"row": _row(request, context), "error": error})
        )
    return redirect("dashboard:contexts")


def _changeable(request: HttpRequest, uuid: UUID) -> Context:
    """Raises Http404 for one they do not see, or may only read."""
    seen_by = viewer(request)
    rows = seen_by.rows(Context).select_related("tenant", "space")
    context: Context = get_object_or_404(rows, pk=uuid)
    if not seen_by.may_change(context.tenant_id):
        raise Http404("viewers change nothing")
    return context


def _row(request: HttpRequest, context: Context, *, ask: bool = True) -> dict[str, Any]:
    """`residency` is None when the hot tier does not answer (or was not asked)."""
    residency = None
    if ask:
        try:
            residency = service.residency(context)
        except Problem:
            residency = None
    block_bytes = context.space.chunk_tokens * context.space.identity.get("bytes_per_token", 0)
    blocks = max(context.blocks, 1)
    return {
        "context": context,
        "residency": residency,
        "hot_ratio": residency.hot / blocks if residency else None,
        "cold_ratio": residency.cold / blocks if residency else None,
        "lost_ratio": residency.lost / blocks if residency else None,
        "present_blocks": residency.hot + residency.cold if residency else context.blocks,
        "present_bytes": (residency.hot + residency.cold if residency else context.blocks)
        * block_bytes,
        "may_change": viewer(request).may_change(context.tenant_id),
    }
