"""The admin has no sign-in of its own: it redirects to the dashboard's."""

from django.contrib.auth import REDIRECT_FIELD_NAME
from django.contrib.auth.views import redirect_to_login
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.urls import reverse


def admin_login(request: HttpRequest) -> HttpResponse:
    """Raises PermissionDenied for signed-in people who are no operators: else the redirects would
    never end."""
    if request.user.is_authenticated and not request.user.is_staff:
        raise PermissionDenied("The admin is for operators.")
    wanted = request.GET.get(REDIRECT_FIELD_NAME) or reverse("admin:index")
    return redirect_to_login(wanted, reverse("dashboard:login"))
