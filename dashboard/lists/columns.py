"""Columns and filters of a list, and how a value becomes a cell."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from django.db.models import QuerySet

if TYPE_CHECKING:
    from dashboard.lists.listing import List
    from dashboard.scope import Scope

_NUMBERS = ("count", "size", "rate", "percent", "ms", "duration", "ago", "number")
KINDS = frozenset({*_NUMBERS, "text", "moment", "until", "state", "bar", "html"})
Options = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Column:
    """`name`: in the address and in CSV. `path`: of the value, through attributes and keys, the
    name unless given; `value` computes it instead. `order`: what a QuerySet is sorted by, `path`
    unless given; "" for a column that cannot be sorted. A row list is sorted by the value.

    `kind` "bar": the value is a ratio. "state": the value is the class, `words` its text. "html":
    `template` gets `row`, `cell`, `listing` and `scope`.
    """

    name: str
    label: str
    kind: str = "text"
    path: str = ""
    value: Callable[[Any], Any] | None = None
    order: str | None = None
    link: Callable[[Any, "Scope"], str | None] | None = None
    words: Callable[[Any], str] | None = None
    note: Callable[[Any], str] | None = None  # small text after the value
    template: str = ""
    unit: str = ""  # of a "count"
    colour: str = "cold"  # of a "bar": its fill
    hint: str = ""  # the head's title
    shown: bool = True  # unless the address chooses columns
    in_csv: bool = True
    is_head_silent: bool = False  # the head is for screen readers only

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"column {self.name}: there is no kind {self.kind!r}")
        if self.kind == "html" and not self.template:
            raise ValueError(f"column {self.name}: html needs a template")

    @property
    def is_number(self) -> bool:
        return self.kind in _NUMBERS

    @property
    def sort_path(self) -> str:
        """What the database sorts by; "" for nothing."""
        return (self.path or self.name).replace(".", "__") if self.order is None else self.order

    def value_of(self, row: Any) -> Any:
        return self.value(row) if self.value is not None else look_up(row, self.path or self.name)


@dataclass(frozen=True)
class Choice:
    """A filter: a select of `options` (value, label), or of what they are for this list. `path`: of
    the attribute (for a QuerySet with `__`); `apply` filters by itself instead."""

    name: str
    label: str
    options: Options | Callable[["List"], Options]
    path: str = ""
    apply: Callable[[Any, str], Any] | None = None

    def options_of(self, listing: "List") -> Options:
        return self.options(listing) if callable(self.options) else self.options

    def filtered(self, rows: Any, value: str) -> Any:
        if self.apply is not None:
            return self.apply(rows, value)
        path = self.path or self.name
        if isinstance(rows, QuerySet):
            return rows.filter(**{path.replace(".", "__"): value})
        return [row for row in rows if str(look_up(row, path)) == value]


@dataclass(frozen=True)
class Cell:
    """One value of one row, as the tag `list_cell` draws it."""

    column: Column
    row: Any
    value: Any
    url: str | None
    words: str
    note: str


def look_up(row: Any, path: str) -> Any:
    """The value behind a path of attributes and keys ("space.name"); None where one is missing."""
    for name in path.replace("__", ".").split("."):
        if row is None:
            return None
        row = row.get(name) if isinstance(row, Mapping) else getattr(row, name, None)
        if callable(row) and not isinstance(row, type):
            row = row()
    return row


def plain(value: Any) -> Any:
    """A value as CSV holds it: raw numbers, times with their offset, "" for None."""
    if value is None:
        return ""
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, (bool, int, float, str, dict, list)):
        return value
    return str(value)
