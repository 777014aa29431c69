"""Refuses NUL characters, which PostgreSQL cannot hold: in addresses, cookies and forms.

JSON bodies are refused by the parser of `cacheapi.base`; headers by the server.
"""

from collections.abc import Callable
from typing import Any

from django.http import HttpRequest, HttpResponse, QueryDict

from base.problem_responses import PREFIXES, respond
from base.problems import Problem

NUL = "\x00"


class NulMiddleware:
    """Answers 400, which names the field. Before the session is read."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        if NUL in request.path_info:
            return _refuse(request, "address")
        for name, value in request.COOKIES.items():
            if NUL in value:
                return _refuse(request, f"cookie {name[:60]}")
        has_some = "%00" in request.META.get("QUERY_STRING", "")
        refused = _refuse_in(request, request.GET) if has_some else None
        return refused or self.get_response(request)

    def process_view(
        self, request: HttpRequest, view: Callable[..., Any], args: Any, kwargs: Any
    ) -> HttpResponse | None:
        """Looks at forms only: views of REST, exempt from CSRF tokens, read their bodies."""
        if request.method == "POST" and not getattr(view, "csrf_exempt", False):
            return _refuse_in(request, request.POST)
        return None


def _refuse_in(request: HttpRequest, fields: QueryDict) -> HttpResponse | None:
    for name, values in fields.lists():
        if any(NUL in each for each in (name, *values)):
            return _refuse(request, name.replace(NUL, "")[:60])
    return None


def _refuse(request: HttpRequest, field: str) -> HttpResponse:
    problem = Problem("malformed", f"{field}: has a NUL character.", field=field)
    if request.path_info.startswith(PREFIXES):
        return respond(problem)
    plain = "text/plain; charset=utf-8"
    return HttpResponse(f"{problem.detail}\n", status=problem.status, content_type=plain)
