"""Pages of lists, by cursor."""

import base64
import json
import re
from collections.abc import Mapping
from typing import Any

from django.core.exceptions import ValidationError
from django.db.models import QuerySet
from rest_framework.pagination import Cursor, CursorPagination
from rest_framework.request import Request
from rest_framework.utils.urls import replace_query_param

from cacheapi.base.queries import malformed

# Source: CursorPagination.offset_cutoff
MOST_OFFSET = 1000


class Pages(CursorPagination):
    """A view's `orderings` are its sort keys. The first is the default and must not change:
    a row whose value changes meanwhile moves between pages."""

    names = ("cursor", "page_size", "ordering")
    page_size = 50
    max_page_size = 500
    offset_cutoff = MOST_OFFSET

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

    def encode_cursor(self, cursor: Cursor) -> str:
        """The address of a page. A cursor holds: list and ordering, offset, direction, position."""
        whole = json.dumps([self._sorted_by(), *cursor], separators=(",", ":"))
        encoded = base64.urlsafe_b64encode(whole.encode()).decode().rstrip("=")
        return str(replace_query_param(self.base_url or "", "cursor", encoded))

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
        # The stubs take a position for a number; it is the text of a value.
        return Cursor(offset=offset, reverse=is_reverse, position=position)  # type: ignore[arg-type]

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
