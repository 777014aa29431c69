"""/healthz: the web process serves and its database answers. Storage being down is no reason to
restart the web process, so it is not asked here; the dashboard shows it."""

from django.db import connection
from django.http import HttpRequest, HttpResponse


def healthz(request: HttpRequest) -> HttpResponse:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    return HttpResponse("ok\n", content_type="text/plain")
