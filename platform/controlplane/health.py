"""/healthz: the web process serves and its database answers. Storage being down is no reason to
restart the web process, so it is not asked here; the dashboard shows it.

It answers whatever host it is called by, with TLS or without: probes call an address.
"""

from collections.abc import Callable

from django.db import connection
from django.http import HttpRequest, HttpResponse


def healthz(request: HttpRequest) -> HttpResponse:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    return HttpResponse("ok\n", content_type="text/plain")


class HealthMiddleware:
    """Answers /healthz before anything looks at the host or the scheme."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        return healthz(request) if request.path_info == "/healthz" else self.get_response(request)
