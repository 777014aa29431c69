"""Query strings, as strict as bodies: unknown and malformed parameters are refused by name.

A script that expires what it lists must not expire everything because of a misspelt filter. A view
declares the parameters of an operation in `takes`; a list adds those of its filter and its pages.
"""

import re
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from rest_framework.exceptions import ValidationError
from rest_framework.request import Request
from rest_framework.views import APIView

from base.problems import Problem
from cacheapi.base import durations
from cacheapi.base.fields import MAX_DURATION_S, NOT_BLANK, duration_within, unknown

FLAGS = {"true": True, "1": True, "false": False, "0": False}
MOST_CHARACTERS = 200  # of a text: no name is longer
DURATION = durations.SCHEMA
TEXT = {"type": "string", "minLength": 1, "maxLength": MOST_CHARACTERS, "pattern": NOT_BLANK}


def malformed(name: str, detail: str) -> Problem:
    return Problem("malformed", f"{name}: {detail}", field=name)


class StrictQuery(APIView):
    """For views: refuses parameters that the operation does not take, before it runs."""

    takes: Mapping[str, tuple[str, ...]] = {}  # action or method → names, besides those of lists
    # For the OpenAPI document. Action or method → verb in the operation's id; → statuses of
    # refusals besides those that every view's base sends.
    verbs: Mapping[str, str] = {}
    refusals: Mapping[str, tuple[int, ...]] = {}

    def query_names(self) -> tuple[str, ...]:
        action = getattr(self, "action", None) or str(self.request.method).lower()
        names = self.takes.get("get" if action == "head" else action, ())
        if action == "export":
            return (*names, *self.filterset_class.base_filters, "ordering", "format")  # type: ignore[attr-defined]
        if action != "list":
            return names
        # A list's view has both.
        filters = self.filterset_class.base_filters  # type: ignore[attr-defined]
        return (*names, *filters, *self.pagination_class.names)  # type: ignore[attr-defined]

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        super().initial(request, *args, **kwargs)
        if "Transfer-Encoding" in request.headers and "Content-Length" not in request.headers:
            # DRF reads a chunked body as empty: an action would run without its members.
            raise Problem("length-required", "Send the body with its Content-Length.")
        is_served = hasattr(self, (request.method or "").lower())  # else 405
        if is_served and request.method != "OPTIONS":
            require_known(request.query_params, self.query_names())


def require_known(given: Any, names: tuple[str, ...]) -> None:
    """Raises Problem (malformed) naming the first parameter that is unknown, empty or repeated."""
    for name, values in given.lists():
        shown = name if name.isprintable() else ascii(name)
        if name not in names:
            raise malformed(shown, unknown(name, names, "parameter"))
        if len(values) > 1:
            raise malformed(name, "is given more than once")
        if not values[0].strip():
            raise malformed(name, "is empty: give a value, or leave it out")
        if "\0" in values[0]:
            raise malformed(name, "has a NUL character")


def flag(request: Request, name: str, default: bool = False) -> bool:
    """A parameter that is true or false. Raises Problem (malformed)."""
    text = request.query_params.get(name)
    if text is None:
        return default
    if text not in FLAGS:
        raise malformed(name, f"need true or false, got {text[:60]!r}")
    return FLAGS[text]


def duration(request: Request, name: str, max_s: int = MAX_DURATION_S) -> int | None:
    """Whole seconds of a parameter such as `2h`; None without it. Raises Problem (malformed)."""
    text = request.query_params.get(name)
    if text is None:
        return None
    try:
        return duration_within(text, max_s=max_s)
    except ValidationError as error:
        raise malformed(name, str(error.detail[0])) from None  # type: ignore[index]  # a list


def number(request: Request, name: str, *, default: int, least: int, most: int) -> int:
    """A whole number. Raises Problem (malformed)."""
    text = request.query_params.get(name)
    if text is None:
        return default
    if not re.fullmatch(r"[0-9]{1,19}", text) or not least <= int(text) <= most:
        raise malformed(name, f"need a number from {least} to {most}, got {text[:60]!r}")
    return int(text)


def uuid_of(request: Request, name: str) -> UUID:
    """The UUID of a row; required. Raises Problem (malformed)."""
    text = request.query_params.get(name)
    if text is None:
        raise malformed(name, "is required")
    if not re.fullmatch(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", text):
        raise malformed(name, f"need a UUID, got {text[:60]!r}")
    return UUID(text)
