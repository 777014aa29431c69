"""Signing in and out, for the pages and the admin."""

import math
from typing import Any

from django.contrib.auth.forms import AuthenticationForm
from django.contrib.auth.views import LoginView, LogoutView
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.utils import timezone

from dashboard.page import theme_of


class SignIn(LoginView):
    template_name = "pages/login/page.html"
    redirect_authenticated_user = True
    next_page = "dashboard:overview"

    def get_context_data(self, **context: Any) -> dict[str, Any]:
        return super().get_context_data(theme=theme_of(self.request), **context)

    def form_invalid(self, form: AuthenticationForm) -> HttpResponse:
        """429 while too many passwords were wrong (`tenants.signing_in`)."""
        until = getattr(self.request, "locked_until", None)
        if until is None:
            return super().form_invalid(form)
        wait_s = max(math.ceil((until - timezone.now()).total_seconds()), 1)
        context = self.get_context_data(form=form, wait_minutes=math.ceil(wait_s / 60))
        headers = {"Retry-After": str(wait_s)}
        return self.render_to_response(context, status=429, headers=headers)


def sign_in(request: HttpRequest) -> HttpResponseBase:
    return SignIn.as_view()(request)


def sign_out(request: HttpRequest) -> HttpResponseBase:
    return LogoutView.as_view(next_page="dashboard:login")(request)
