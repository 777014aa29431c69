"""Turns errors into problem documents: in DRF's views, in the middleware, on the error pages.

A refusal is answered in full; an unexpected error is logged once, and its text is not sent.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from django.core.exceptions import (
    DisallowedHost,
    ObjectDoesNotExist,
    PermissionDenied,
    RequestDataTooBig,
    SuspiciousOperation,
    ValidationError,
)
from django.db import DatabaseError, InterfaceError, OperationalError
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.urls import get_script_prefix
from django.views import defaults
from django.views.decorators.csrf import csrf_exempt
from rest_framework import exceptions
from rest_framework.response import Response

from base import log_events
from base.problems import CONTENT_TYPE, KINDS, Problem

PREFIXES = ("/api/", "/cache/", "/metrics")  # called by programs; other paths are pages for people
_BY_STATUS = {
    400: "malformed",
    401: "unauthorized",
    403: "forbidden",
    404: "not-found",
    405: "method-not-allowed",
    406: "not-acceptable",
    412: "precondition-failed",
    413: "too-large",
    415: "unsupported-media-type",
    429: "throttled",
}


def exception_handler(error: Exception, context: dict[str, Any]) -> Response | None:
    """DRF's hook. None if the error is no refusal: `ProblemMiddleware` then answers 500."""
    problem = as_problem(error)
    if problem is None:
        return None
    headers = {}
    if isinstance(error, exceptions.APIException):
        if login := getattr(error, "auth_header", None):
            headers["WWW-Authenticate"] = login
        if wait_s := getattr(error, "wait", None):
            headers["Retry-After"] = str(int(wait_s))
    headers = _retry_after(problem) | headers
    return Response(
        problem.document(), status=problem.status, headers=headers, content_type=CONTENT_TYPE
    )


def as_problem(error: Exception) -> Problem | None:
    """The problem document of a refusal; None for a bug or an outage."""
    match error:
        case Problem():
            return error
        case exceptions.ValidationError():
            return _malformed(error.detail)
        case exceptions.Throttled():
            wait_s = error.wait  # type: ignore[attr-defined]  # not in the stubs
            return Problem(
                "throttled",
                f"Too many requests: send the next one in {wait_s} s. Who needs more asks an "
                "operator for a higher rate.",
            )
        case exceptions.NotAuthenticated():
            return Problem("unauthorized", f"There are no credentials. {KINDS['unauthorized'][2]}")
        case exceptions.UnsupportedMediaType():
            return Problem(
                "unsupported-media-type",
                "Send JSON, with the header Content-Type: application/json.",
            )
        case exceptions.APIException() if error.status_code in _BY_STATUS:
            return Problem(_BY_STATUS[error.status_code], str(error.detail))
        case ValidationError():
            detail = error.message_dict if hasattr(error, "error_dict") else error.messages
            return _malformed(detail)
        # Also a row that another request deleted after this one found it.
        case Http404() | ObjectDoesNotExist():
            return Problem("not-found", "There is no such object.")
        case PermissionDenied():
            return Problem("forbidden", str(error) or "This needs another role.")
        case RequestDataTooBig():
            return Problem("too-large", str(error))
        case SuspiciousOperation():
            return Problem("malformed", str(error))
        case OperationalError() | InterfaceError():  # no connection, or no write lock in time
            log_events.DATABASE_UNAVAILABLE.log(error=error)
            return Problem("database-unavailable", "The database did not answer in time.")
        case _:
            return None


class ProblemMiddleware:
    """Last resort under /api and /cache: logs an unexpected exception, answers without its text."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        return self.get_response(request)

    def process_exception(self, request: HttpRequest, error: Exception) -> HttpResponse | None:
        if not request.path_info.startswith(PREFIXES):
            return _busy_page(error)
        problem = as_problem(error)
        if problem is None:
            log_events.REQUEST_FAILED.log(path=request.path, exc_info=error)
            problem = Problem("internal", "The platform failed to answer.")
        return respond(problem)


def respond(problem: Problem) -> HttpResponse:
    return JsonResponse(
        problem.document(),
        status=problem.status,
        headers=_retry_after(problem),
        content_type=CONTENT_TYPE,
    )


def _busy_page(error: Exception) -> HttpResponse | None:
    """The page for browsers while the database does not answer; None for other errors."""
    problem = as_problem(error) if isinstance(error, DatabaseError) else None
    if problem is None:
        return None
    text = f"{problem.detail} Reload this page in a moment.\n"
    return HttpResponse(
        text, status=problem.status, headers=_retry_after(problem), content_type="text/plain"
    )


def _retry_after(problem: Problem) -> dict[str, str]:
    waits = problem.status == 503 or problem.kind in ("idempotency-in-progress", "throttled")
    return {"Retry-After": "2"} if waits else {}


@csrf_exempt
def unknown_address(request: HttpRequest) -> HttpResponse:
    """404 for paths under /api and /cache that no route matches, also with DEBUG."""
    hint = " Addresses here end without a slash." if request.path.endswith("/") else ""
    hint += f" All addresses: {get_script_prefix()}api/v1/docs/"
    return respond(Problem("not-found", f"There is nothing at {request.path}.{hint}"))


def explain(request: HttpRequest, kind: str) -> HttpResponse:
    """The page behind a document's `type`."""
    if kind not in KINDS:
        raise Http404
    status, title, remedy = KINDS[kind]
    return HttpResponse(
        f"{title} ({status})\n\n{remedy}\n", content_type="text/plain; charset=utf-8"
    )


def _page(kind: str, default: Callable[..., HttpResponse]) -> Callable[..., HttpResponse]:
    def page(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        if request.path_info.startswith(PREFIXES):
            return respond(Problem(kind, KINDS[kind][2]))
        return default(request, *args, **kwargs)

    return page


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
    if isinstance(exception, DisallowedHost):
        return unknown_host(request)
    return _page("malformed", defaults.bad_request)(request, exception)


def unknown_host(request: HttpRequest) -> HttpResponse:
    """400 for a host outside ALLOWED_HOSTS: names the setting to change."""
    host = request.META.get("HTTP_HOST", "")[:255]
    detail = (
        f"The platform does not answer as {host!r}. If that is its right name, add it to "
        "NEVE_HOSTS of the platform, or set NEVE_URL to the address that people and nodes use."
    )
    problem = Problem("unknown-host", detail, host=host)
    if request.path_info.startswith(PREFIXES):
        return respond(problem)
    plain = "text/plain; charset=utf-8"
    return HttpResponse(f"{detail}\n", status=problem.status, content_type=plain)


forbidden = _page("forbidden", defaults.permission_denied)
not_found = _page("not-found", defaults.page_not_found)
server_error = _page("internal", defaults.server_error)


def _malformed(detail: Any) -> Problem:
    """Name the first wrong member in `field`; list all if there are several."""
    errors = [{"field": path, "detail": text} for path, text in _flatten(detail, "")]
    first = errors[0]
    members: dict[str, Any] = {"field": first["field"]} if first["field"] else {}
    if len(errors) > 1:
        members["errors"] = errors
    label = f"{first['field']}: " if first["field"] else ""
    return Problem("malformed", f"{label}{first['detail']}", **members)


def _flatten(detail: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(detail, Mapping):
        for name, inner in detail.items():
            name = str(name)
            here = path if name in ("non_field_errors", "__all__") else f"{path}.{name}".strip(".")
            yield from _flatten(inner, here)
    elif isinstance(detail, Sequence) and not isinstance(detail, str):
        for inner in detail:
            yield from _flatten(inner, path)
    else:
        yield path, str(detail)
