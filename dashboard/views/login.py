"""Signing in and out."""

from django.contrib.auth.views import LoginView, LogoutView
from django.http import HttpRequest, HttpResponseBase
from django.urls import reverse_lazy

from dashboard.pages import theme_of, with_policy


@with_policy
def sign_in(request: HttpRequest) -> HttpResponseBase:
    view = LoginView.as_view(
        template_name="dashboard/login.html",
        redirect_authenticated_user=True,
        extra_context={"theme": theme_of(request)},
        next_page=reverse_lazy("dashboard:overview"),
    )
    return view(request)


@with_policy
def sign_out(request: HttpRequest) -> HttpResponseBase:
    return LogoutView.as_view(next_page=reverse_lazy("dashboard:login"))(request)
