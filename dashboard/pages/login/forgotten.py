"""A forgotten password: asking for a link by mail, and the page behind it."""

from typing import Any

from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import reverse
from django.views.decorators.http import require_http_methods

from base.problems import Problem
from dashboard.page import theme_of
from dashboard.pages.login.view import wait
from tenants import forgotten
from tenants.audit import Actor
from tenants.links import absolute


@require_http_methods(["GET", "POST"])
def forgot(request: HttpRequest) -> HttpResponse:
    """Answers the same whether there is such an account or not."""
    if not forgotten.is_offered():
        raise Http404("no mail, or no passwords")
    facts: dict[str, Any] = {"theme": theme_of(request), "email": request.POST.get("email", "")}
    headers: dict[str, str] = {}
    status = 200

    def link(number: str, token: str) -> str:
        return absolute(request, reverse("dashboard:reset", args=[number, token]))

    if request.method == "POST":
        try:
            forgotten.ask(request, address=facts["email"], link=link)
            facts["is_sent"] = True
        except Problem as problem:
            facts["error"], status = problem.detail, problem.status
        except PermissionDenied:
            (headers, facts["wait_minutes"]), status = wait(request), 429
    answer = render(request, "pages/login/forgot.html", facts, status=status)
    for name, value in headers.items():
        answer.headers[name] = value
    return answer


@require_http_methods(["GET", "POST"])
def reset(request: HttpRequest, number: str, token: str) -> HttpResponse:
    """The page behind the mailed link. Opening it changes nothing: mail scanners open links."""
    facts: dict[str, Any] = {"theme": theme_of(request)}
    status = 200
    try:
        user = forgotten.asked(number, token)
        facts["name"] = user.get_username()
        if request.method == "POST":
            actor = Actor(
                user.get_username(),
                getattr(request, "request_id", ""),
                id=f"user:{user.pk}",
                address=request.META.get("REMOTE_ADDR", ""),
            )
            forgotten.reset(number, token, password=request.POST.get("new", ""), actor=actor)
            facts["is_done"] = True
    except Problem as problem:
        facts["error"], status = problem.detail, problem.status
    answer = render(request, "pages/login/reset.html", facts, status=status)
    answer._has_been_logged = True  # type: ignore[attr-defined]  # Django would log the token
    return answer
