"""Every request has an id: the caller's own, if it is a plain one, else a new one.

The request under way can be asked for where no caller hands it on (the audit by signals).
"""

import re
from collections.abc import Callable
from contextvars import ContextVar
from uuid import uuid4

from django.http import HttpRequest, HttpResponse

PLAIN = re.compile(r"[A-Za-z0-9._-]{1,64}")

_current: ContextVar[HttpRequest | None] = ContextVar("neve_request", default=None)


def current_request() -> HttpRequest | None:
    """The request that is being answered; None in commands and tasks."""
    return _current.get()


class RequestIdMiddleware:
    """Sets `request.request_id` and answers with it in X-Request-ID."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        given = request.headers.get("X-Request-ID", "")
        request_id = given if PLAIN.fullmatch(given) else uuid4().hex
        request.request_id = request_id  # type: ignore[attr-defined]  # others read it by `getattr`
        token = _current.set(request)
        try:
            response = self.get_response(request)
        finally:
            _current.reset(token)
        response["X-Request-ID"] = request_id
        return response
