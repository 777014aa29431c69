"""A list of a page: what the address asks for, of a QuerySet or a sequence of rows."""

from collections.abc import Iterator, Sequence
from functools import cached_property, reduce
from operator import or_
from typing import Any, ClassVar

from django.core.paginator import Page, Paginator
from django.db.models import F, Q, QuerySet
from django.http import Http404, HttpRequest, HttpResponseBase

from base.exports import cell, csv_lines, streamed
from dashboard.lists.columns import Cell, Choice, Column, look_up, plain
from dashboard.scope import Scope

STEP = 500  # rows of CSV that are read at a time
MOST_SEARCHED = 200  # characters
TAKES = ("q", "sort", "cols", "page", "format")


class List:
    """Subclasses say columns, filters and order; a view makes one from a request's rows.

        listing = NodeList(request, scope, rows)
        if listing.wants_csv:
            return listing.csv()

    An unknown sort, column or value of a filter is 404, as an unknown parameter is. A page past the
    last is the last. Filters must not carry names of the scope.
    """

    TAKES: ClassVar[tuple[str, ...]] = TAKES
    name: ClassVar[str]  # of its CSV file and of its part
    title: ClassVar[str] = ""  # heading and name for screen readers; "": the page's name
    columns: ClassVar[tuple[Column, ...]]
    filters: ClassVar[tuple[Choice, ...]] = ()
    search: ClassVar[tuple[str, ...]] = ()  # paths; none: no search
    search_label: ClassVar[str] = "Search"
    default_sort: ClassVar[str] = ""  # name of a column, or a path; "": the rows' own order
    rows: ClassVar[int] = 25
    nothing: ClassVar[str] = "parts/list_nothing.html"  # the empty state: says what to do next
    row_class: ClassVar[str] = ""  # path of a row's class
    prefix: ClassVar[str] = ""  # of its parameters, where a page has several lists

    def __init__(self, request: HttpRequest, scope: Scope, rows: Any, **extra: Any) -> None:
        self.request, self.scope, self.extra = request, scope, extra
        self._all = rows
        self.search_text = self._asked("q").strip()
        if len(self.search_text) > MOST_SEARCHED or "\0" in self.search_text:
            raise Http404("too long a search")
        self.chosen = {each.name: self._asked(each.name) for each in self.filters}
        self.sort = self._asked("sort") or self.default_sort
        self.shown = self._shown(self._asked("cols"))
        form = self._asked("format")
        if form not in ("", "csv"):
            raise Http404("the only other form is csv")
        self.wants_csv = form == "csv"
        asked = self._asked("page") or "1"
        if not (asked.isascii() and asked.isdigit() and len(asked) < 10):
            raise Http404("page is a number")
        self._page = int(asked)

    @classmethod
    def takes(cls) -> tuple[str, ...]:
        """All parameters, for `@page(*NodeList.takes())`."""
        names = (*TAKES, *(each.name for each in cls.filters))
        return tuple(f"{cls.prefix}{name}" for name in names)

    def on_page(self) -> list[Any]:
        """Rows of the page that the address asks for."""
        return list(self.page)

    def prepared(self, rows: Sequence[Any]) -> Sequence[Any]:
        """Rows of one page, or of one step of CSV, as columns read them. To be overridden, where
        figures of a row cost a query."""
        return rows

    # What the address asks for

    @cached_property
    def found(self) -> Any:
        """All rows that the address asks for, in order."""
        rows = self._all
        for each in self.filters:
            if value := self.chosen[each.name]:
                if value not in {one for one, _ in each.options_of(self)}:
                    raise Http404("no such choice")
                rows = each.filtered(rows, value)
        if self.search_text and self.search:
            rows = self._searched(rows)
        return self._sorted(rows)

    @cached_property
    def page(self) -> Page[Any]:
        return Paginator(self.found, self.rows).get_page(self._page)

    @cached_property
    def shown_rows(self) -> list[tuple[Any, str, list[Cell]]]:
        """Of this page: each row with its class and its cells."""
        found = []
        for row in self.prepared(self.on_page()):
            name = look_up(row, self.row_class) if self.row_class else ""
            found.append((row, str(name or ""), self._cells(row)))
        return found

    @property
    def is_narrowed(self) -> bool:
        """Whether search or filters leave rows out."""
        return bool(self.search_text) or any(self.chosen.values())

    # What the template offers

    @property
    def part(self) -> str:
        return f"list-{self.name}"

    @cached_property
    def summary(self) -> str:
        """Words about all rows that the list finds, below it. To be overridden."""
        return ""

    @property
    def heads(self) -> list[dict[str, Any]]:
        """Of each shown column: its sort link, and how it is sorted now."""
        return [
            {"column": column, "url": self._sort_url(column), "sorted": self._direction(column)}
            for column in self.shown
        ]

    @property
    def choices(self) -> list[dict[str, Any]]:
        return [
            {"choice": each, "options": each.options_of(self), "value": self.chosen[each.name]}
            for each in self.filters
        ]

    @property
    def toggles(self) -> list[dict[str, Any]]:
        """Of each column: whether it is shown, and the address that turns that. The first stays."""
        names = [column.name for column in self.shown]
        found = []
        for column in self.columns[1:]:
            is_shown = column.name in names
            then = [each.name for each in self.columns if (each.name in names) != (each is column)]
            url = self._here(cols=",".join(then), page=None)
            found.append({"column": column, "is_shown": is_shown, "url": url})
        return found

    @property
    def kept(self) -> list[tuple[str, str]]:
        """Parameters that the form of search and filters keeps, as hidden fields."""
        own = ("q", "page", *(each.name for each in self.filters))
        return self.scope.fields(*(f"{self.prefix}{name}" for name in own))

    @property
    def all_url(self) -> str:
        """Without search and filters."""
        return self._here(q=None, page=None, **dict.fromkeys(self.chosen, None))

    @property
    def csv_url(self) -> str:
        return self._here(format="csv", page=None)

    @property
    def previous_url(self) -> str:
        return self._here(page=self.page.number - 1) if self.page.has_previous() else ""

    @property
    def next_url(self) -> str:
        return self._here(page=self.page.number + 1) if self.page.has_next() else ""

    # CSV

    def csv(self) -> HttpResponseBase:
        """All rows that the address asks for, with all columns, whatever is shown.

        Raises Http404 before the answer begins: a choice or an order that is not there.
        """
        return streamed(
            self.request,
            self._steps(self.found),
            tenant_ids=self.scope.person.tenant_ids,
            file_name=f"{self.name}.csv",
        )

    def _steps(self, found: Any) -> Iterator[bytes]:
        columns = [column for column in self.columns if column.in_csv]
        yield csv_lines([[column.name for column in columns]])
        at = 0
        while part := list(found[at : at + STEP]):
            yield csv_lines(
                [
                    [cell(plain(column.value_of(row))) for column in columns]
                    for row in self.prepared(part)
                ]
            )
            at += STEP

    # Inside

    def _asked(self, name: str) -> str:
        return self.request.GET.get(f"{self.prefix}{name}", "")

    def _here(self, **changes: object) -> str:
        changes = {f"{self.prefix}{name}": value for name, value in changes.items()}
        return self.scope.here(**changes)

    def _shown(self, asked: str) -> tuple[Column, ...]:
        if not asked:
            return tuple(column for column in self.columns if column.shown)
        names = asked.split(",")
        if unknown := set(names) - {column.name for column in self.columns}:
            raise Http404(f"no such column: {min(unknown)}")
        return tuple(
            column
            for place, column in enumerate(self.columns)
            if column.name in names or place == 0
        )

    def _searched(self, rows: Any) -> Any:
        if isinstance(rows, QuerySet):
            paths = (path.replace(".", "__") for path in self.search)
            fits = reduce(or_, (Q(**{f"{path}__icontains": self.search_text}) for path in paths))
            return rows.filter(fits)
        words = self.search_text.casefold()
        return [
            row
            for row in rows
            if any(words in str(look_up(row, path) or "").casefold() for path in self.search)
        ]

    def _sorted(self, rows: Any) -> Any:
        if not self.sort:
            return rows
        name, is_down = self.sort.removeprefix("-"), self.sort.startswith("-")
        column = next((each for each in self.columns if each.name == name), None)
        if column is not None and not column.sort_path:
            column = None
        if column is None and self.sort != self.default_sort:
            raise Http404("no such order")
        if isinstance(rows, QuerySet):
            path = name.replace(".", "__") if column is None else column.sort_path
            by = F(path).desc(nulls_last=True) if is_down else F(path).asc(nulls_last=True)
            return rows.order_by(by, "-pk" if is_down else "pk")  # so that one index serves both
        known: list[tuple[Any, Any]] = []
        unknown: list[tuple[Any, Any]] = []
        for row in rows:
            value = look_up(row, name) if column is None else column.value_of(row)
            (unknown if value is None else known).append((value, row))
        known.sort(key=lambda pair: _sort_key(pair[0]), reverse=is_down)
        return [row for _, row in (*known, *unknown)]

    def _direction(self, column: Column) -> str:
        if self.sort.removeprefix("-") != column.name:
            return ""
        return "descending" if self.sort.startswith("-") else "ascending"

    def _sort_url(self, column: Column) -> str:
        """Numbers begin with the largest, words with A; a second time turns the order."""
        if not column.sort_path:
            return ""
        now = self._direction(column)
        is_down = now == "ascending" if now else column.is_number or column.kind == "bar"
        return self._here(sort=f"-{column.name}" if is_down else column.name, page=None)

    def _cells(self, row: Any) -> list[Cell]:
        found = []
        for column in self.shown:
            value = column.value_of(row)
            is_link = column.link is not None and not (value is None and column.is_number)
            found.append(
                Cell(
                    column=column,
                    row=row,
                    value=value,
                    url=column.link(row, self.scope) if column.link and is_link else None,
                    words="" if column.words is None else column.words(row),
                    note="" if column.note is None else column.note(row),
                )
            )
        return found


def _sort_key(value: Any) -> Any:
    return value.casefold() if isinstance(value, str) else value
