"""Addresses of pages that leave the platform: they begin with NEVE_URL, else as the request's.

Without NEVE_URL, a forged Host header could lead people away: NEVE_HOSTS refuses other names.
"""

from typing import Any

from django.conf import settings
from django.urls import reverse


def absolute(request: Any, path: str) -> str:
    url = settings.ENV.url
    if url.netloc:
        return f"{url.scheme}://{url.netloc}{path}"
    return str(request.build_absolute_uri(path))


def invitation_link(request: Any, token: str) -> str:
    return absolute(request, reverse("dashboard:invitation", args=[token]))
