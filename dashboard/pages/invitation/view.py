"""Inviting people to a tenant, and accepting an invitation.

Opening the link changes nothing, since mail scanners open links too; accepting is a POST. Whoever
is signed in accepts with their account, anybody else makes one or signs in first.
"""

from typing import Any

from django.conf import settings
from django.contrib.auth import login
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_http_methods, require_POST

from base.problems import Problem
from dashboard.page import page, render_page, render_part, require_operator, theme_of
from tenants import invitations
from tenants.links import invitation_link
from tenants.models import Invitation, Tenant
from tenants.principal import Principal, actor_of

BACKEND = "tenants.signing_in.SignInBackend"


@page()
@require_POST
def invite(request: HttpRequest, person: Principal, tenant_id: int) -> HttpResponse:
    """Makes an invitation. With htmx the form's place is swapped, else it is a page of its own."""
    require_operator(person)
    tenant = get_object_or_404(person.tenant_rows(), pk=tenant_id)
    facts = of_tenant(person, tenant)
    try:
        made, link = invitations.invite(
            tenant=tenant,
            email=request.POST.get("email", ""),
            role=request.POST.get("role", ""),
            link=lambda token: invitation_link(request, token),
            actor=actor_of(request, person),
        )
    except Problem as problem:
        facts |= {"error": problem.detail, "typed": request.POST}
    else:
        facts |= {"made": made, "link": link}
    if request.headers.get("HX-Request") == "true":
        return HttpResponse(render_part(request, "parts/invite.html", facts))
    status = 400 if "error" in facts else 200
    return render_page(request, person, "invitation", facts, status=status)


@page()
@require_POST
def revoke(request: HttpRequest, person: Principal, invitation_id: int) -> HttpResponse:
    require_operator(person)
    found = person.rows(Invitation).select_related("tenant")
    invitation = get_object_or_404(found, pk=invitation_id)
    facts = of_tenant(person, invitation.tenant)
    try:
        invitations.revoke(invitation=invitation, actor=actor_of(request, person))
    except Problem as problem:
        facts["error"] = problem.detail
    if request.headers.get("HX-Request") == "true":
        return HttpResponse(render_part(request, "parts/invite.html", facts))
    return render_page(request, person, "invitation", facts)


def of_tenant(person: Principal, tenant: Tenant) -> dict[str, Any]:
    """For `parts/invite.html`; empty for people who may not invite, who do not get the part."""
    if not person.is_operator:
        return {}
    return {
        "invite_tenant": tenant,
        "invitations": invitations.open_of(tenant),
        "good_for_days": invitations.GOOD_FOR.days,
        "mail_off": not settings.ENV.mail_url,
    }


@require_http_methods(["GET", "POST"])
def accept(request: HttpRequest, token: str) -> HttpResponseBase:
    """The page behind a link."""
    try:
        invitation = invitations.find(token)
    except Problem as problem:
        return _door(request, {"gone": problem.detail}, status=404)
    facts: dict[str, Any] = {"invitation": invitation, "token": token}
    if request.method == "GET":
        return _door(request, facts)
    try:
        if request.user.is_authenticated:
            invitations.accept(invitation=invitation, user=request.user, actor=actor_of(request))
        else:
            user = invitations.accept_as_new(
                invitation=invitation,
                username=request.POST.get("username", ""),
                password=request.POST.get("password", ""),
                actor=actor_of(request),
            )
            login(request, user, backend=BACKEND)
    except Problem as problem:
        if problem.kind == "not-found":
            return _door(request, {"gone": problem.detail}, status=404)
        facts |= {"error": problem.detail, "typed": request.POST}
        return _door(request, facts, status=400)
    return redirect("dashboard:overview")


def _door(request: HttpRequest, facts: dict[str, Any], *, status: int = 200) -> HttpResponse:
    facts |= {"theme": theme_of(request)}
    answer = render(request, "pages/invitation/accept.html", facts, status=status)
    answer._has_been_logged = True  # type: ignore[attr-defined]  # Django would log the token
    return answer
