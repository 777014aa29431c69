"""What commands write: tables and facts for people, JSON for programs.

Standard output holds the answer and nothing else; questions, progress and notes go to standard
error. All text passes `neve.cli.text.printable`, so that no name reaches the terminal as a command.
Colours only on a terminal, and not with NO_COLOR.
"""

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from neve.cli.exits import NeedsTerminal
from neve.cli.text import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

GAP = 2  # columns of space between columns
_EASY, _LEAST = 24, 8  # a cut cell keeps so many columns; the second if nothing else helps

Cell = str | tuple[str, str]  # text, or text with a style of rich


@dataclass(frozen=True)
class Column:
    """`is_cut`: may be shortened with "…" to fit. `drop`: the column with the largest number
    leaves first if the table is too wide; 0: it never leaves."""

    title: str
    is_right: bool = False
    is_cut: bool = False
    drop: int = 0


def number(title: str, *, drop: int = 0) -> Column:
    return Column(title, is_right=True, drop=drop)


def name(title: str, *, drop: int = 0) -> Column:
    return Column(title, is_cut=True, drop=drop)


def table_lines(
    columns: Sequence[Column], rows: Sequence[Sequence[Cell]], *, width: int | None
) -> "list[Text]":
    """A header and a line for each row, none wider than `width`; None: as wide as needed."""
    from rich.cells import cell_len, set_cell_size
    from rich.text import Text

    cells = [[_text_and_style(cell) for cell in row] for row in rows]
    natural = [
        max([cell_len(column.title), *(cell_len(row[place][0]) for row in cells)])
        for place, column in enumerate(columns)
    ]
    widths = _fit(columns, natural, width)

    def line(texts: Sequence[tuple[str, str]]) -> Text:
        made = Text(no_wrap=True, end="")
        for place, room in widths.items():
            text, style = texts[place]
            if cell_len(text) > room:
                text = set_cell_size(text, room - 1) + "…"
            space = " " * (room - cell_len(text))
            if made:
                made.append(" " * GAP)
            made.append(space if columns[place].is_right else "")
            made.append(text, style)
            made.append("" if columns[place].is_right else space)
        made.rstrip()
        return made

    return [line([(column.title, "bold") for column in columns]), *map(line, cells)]


def _text_and_style(cell: Cell) -> tuple[str, str]:
    text, style = (cell, "") if isinstance(cell, str) else cell
    return printable(text), style


def _fit(columns: Sequence[Column], natural: Sequence[int], width: int | None) -> dict[int, int]:
    """Widths by place of the columns that stay: cut a little, then drop columns, then cut more."""
    widths = dict(enumerate(natural))
    if width is None:
        return widths
    droppable = sorted(
        (place for place in widths if columns[place].drop),
        key=lambda place: columns[place].drop,
    )
    while (cut := _cut(columns, widths, width, least=_EASY)) is None and droppable:
        del widths[droppable.pop()]
    if cut is None:
        cut = _cut(columns, widths, width, least=_LEAST)
    return cut or {  # a very narrow terminal wraps lines
        place: min(room, _LEAST) if columns[place].is_cut else room
        for place, room in widths.items()
    }


def _cut(
    columns: Sequence[Column], widths: dict[int, int], width: int, *, least: int
) -> dict[int, int] | None:
    """The widest columns that may be cut made narrower until all fit; None: they do not."""
    cut = dict(widths)
    while (over := sum(cut.values()) + GAP * (len(cut) - 1) - width) > 0:
        wide = [place for place in cut if columns[place].is_cut and cut[place] > least]
        if not wide:
            return None
        widest = max(wide, key=cut.__getitem__)
        next_one = max([least, *(cut[place] for place in wide if place != widest)])
        cut[widest] -= max(1, min(over, cut[widest] - next_one))
    return cut


class Output:
    """`as_json`: standard output is one JSON document, or JSON Lines for streams."""

    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json

    @property
    def console(self) -> "Console":
        """Of standard output, as it is now."""
        return _console(sys.stdout)

    def document(self, value: Any) -> None:
        """A JSON document. Control characters and letters beyond ASCII are escaped."""
        click.echo(json.dumps(value, indent=2))

    def line(self, value: Any) -> None:
        """One line of JSON Lines, at once."""
        click.echo(json.dumps(value, separators=(",", ":")))
        sys.stdout.flush()

    def table(
        self, columns: Sequence[Column], rows: Iterable[Sequence[Cell]], *, empty: str = "Nothing."
    ) -> None:
        """`empty`: words in place of a table without rows, on standard error."""
        found = list(rows)
        if not found:
            self.note(empty)
            return
        console = self.console
        width = console.width if console.is_terminal else None
        for line in table_lines(columns, found, width=width):
            console.print(line, soft_wrap=True)

    def facts(self, facts: Iterable[tuple[str, Cell]]) -> None:
        """Labels with values; long values are folded beside their label."""
        from rich.table import Table
        from rich.text import Text

        found = [(printable(label), *_text_and_style(value)) for label, value in facts]
        console = self.console
        if not console.is_terminal:
            room = max((len(label) for label, _, _ in found), default=0)
            for label, text, _ in found:
                click.echo(f"{label:<{room}}  {text}".rstrip())
            return
        grid = Table.grid(padding=(0, GAP))
        grid.add_column(style="bold", no_wrap=True)
        grid.add_column(overflow="fold")
        for label, text, style in found:
            grid.add_row(label, Text(text, style))
        console.print(grid)

    def say(self, text: str, style: str = "") -> None:
        from rich.text import Text

        self.console.print(Text(printable(text, keep_lines=True), style), soft_wrap=True)

    def note(self, text: str) -> None:
        """A line for people on standard error."""
        click.echo(printable(text, keep_lines=True), err=True)

    def confirm(self, question: str, *, yes: bool) -> None:
        """Asks unless `yes`. Raises `NeedsTerminal` if nobody can answer; a no ends the command."""
        if yes:
            return
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise NeedsTerminal(f"{question} Nobody can answer here: give --yes to go on")
        click.confirm(printable(question, keep_lines=True), abort=True, err=True)

    @contextmanager
    def progress(self, what: str) -> "Iterator[Progress]":
        """A bar on standard error if that is a terminal, else a line whenever the state changes;
        nothing with `as_json`."""
        shown = Progress(printable(what), is_quiet=self.as_json)
        with shown:
            yield shown


class Progress:
    def __init__(self, what: str, *, is_quiet: bool) -> None:
        self._what, self._is_quiet = what, is_quiet
        self._last = ""
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> "Progress":
        if not self._is_quiet and sys.stderr.isatty():
            from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                TextColumn("{task.percentage:>3.0f} %"),
                TextColumn("{task.fields[state]}", markup=False),
                TimeElapsedColumn(),
                console=_console(sys.stderr),
                transient=True,
            )
            self._bar.__enter__()
            self._task = self._bar.add_task(self._what, total=1.0, state="")
        return self

    def update(self, part: float | None, state: str) -> None:
        """`part`: 0 to 1; None: unknown."""
        state = printable(state)
        if self._bar is not None:
            self._bar.update(self._task, completed=part or 0.0, state=state)
        elif not self._is_quiet and state != self._last:
            self._last = state
            click.echo(f"{self._what}: {state}", err=True)

    def __exit__(self, *error: Any) -> None:
        if self._bar is not None:
            self._bar.__exit__(*error)


def _console(file: Any) -> "Console":
    from rich.console import Console

    return Console(file=file, highlight=False, markup=False, emoji=False)
