"""The page of one context, and what people change on it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any
from uuid import UUID

from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect
from django.urls import reverse
from django.utils import timezone
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from base.problems import Problem
from catalog.models import Context, Job, Pin
from contexts import expiry, pins, services, warming
from dashboard.page import page, render_page
from dashboard.pages.context import selector
from dashboard.pages.contexts.act import MOST_REASON, labels_of, moment_in, seconds_of, until_of
from dashboard.pages.contexts.words import length_text, size_text
from dashboard.scope import scope_of
from tenants.principal import Principal, actor_of
from tenants.scope import tenant_scope


@page("diff")
@require_GET
def context(request: HttpRequest, person: Principal, uuid: UUID) -> HttpResponse:
    return _shown(request, person, _seen(person, uuid))


@page()
@require_POST
def pin(request: HttpRequest, person: Principal, uuid: UUID) -> HttpResponse:
    """Sets the person's own pin until a time as people type it."""
    found, scope = _changeable(person, uuid), scope_of(request, person)

    def act() -> str:
        until = until_of(request.POST.get("until", ""), scope)
        tier = request.POST.get("tier", Pin.Tier.ANY)
        if tier not in Pin.Tier.values:
            raise Http404("no such tier")
        made = pins.pin(
            context=found,
            until=until,
            reason=request.POST.get("reason", "").strip()[:MOST_REASON],
            tier=tier,
            actor=actor_of(request, person),
        )
        lost = f"; {made.lost:,} blocks are gone already" if made.lost else ""
        return f"Pinned until {moment_in(until, scope)}: {made.kept:,} blocks are kept{lost}."

    return _did(request, person, found, act)


@page()
@require_POST
def unpin(request: HttpRequest, person: Principal, uuid: UUID) -> HttpResponse:
    """Ends the person's own pin; with `all` everybody's, which only operators may."""
    found = _changeable(person, uuid)

    def act() -> str:
        done = pins.unpin(
            context=found, everybody="all" in request.POST, actor=actor_of(request, person)
        )
        return f"{done.removed} pin{'' if done.removed == 1 else 's'} ended."

    return _did(request, person, found, act)


@page()
@require_POST
def extend(request: HttpRequest, person: Principal, uuid: UUID) -> HttpResponse:
    found = _changeable(person, uuid)

    def act() -> str:
        for_s = seconds_of(request.POST.get("for", ""))
        done = services.extend(context=found, for_s=for_s, actor=actor_of(request, person))
        return f"{done.extended:,} blocks live at least {length_text(for_s)} from now."

    return _did(request, person, found, act)


@page()
@require_POST
def warm(request: HttpRequest, person: Principal, uuid: UUID) -> HttpResponse:
    found = _changeable(person, uuid)

    def act() -> str:
        warming.request(context=found, actor=actor_of(request, person))
        return "A warm-up was requested: an engine computes the prompt."

    return _did(request, person, found, act)


@page()
@require_POST
def change(request: HttpRequest, person: Principal, uuid: UUID) -> HttpResponse:
    """Renames or labels: only what the form has."""
    found = _changeable(person, uuid)

    def act() -> str:
        given: dict[str, Any] = {}
        if "name" in request.POST:
            name = request.POST["name"].strip()
            if not 0 < len(name) <= 200:
                raise Problem("malformed", "A name has 1 to 200 characters.", field="name")
            given["name"] = name
        if "label" in request.POST:
            given["label"] = request.POST["label"].strip()[:100]
        if "labels" in request.POST:
            given["labels"] = labels_of(request.POST["labels"])
        services.change(context=found, actor=actor_of(request, person), **given)
        return "Changed."

    return _did(request, person, found, act)


@page()
@require_http_methods(["GET", "POST"])
def expire(request: HttpRequest, person: Principal, uuid: UUID) -> HttpResponse:
    """GET says how much it touches and asks; POST does it."""
    found, actor = _changeable(person, uuid), actor_of(request, person)
    if request.method == "POST":

        def act() -> str:
            done = expiry.expire(context=found, actor=actor)
            return f"Expired: {done.removed:,} blocks, {size_text(done.removed_bytes)}, were freed."

        return _did(request, person, found, act)
    facts: dict[str, Any] = {"asking": "expire"}
    try:
        facts["expiry"] = expiry.expire(context=found, dry_run=True, actor=actor)
    except Problem as problem:
        facts["error"] = problem.detail
    return _shown(request, person, found, facts)


@page()
@require_http_methods(["GET", "POST"])
def delete(request: HttpRequest, person: Principal, uuid: UUID) -> HttpResponse:
    """GET says what it does and asks; POST does it, and the page is gone."""
    found = _changeable(person, uuid)
    if request.method == "GET":
        return _shown(request, person, found, {"asking": "delete"})
    try:
        services.delete(context=found, actor=actor_of(request, person))
    except Problem as problem:
        request.session[f"context-{found.pk}"] = {"error": problem.detail}
        return redirect(scope_of(request, person).link("context", found.pk))
    return redirect(scope_of(request, person).link("contexts"))


def _did(
    request: HttpRequest, person: Principal, found: Context, act: Callable[[], str]
) -> HttpResponse:
    """The page behind an action, with what it did or why not; a reload does not repeat it."""
    try:
        said = {"done": act()}
    except Problem as problem:
        said = {"error": problem.detail}
    request.session[f"context-{found.pk}"] = said
    return redirect(scope_of(request, person).link("context", found.pk))


def _shown(
    request: HttpRequest,
    person: Principal,
    found: Context,
    facts: dict[str, Any] | None = None,
) -> HttpResponse:
    there = selector.residency(found)
    own_pins = selector.pins_of(person, found)
    address = reverse("dashboard:context", args=[found.pk])
    scope = replace(scope_of(request, person), path=address)
    request.neve_scope = scope  # type: ignore[attr-defined]  # links lead to the page itself
    with timezone.override(scope.zone), tenant_scope(found.tenant_id):
        moments = selector.timeline(person, found)
        warm_job = (
            Job.objects.filter(kind="warm", arguments__context_id=str(found.pk))
            .order_by("-created_at")
            .first()
        )
    return render_page(
        request,
        person,
        "context",
        {
            "context": found,
            "residency": there,
            "pieces": selector.strip(there, found.tokens) if there else [],
            "life": selector.life_of(found),
            "shares": selector.shares_of(found),
            "pins": own_pins,
            "has_own_pin": any(is_own for _, is_own in own_pins),
            "may_unpin_all": person.is_operator and any(not is_own for _, is_own in own_pins),
            "may_change": person.may_write(found.tenant_id),
            "timeline": moments,
            "warm_job": warm_job,
            "compared": selector.compared(person, found, request.GET.get("diff", "")),
            "host": request.build_absolute_uri("/").rstrip("/"),
            **(request.session.pop(f"context-{found.pk}", None) or {}),
            **(facts or {}),
        },
    )


def _seen(person: Principal, uuid: UUID) -> Context:
    rows = person.rows(Context).select_related("tenant", "space")
    return get_object_or_404(rows, pk=uuid)


def _changeable(person: Principal, uuid: UUID) -> Context:
    """Raises Http404 for a context that the person does not see, or may only read."""
    found = _seen(person, uuid)
    if not person.may_write(found.tenant_id):
        raise Http404("viewers change nothing")
    return found
