"""Request ids and timing. The id is the caller's X-Request-ID if it matches PLAIN, else a new one.

Log lines carry the id; durations are counted by route. `current_request` serves code that no caller
passes the request to (the audit by signals).
"""

import re
import time
from collections.abc import Callable
from contextvars import ContextVar
from functools import lru_cache
from uuid import uuid4

from django.http import HttpRequest, HttpResponse
from structlog.contextvars import bind_contextvars, clear_contextvars

from base import counting

PLAIN = re.compile(r"[A-Za-z0-9._-]{1,64}")
NO_ROUTE = "(none)"  # static files, health checks, redirects, unknown addresses

_current: ContextVar[HttpRequest | None] = ContextVar("neve_request", default=None)


def current_request() -> HttpRequest | None:
    """The current request; None in commands and tasks."""
    return _current.get()


class RequestIdMiddleware:
    """Sets `request.request_id` and returns it in X-Request-ID."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        given = request.headers.get("X-Request-ID", "")
        request_id = given if PLAIN.fullmatch(given) else uuid4().hex
        request.request_id = request_id  # type: ignore[attr-defined]  # others read it by `getattr`
        token, began = _current.set(request), time.monotonic()
        clear_contextvars()  # not at the end: Django logs refusals after all middleware
        bind_contextvars(request_id=request_id)
        try:
            response = self.get_response(request)
        finally:
            _current.reset(token)
        route = _template(request.resolver_match.route) if request.resolver_match else NO_ROUTE
        counting.WEB_REQUESTS.add(route, str(response.status_code))
        counting.WEB_SECONDS.add(time.monotonic() - began, route)
        response["X-Request-ID"] = request_id
        return response


@lru_cache(maxsize=1024)  # more than there are routes
def _template(route: str) -> str:
    """`api/v1/^contexts/(?P<pk>[^/.]+)/$` as `/api/v1/contexts/<pk>/`; all of the admin as one."""
    from django.contrib.admindocs.views import simplify_regex  # imports models

    return "/admin/" if route.startswith("admin/") else str(simplify_regex(route))
