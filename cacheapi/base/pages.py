"""Pages of lists, by cursor."""

import base64
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.core.exceptions import ValidationError
from django.db.models import IntegerField, QuerySet
from rest_framework.pagination import CursorPagination
from rest_framework.request import Request
from rest_framework.utils.urls import replace_query_param

from cacheapi.base import keysets
from cacheapi.base.queries import malformed


@dataclass(frozen=True)
class Place:
    """Where a page begins: behind the row with this value and primary key; `is_backward`: it ends
    before that row."""

    is_backward: bool
    value: Any
    pk: Any


class Pages(CursorPagination):
    """A view's `orderings` are its sort keys. The first is the default and must not change:
    a row whose value changes meanwhile moves between pages."""

    names = ("cursor", "page_size", "ordering")
    page_size = 50
    max_page_size = 500

    def get_ordering(self, request: Request, queryset: QuerySet[Any], view: Any) -> tuple[str, ...]:
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

    def paginate_queryset(  # type: ignore[override]  # of rows of a database only
        self, queryset: QuerySet[Any], request: Request, view: Any = None
    ) -> list[Any]:
        self.request = request
        self.base_url = request.build_absolute_uri()
        self.size = self.get_page_size(request)
        self.ordering = self.get_ordering(request, queryset, view)
        self.place = self.decode_cursor(request)
        is_backward = self.place is not None and self.place.is_backward
        falling = self.ordering[0].startswith("-") != is_backward
        rows = keysets.ordered(queryset, self._key(), falling=falling)
        if self.place is not None:
            place = self.place
            rows = keysets.behind(rows, self._key(), place.value, place.pk, falling=falling)
        found = list(rows[: self.size + 1])
        has_more, self.page = len(found) > self.size, found[: self.size]
        if is_backward:
            self.page.reverse()
        # A page that a cursor led to has a neighbour on the side where the cursor came from.
        self.has_next = has_more if not is_backward else True
        self.has_previous = has_more if is_backward else self.place is not None
        return self.page

    def get_next_link(self) -> str | None:
        return self._link(self.page[-1], is_backward=False) if self.has_next and self.page else None

    def get_previous_link(self) -> str | None:
        if not (self.has_previous and self.page):
            return None
        return self._link(self.page[0], is_backward=True)

    def _link(self, row: Any, *, is_backward: bool) -> str:
        """The address of the page behind a row, or before it."""
        value, pk = getattr(row, self._key()), row.pk
        parts = [self._sorted_by(), is_backward, value, pk]
        whole = json.dumps(parts, separators=(",", ":"), default=_text)
        encoded = base64.urlsafe_b64encode(whole.encode()).decode().rstrip("=")
        return str(replace_query_param(self.base_url or "", "cursor", encoded))

    def decode_cursor(self, request: Request) -> Place | None:  # type: ignore[override]
        encoded = request.query_params.get("cursor")
        if encoded is None:
            return None
        try:
            raw = base64.b64decode(f"{encoded}{'=' * (-len(encoded) % 4)}", b"-_", validate=True)
            sorted_by, is_backward, value, pk = json.loads(raw)
            if sorted_by != self._sorted_by() or type(is_backward) is not bool:
                raise ValueError
            return Place(is_backward, self._cleaned(self._key(), value), self._cleaned("pk", pk))
        except (TypeError, ValueError, OverflowError, RecursionError, ValidationError):
            raise malformed(
                "cursor", "belongs to no page of this list in this order: follow `next` as it is"
            ) from None

    def _cleaned(self, key: str, value: Any) -> Any:
        """A cursor's value as its field has it. Raises ValidationError, ValueError, TypeError."""
        field = keysets.field_of(self.model._base_manager.all(), key)
        if value is None:
            if not field.null:
                raise ValueError
            return None
        is_number = isinstance(field, IntegerField)
        if type(value) is not (int if is_number else str):
            raise TypeError
        if isinstance(value, str) and "\0" in value:
            raise ValueError
        return field.clean(value, None)

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


def _text(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


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
