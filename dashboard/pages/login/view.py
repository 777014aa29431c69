"""Signing in and out, for the pages and the admin: by password, with a code, by single sign-on."""

import math
from typing import Any

from allauth.account.internal.flows.login import perform_password_login
from allauth.account.models import Login
from allauth.socialaccount.adapter import get_adapter
from django.conf import settings
from django.contrib.auth.forms import AuthenticationForm
from django.contrib.auth.views import LoginView, LogoutView
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase
from django.shortcuts import redirect, render
from django.utils import timezone
from django.utils.http import url_has_allowed_host_and_scheme
from django.views.decorators.http import require_GET, require_http_methods
from requests import RequestException

from base import log_events
from dashboard.page import theme_of
from tenants import forgotten, second_factor, single_sign_on
from tenants.provider import PROVIDER, come_back


class SignIn(LoginView):
    template_name = "pages/login/page.html"
    redirect_authenticated_user = True
    next_page = "dashboard:overview"

    def get_context_data(self, **context: Any) -> dict[str, Any]:
        return super().get_context_data(
            theme=theme_of(self.request),
            sso=settings.ENV.oidc_name if settings.ENV.oidc_url else "",
            with_password=settings.ENV.password_login,
            may_reset=forgotten.is_offered(),
            refusal=self.request.session.pop(single_sign_on.REFUSAL, ""),
            **context,
        )

    def form_valid(self, form: AuthenticationForm) -> HttpResponse:
        """Signs in, or asks for the second factor first."""
        login = Login(user=form.get_user(), redirect_url=self.get_success_url())
        answer: HttpResponse = perform_password_login(self.request, {}, login)
        return answer

    def form_invalid(self, form: AuthenticationForm) -> HttpResponse:
        """429 while too many passwords were wrong (`tenants.signing_in`)."""
        headers, wait_minutes = wait(self.request)
        if not headers:
            return super().form_invalid(form)
        context = self.get_context_data(form=form, wait_minutes=wait_minutes)
        return self.render_to_response(context, status=429, headers=headers)


def sign_in(request: HttpRequest) -> HttpResponseBase:
    return SignIn.as_view()(request)


def sign_out(request: HttpRequest) -> HttpResponseBase:
    return LogoutView.as_view(next_page="dashboard:login")(request)


@require_http_methods(["GET", "POST"])
def code(request: HttpRequest) -> HttpResponse:
    """Asks for a code of the second factor, between password and session."""
    stage = second_factor.pending(request)
    if stage is None:
        return redirect("dashboard:login")
    facts: dict[str, Any] = {"theme": theme_of(request)}
    if request.method == "GET":
        return render(request, "pages/login/code.html", facts)
    try:
        answer = second_factor.pass_with(request, stage, request.POST.get("code", ""))
    except PermissionDenied:
        headers, facts["wait_minutes"] = wait(request)
        refused = render(request, "pages/login/code.html", facts, status=429)
        refused.headers["Retry-After"] = headers["Retry-After"]
        return refused
    if answer is not None:
        return answer
    return render(request, "pages/login/code.html", facts | {"is_wrong": True})


@require_GET
def sso(request: HttpRequest) -> HttpResponseBase:
    """Sends the browser to the provider of identities. A link, no form: the security policy lets no
    form lead to another host. Other sites' links and pictures do not begin a sign-in."""
    if not settings.ENV.oidc_url:
        raise Http404("no provider of identities")
    if request.headers.get("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none"):
        return redirect("dashboard:login")
    wanted = request.GET.get("next", "")
    is_safe = url_has_allowed_host_and_scheme(
        wanted, allowed_hosts={request.get_host()}, require_https=request.is_secure()
    )
    process = "login"
    if request.GET.get("link"):
        until = request.session.pop(single_sign_on.MAY_LINK, 0)
        if not request.user.is_authenticated or until < timezone.now().timestamp():
            return redirect("dashboard:account")
        process = "connect"
    provider = get_adapter(request).get_provider(request, PROVIDER)
    try:
        begun: HttpResponseBase = provider.begin(
            request, process=process, next_url=wanted if is_safe and wanted else None
        )
    except (RequestException, KeyError, ValueError) as error:
        log_events.SSO_FAILED.log(error=type(error).__name__)
        return single_sign_on.refuse(request, "The provider does not answer. Try again later.")
    return begun


def sso_callback(request: HttpRequest) -> HttpResponseBase:
    """Where the provider sends the browser back to."""
    if not settings.ENV.oidc_url:
        raise Http404("no provider of identities")
    return come_back(request)


def wait(request: HttpRequest) -> tuple[dict[str, str], int]:
    """Headers and minutes until the next attempt; none if it may come now."""
    until = getattr(request, "locked_until", None)
    if until is None:
        return {}, 0
    wait_s = max(math.ceil((until - timezone.now()).total_seconds()), 1)
    return {"Retry-After": str(wait_s)}, math.ceil(wait_s / 60)
