"""Query strings, as strict as bodies: what is unknown or unreadable is refused by name.

A script that expires what it lists must not expire everything because of a misspelt filter. What an
operation takes is declared once: in a view's `takes`, and for lists by its filters and its pages.
"""

import base64
import json
import re
from collections.abc import Mapping
from typing import Any

import django_filters
from django import forms
from django.core.exceptions import ValidationError
from django.db.models import QuerySet
from django_filters.rest_framework import DjangoFilterBackend
from drf_spectacular.contrib.django_filters import DjangoFilterExtension
from rest_framework.pagination import Cursor, CursorPagination
from rest_framework.request import Request
from rest_framework.utils.urls import replace_query_param

from cacheapi.fields import MAX_INT, NOT_BLANK, unknown
from controlplane.problems import Problem

FLAGS = {"true": True, "1": True, "false": False, "0": False}
MOST_CHARACTERS = 200  # of a text: no name is longer
TEXT = {"type": "string", "minLength": 1, "maxLength": MOST_CHARACTERS, "pattern": NOT_BLANK}
# Source: CursorPagination.offset_cutoff
MOST_OFFSET = 1000


def malformed(name: str, detail: str) -> Problem:
    return Problem("malformed", f"{name}: {detail}", field=name)


class StrictQuery:
    """For views: refuses parameters that the operation does not take, before it runs."""

    takes: Mapping[str, tuple[str, ...]] = {}  # action or method → names, besides those of lists

    def query_names(self) -> tuple[str, ...]:
        action = getattr(self, "action", None) or self.request.method.lower()  # type: ignore[attr-defined]
        names = self.takes.get("get" if action == "head" else action, ())
        if action != "list":
            return names
        filters = self.filterset_class.base_filters  # type: ignore[attr-defined]
        return (*names, *filters, *self.pagination_class.names)  # type: ignore[attr-defined]

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        super().initial(request, *args, **kwargs)  # type: ignore[misc]
        if "Transfer-Encoding" in request.headers and "Content-Length" not in request.headers:
            # DRF takes it for no body: an action would do what the body did not say.
            raise Problem("length-required", "Send the body with its Content-Length.")
        is_served = hasattr(self, request.method.lower())  # else it is 405, whatever it asks
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


class _FlagField(forms.Field):
    def to_python(self, value: Any) -> bool | None:
        if value is None:
            return None
        if value not in FLAGS:
            raise ValidationError(f"need true or false, got {value[:60]!r}")
        return FLAGS[value]


class _NumberField(forms.Field):
    def to_python(self, value: Any) -> int | None:
        if value is None:
            return None
        if not re.fullmatch(r"[0-9]{1,19}", value) or not 1 <= int(value) <= MAX_INT:
            raise ValidationError(f"need a number from 1 to 2⁶³-1, got {value[:60]!r}")
        return int(value)


class Flag(django_filters.BooleanFilter):
    field_class = _FlagField
    schema = {"type": "boolean"}


class RowNumber(django_filters.NumberFilter):
    """The primary key of a row."""

    field_class = _NumberField
    schema = {"type": "integer", "minimum": 1, "maximum": MAX_INT}

    def get_max_validator(self) -> None:
        return None


class Text(django_filters.CharFilter):
    schema = TEXT

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, max_length=MOST_CHARACTERS, **kwargs)


class Filters(DjangoFilterBackend):
    """Of its own only so that the OpenAPI document tells the bounds of the filters above."""


class _FilterBounds(DjangoFilterExtension):
    target_class = "cacheapi.queries.Filters"
    priority = 1

    def resolve_filter_field(self, *args: Any) -> Any:
        parameters = super().resolve_filter_field(*args)
        for parameter in parameters:
            parameter["schema"] |= getattr(args[-1], "schema", {})
        return parameters


class Pages(CursorPagination):
    """Pages by cursor. A view's `orderings` are its sort keys; the first, the default, is stable: a
    value that changes while a client walks would move rows between its pages."""

    names = ("cursor", "page_size", "ordering")
    page_size = 50
    max_page_size = 500
    offset_cutoff = MOST_OFFSET

    def get_ordering(self, request: Request, queryset: QuerySet, view: Any) -> tuple[str, ...]:
        self.model = queryset.model
        asked: str = request.query_params.get("ordering", view.orderings[0])
        allowed = _both_ways(view.orderings)
        if asked not in allowed:
            raise malformed("ordering", f"need one of {', '.join(allowed)}, got {asked[:60]!r}")
        key = "pk" if asked.lstrip("-") == "id" else asked.lstrip("-")
        sign = "-" if asked.startswith("-") else ""
        return (f"{sign}{key}",) if key == "pk" else (f"{sign}{key}", f"{sign}pk")

    def get_page_size(self, request: Request) -> int:
        text = request.query_params.get("page_size")
        if text is None:
            return self.page_size
        if not re.fullmatch(r"[0-9]{1,9}", text) or not 1 <= int(text) <= self.max_page_size:
            raise malformed(
                "page_size", f"need a number from 1 to {self.max_page_size}, got {text[:60]!r}"
            )
        return int(text)

    def encode_cursor(self, cursor: Cursor) -> str:
        """The address of a page. A cursor holds: list and ordering, offset, direction, position."""
        whole = json.dumps([self._sorted_by(), *cursor], separators=(",", ":"))
        encoded = base64.urlsafe_b64encode(whole.encode()).decode().rstrip("=")
        return str(replace_query_param(self.base_url, "cursor", encoded))

    def decode_cursor(self, request: Request) -> Cursor | None:
        encoded = request.query_params.get("cursor")
        if encoded is None:
            return None
        try:
            raw = base64.b64decode(f"{encoded}{'=' * (-len(encoded) % 4)}", b"-_", validate=True)
            sorted_by, offset, is_reverse, position = json.loads(raw)
            if position is not None:
                field = self.model._meta.get_field(self._key()) if self._key() != "pk" else None
                (field or self.model._meta.pk).clean(position, None)
        except (TypeError, ValueError, RecursionError, ValidationError):
            sorted_by = None
        if (
            sorted_by != self._sorted_by()
            or type(offset) is not int
            or not 0 <= offset <= MOST_OFFSET
            or type(is_reverse) is not bool
            or not isinstance(position, str | None)
        ):
            raise malformed(
                "cursor", "belongs to no page of this list in this order: follow `next` as it is"
            )
        return Cursor(offset=offset, reverse=is_reverse, position=position)

    def _key(self) -> str:
        return str(self.ordering[0].lstrip("-"))

    def _sorted_by(self) -> str:
        return f"{self.model._meta.label_lower} {self.ordering[0]}"

    def get_schema_operation_parameters(self, view: Any) -> list[dict[str, Any]]:
        return [
            _parameter(
                "cursor",
                "where a page begins: follow `next` and `previous` as they are",
                {"type": "string", "minLength": 1},
            ),
            _parameter(
                "page_size",
                f"rows of a page; {self.page_size} unless given",
                {"type": "integer", "minimum": 1, "maximum": self.max_page_size},
            ),
            _parameter(
                "ordering",
                f"sort key, - for descending; {view.orderings[0]} unless given. Rows that change "
                "while you walk the pages may be missed with a key that changes.",
                {"type": "string", "enum": list(_both_ways(view.orderings))},
            ),
        ]


def _both_ways(orderings: tuple[str, ...]) -> tuple[str, ...]:
    keys = [each.lstrip("-") for each in orderings]
    return tuple(sign + key for key in keys for sign in ("", "-"))


def _parameter(name: str, description: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": name,
        "in": "query",
        "required": False,
        "description": description,
        "schema": schema,
    }
