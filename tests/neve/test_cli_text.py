"""`neve`'s words for people: what reaches a terminal, how tables fit, how numbers read."""

from datetime import UTC, datetime, timedelta

import pytest

from neve.cli import exits, text
from neve.cli.nodes import node_row, one_a_node
from neve.cli.output import Column, Output, name, number, table_lines
from neve.errors import Misuse, Refused, Unavailable

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)

HOSTILE = [
    ("\x1b[2J\x1b]0;owned\x07", r"\x1b[2J\x1b]0;owned\x07"),
    ("a\rb\nc\td", r"a\x0db\x0ac\x09d"),
    ("\x9b31m", r"\x9b31m"),  # C1: an escape sequence in one character
    ("user\u202egnp.exe", r"user\u202egnp.exe"),  # reverses what follows
    ("\u2066x\u2069 \u200b \ufeff", r"\u2066x\u2069 \u200b \ufeff"),
    ("a\u2028b", r"a\u2028b"),
    ("\ud800", r"\ud800"),
    ("\x7f", r"\x7f"),
]


@pytest.mark.parametrize(("given", "shown"), HOSTILE)
def test_nothing_that_a_terminal_obeys_is_shown_as_it_is(given, shown):
    assert text.printable(given) == shown


@pytest.mark.parametrize("given", ["plain", "Größe", "日本語", "👩‍🚀", "[red]x[/red]", r"\x1b"])
def test_letters_of_any_script_stay(given):
    assert text.printable(given) == given


def test_a_table_escapes_each_cell_and_takes_no_markup():
    lines = table_lines((name("NAME"),), [["\x1b[31mred"], ["[bold]x[/bold]"]], width=None)
    assert [line.plain for line in lines] == ["NAME", r"\x1b[31mred", "[bold]x[/bold]"]


def test_errors_escape_what_others_wrote():
    assert "\x1b" not in exits.words(Misuse("no context is named '\x1b[2J'"))
    assert exits.describe(Refused("no", field="a", status=404)) == {
        "error": "no", "field": "a", "status": 404, "exit_code": exits.NOT_FOUND,
    }  # fmt: skip


COLUMNS = (
    name("NAME"),
    name("SPACE", drop=2),
    Column("STATE"),
    number("TOKENS"),
    Column("ID", drop=3),
)
ROWS = [
    ["a-context-with-a-rather-long-name-of-a-repository", "llama", "stored", "1,024", "8" * 36],
    ["日本語のとても長い名前のコンテキストと説明文です", "llama-70b", "lost", "12", "9" * 36],
]


GOLDEN = [
    "NAME                               SPACE      STATE   TOKENS",
    "a-context-with-a-rather-long-nam…  llama      stored   1,024",
    "日本語のとても長い名前のコンテキ…  llama-70b  lost        12",
]


@pytest.mark.parametrize("width", [32, 60, 80, 100, 132])
def test_a_table_fits_the_terminal(width):
    from rich.cells import cell_len

    lines = table_lines(COLUMNS, ROWS, width=width)
    assert max(cell_len(line.plain) for line in lines) <= width
    assert len(lines) == 1 + len(ROWS)
    assert all("1,024" in line.plain or "12" in line.plain for line in lines[1:])


def test_a_narrow_table_cuts_names_and_drops_what_matters_least():
    lines = [line.plain for line in table_lines(COLUMNS, ROWS, width=60)]
    assert lines == GOLDEN


def test_without_a_terminal_nothing_is_cut():
    lines = [line.plain for line in table_lines(COLUMNS, ROWS, width=None)]
    assert ROWS[0][0] in lines[1]
    assert ROWS[0][4] in lines[1]


@pytest.mark.parametrize(
    ("call", "shown"),
    [
        (text.size(None), "—"),
        (text.size(0), "0 B"),
        (text.size(1536), "1.5 KiB"),
        (text.size(200 << 20), "200 MiB"),
        (text.size(5 << 50), "5120 TiB"),
        (text.rate(1.25e9), "1.2 GB/s"),
        (text.count(1234567), "1,234,567"),
        (text.share(text.ratio(1, 3)), "33.3%"),
        (text.share(text.ratio(1, 0)), "—"),
        (text.span(45), "45s"),
        (text.span(5400), "1h30m"),
        (text.span(12 * 86400 + 3600), "12d"),
        (text.age("2026-03-01T09:00:00Z", NOW), "3h"),
        (text.left("2026-03-01T09:00:00Z", NOW), "over"),
        (text.when("2026-03-01T14:00:00+00:00", NOW), "2026-03-01 14:00 UTC (in 2h)"),
        (text.duration("1h30m"), timedelta(minutes=90)),
        (text.duration("2w"), timedelta(days=14)),
        (text.duration("soon"), None),
        (text.duration(""), None),
    ],
)
def test_numbers_read_well(call, shown):
    assert call == shown


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (exits.NotFound("x"), exits.NOT_FOUND),
        (exits.NoKey("x"), exits.NOT_ALLOWED),
        (exits.NeedsTerminal("x"), exits.USAGE),
        (exits.Failed("x"), exits.ERROR),
        (Misuse("x"), exits.ERROR),
        (Unavailable("x"), exits.UNAVAILABLE),
        (Refused("x", status=401), exits.NOT_ALLOWED),
        (Refused("x", status=403), exits.NOT_ALLOWED),
        (Refused("x", status=404), exits.NOT_FOUND),
        (Refused("x", status=409), exits.REFUSED),
        (Refused("x", status=412), exits.REFUSED),
        (Refused("x", status=400), exits.USAGE),
        (Refused("x", status=429), exits.UNAVAILABLE),
        (Refused("x", status=503), exits.UNAVAILABLE),
    ],
)
def test_each_error_has_its_exit_code(error, code):
    assert exits.exit_code(error) == code


def test_a_question_without_a_terminal_is_refused_and_yes_answers_it():
    out = Output()
    out.confirm("Really?", yes=True)
    with pytest.raises(exits.NeedsTerminal, match="--yes"):
        out.confirm("Really?", yes=False)


def test_a_scheduler_part_is_listed_by_itself_only_in_another_state_than_its_node():
    part = {"node": "loc/scheduler", "space": 1, "breaker": "closed"}
    node, other = part | {"node": "loc"}, part | {"node": "loc/dp1"}
    assert one_a_node([part, node, other]) == [node, other]
    assert one_a_node([part, other]) == [part, other]
    trouble = part | {"breaker": "open"}
    assert one_a_node([trouble, node]) == [trouble, node]


def test_the_hit_rate_of_a_node_is_that_of_all_its_sessions():
    row = {"node": "loc", "totals": {"hit_local_tokens": 9}}
    row["node_totals"] = {"requested_tokens": 12, "hit_local_tokens": 9, "local_read_bytes": 1024}
    cells = node_row(row, {}, datetime.now(UTC))
    assert cells[5:7] == ["75.0%", "1.0 KiB"]
