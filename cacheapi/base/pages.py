"""Pages of lists, by cursor: the sort key and the primary key of the row where a page begins.

Null sorts as the smallest value, on SQLite and on PostgreSQL.
"""

import base64
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django.core.exceptions import FieldDoesNotExist, ValidationError
from django.db.models import F, Model, Q, QuerySet
from django.db.models.expressions import OrderBy
from rest_framework.pagination import BasePagination
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.utils.urls import replace_query_param

from cacheapi.base.queries import flag, malformed
from neve.formats.space import is_plain


@dataclass(frozen=True)
class Order:
    """Rows by `key`, then by primary key. `name`: the list and its order, for cursors."""

    key: str
    is_descending: bool
    field: Any  # of the model, or of an annotation
    pk: Any
    name: str
    may_be_null: bool

    def sorted(self, rows: QuerySet[Any], *, backwards: bool = False) -> QuerySet[Any]:
        falling = self.is_descending != backwards
        return rows.order_by(*[self._by(key, falling) for key in dict.fromkeys((self.key, "pk"))])

    def _by(self, key: str, falling: bool) -> OrderBy:
        nulls = True if key != "pk" and self.may_be_null else None
        return F(key).desc(nulls_last=nulls) if falling else F(key).asc(nulls_first=nulls)

    def after(
        self, rows: QuerySet[Any], place: tuple[Any, Any], *, backwards: bool = False
    ) -> QuerySet[Any]:
        """Rows behind `place`, the key and the primary key of a row."""
        value, pk = place
        falling = self.is_descending != backwards
        beyond = Q(pk__lt=pk) if falling else Q(pk__gt=pk)
        if self.key == "pk":
            return rows.filter(beyond)
        here = Q(**{f"{self.key}__isnull": True})
        if value is None:
            return rows.filter(here & beyond if falling else (here & beyond) | ~here)
        # A range of the key first, so that an index on it serves.
        side = "lt" if falling else "gt"
        beyond |= Q(**{f"{self.key}__{side}": value})
        further = Q(**{f"{self.key}__{side}e": value}) & beyond
        return rows.filter(further | here if falling and self.may_be_null else further)

    def place_of(self, row: Model) -> tuple[Any, Any]:
        return (row.pk if self.key == "pk" else getattr(row, self.key)), row.pk


def order_of(request: Request, rows: QuerySet[Any], view: Any) -> Order:
    """The order that is asked for. `view.never_null`: nullable sort keys that its rows all have, so
    that PostgreSQL may use an index. Raises Problem (malformed)."""
    asked: str = request.query_params.get("ordering", view.orderings[0])
    allowed = both_ways(view.orderings)
    if asked not in allowed:
        raise malformed("ordering", f"need one of {', '.join(allowed)}, got {asked[:60]!r}")
    key = "pk" if asked.lstrip("-") == "id" else asked.lstrip("-")
    meta = rows.model._meta
    try:
        field = meta.pk if key == "pk" else meta.get_field(key)
    except FieldDoesNotExist:
        field = rows.query.annotations[key].output_field
    may_be_null = field.null and key not in getattr(view, "never_null", ())
    name = f"{meta.label_lower} {asked}"
    return Order(key, asked.startswith("-"), field, meta.pk, name, may_be_null)


class Pages(BasePagination):
    """A view's `orderings` are its sort keys: fields or annotations. The first is the default and
    must not change: a row whose value changes meanwhile moves between pages."""

    names = ("cursor", "page_size", "ordering", "total")
    page_size = 50
    max_page_size = 500

    def paginate_queryset(self, queryset: Any, request: Request, view: Any = None) -> list[Any]:
        self.request = request
        size = self._page_size(request)
        order = order_of(request, queryset, view)
        self.total = queryset.count() if flag(request, "total") else None
        cursor = request.query_params.get("cursor")
        place, backwards = (None, False) if cursor is None else _decoded(cursor, order)
        rows = order.sorted(queryset, backwards=backwards)
        if place is not None:
            rows = order.after(rows, place, backwards=backwards)
        found = list(rows[: size + 1])
        has_more, page = len(found) > size, found[:size]
        if backwards:
            page.reverse()
        has_next, has_previous = (True, has_more) if backwards else (has_more, cursor is not None)
        self.next_cursor = self.previous_cursor = None
        if page and has_next:
            self.next_cursor = _encoded(order, order.place_of(page[-1]), backwards=False)
        if page and has_previous:
            self.previous_cursor = _encoded(order, order.place_of(page[0]), backwards=True)
        return page

    def get_paginated_response(self, data: Any) -> Response:
        counted = {} if self.total is None else {"total": self.total}
        return Response(
            {
                "next": self._address(self.next_cursor),
                "previous": self._address(self.previous_cursor),
                "next_cursor": self.next_cursor,
                "previous_cursor": self.previous_cursor,
                **counted,
                "results": data,
            }
        )

    def _address(self, cursor: str | None) -> str | None:
        if cursor is None:
            return None
        return str(replace_query_param(self.request.build_absolute_uri(), "cursor", cursor))

    def _page_size(self, request: Request) -> int:
        text = request.query_params.get("page_size")
        if text is None:
            return self.page_size
        if not re.fullmatch(r"[0-9]{1,9}", text) or not 1 <= int(text) <= self.max_page_size:
            raise malformed(
                "page_size", f"need a number from 1 to {self.max_page_size}, got {text[:60]!r}"
            )
        return int(text)

    def get_paginated_response_schema(self, schema: dict[str, Any]) -> dict[str, Any]:
        address = {"type": "string", "nullable": True, "format": "uri"}
        cursor = {"type": "string", "nullable": True, "description": "null: there is none"}
        return {
            "type": "object",
            "properties": {
                "next": {**address, "description": "address of the next page"},
                "previous": {**address, "description": "address of the page before"},
                "next_cursor": cursor,
                "previous_cursor": cursor,
                "total": {
                    "type": "integer",
                    "minimum": 0,
                    "description": "rows of all pages; only with total=true",
                },
                "results": schema,
            },
            "required": ["next", "previous", "next_cursor", "previous_cursor", "results"],
        }

    def get_schema_operation_parameters(self, view: Any) -> list[dict[str, Any]]:
        return [
            parameter(
                "cursor",
                "where a page begins: `next_cursor` or `previous_cursor` as it is",
                {"type": "string", "minLength": 1},
            ),
            parameter(
                "page_size",
                f"rows of a page; {self.page_size} unless given",
                {"type": "integer", "minimum": 1, "maximum": self.max_page_size},
            ),
            ordering_parameter(view.orderings),
            parameter("total", "true: count the rows of all pages", {"type": "boolean"}),
        ]


def _encoded(order: Order, place: tuple[Any, Any], *, backwards: bool) -> str:
    value, pk = place
    text = None if value is None else str(value)
    whole = json.dumps([order.name, backwards, text, str(pk)], separators=(",", ":"))
    return base64.urlsafe_b64encode(whole.encode()).decode().rstrip("=")


def _decoded(cursor: str, order: Order) -> tuple[tuple[Any, Any], bool]:
    """The place that a cursor names, and whether its page ends there. Raises Problem."""
    try:
        raw = base64.b64decode(f"{cursor}{'=' * (-len(cursor) % 4)}", b"-_", validate=True)
        name, backwards, text, pk = json.loads(raw)
        if name != order.name or type(backwards) is not bool:
            raise ValueError
        if text is None and not order.may_be_null:
            raise ValueError
        value = None if text is None else _value(order.field, text)
        return (value, _value(order.pk, pk)), backwards
    except (TypeError, ValueError, RecursionError, OverflowError, ValidationError):
        raise malformed(
            "cursor", "belongs to no page of this list in this order: send `next_cursor` as it is"
        ) from None


def _value(field: Any, text: Any) -> Any:
    if not isinstance(text, str) or not is_plain(text):
        raise ValueError
    return field.clean(text, None)


def both_ways(orderings: Sequence[str]) -> tuple[str, ...]:
    keys = [each.lstrip("-") for each in orderings]
    return tuple(sign + key for key in keys for sign in ("", "-"))


def parameter(name: str, description: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": name,
        "in": "query",
        "required": False,
        "description": description,
        "schema": schema,
    }


def ordering_parameter(orderings: Sequence[str]) -> dict[str, Any]:
    return parameter(
        "ordering",
        f"sort key, - for descending; {orderings[0]} unless given. Rows that change while you walk "
        "the pages may be missed with a key that changes.",
        {"type": "string", "enum": list(both_ways(orderings))},
    )
