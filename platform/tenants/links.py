"""Addresses of pages that are sent to people: they begin with NEVE_URL, else as the request's."""

from typing import Any

from django.conf import settings
from django.urls import reverse


def invitation_link(request: Any, token: str) -> str:
    """A Host header of an attacker must not lead people away: set NEVE_URL, or keep NEVE_HOSTS
    narrow."""
    path = reverse("dashboard:invitation", args=[token])
    url = settings.ENV.url
    if url.netloc:
        return f"{url.scheme}://{url.netloc}{path}"
    return str(request.build_absolute_uri(path))
