"""`neve explore`: a measure by its parts, what changed most first."""

from collections.abc import Mapping
from typing import Any

import click

from neve.cli import text
from neve.cli.connection import Connection, platform_options
from neve.cli.output import Cell, Column, name, number
from neve.cli.usage import RANGES

MEASURES = (
    *("hit_rate", "hit_tokens", "miss_blocks", "read_bytes", "write_bytes", "load_p50"),
    *("load_p99", "refused", "cold_refused", "dropped", "hot_used", "cold_used", "dirty_age"),
)
SPLITS = ("tenant", "space", "node", "label", "context", "reason", "tier")


@click.command()
@click.argument("measure", type=click.Choice(MEASURES), default="hit_rate")
@click.option("--split", type=click.Choice(SPLITS), default="tenant", show_default=True)
@click.option("--range", "range_", type=click.Choice(RANGES), default="1h", show_default=True)
@click.option("--from", "since", metavar="MOMENT", help="In place of --range.")
@click.option("--to", "until", metavar="MOMENT", help="With --from.  [default: now]")
@click.option(
    "--against",
    type=click.Choice(["before", "yesterday"]),
    default="before",
    show_default=True,
    help="The window before, or the same time yesterday.",
)
@click.option("--tenant", metavar="SLUG", help="[default: all that you may see]")
@click.option("--space", type=int, metavar="NUMBER")
@click.option("--node", metavar="HOST")
@click.option("--label", metavar="LABEL", help="A context's label, or name:text.")
@platform_options
def explore(
    platform: Connection,
    measure: str,
    split: str,
    range_: str,
    since: str | None,
    until: str | None,
    against: str,
    tenant: str | None,
    space: int | None,
    node: str | None,
    label: str | None,
) -> None:
    """Show a measure by its parts: what changed most against the time before stands first."""
    if until and not since:
        raise click.UsageError("--to goes with --from")
    window = {"from": since, "to": until} if since else {"range": range_}
    answer = platform.get(
        "/explore",
        **{"measure": measure, "split": split, "against": against, **window},
        **{"tenant": tenant, "space": space, "node": node, "label": label},
    )
    platform.show(answer, lambda: _say(platform, answer))


def _say(platform: Connection, answer: Mapping[str, Any]) -> None:
    unit = answer["unit"]
    columns = (
        name(answer["split"].upper()),
        number("NOW"),
        number("BEFORE", drop=1),
        number("CHANGE"),
        number("SHARE", drop=2),
        Column("MAIN REASON", drop=3),
    )
    rows = [*answer["groups"], {**answer["total"], "name": "all"}]

    def cells(row: Mapping[str, Any]) -> list[Cell]:
        words = "other" if row["is_rest"] else row["name"]
        return [
            words,
            _value(row["value"], unit),
            _value(row["before"], unit),
            _change(row["change"], unit),
            text.share(row["share"]),
            row["main_reason"] or text.NOTHING,
        ]

    platform.out.table(columns, map(cells, rows), empty=answer["why_not"] or "Nothing was counted.")
    if answer["why_not"]:
        platform.out.note(answer["why_not"])
    if answer["left_out"]:
        platform.out.note(f"{text.count(answer['left_out'])} more: narrow it, or --json.")
    for each in answer["changes"][:8]:
        by = f", by {each['by']}" if each["by"] else ""
        platform.out.note(f"{each['at']} {each['tenant']}: {each['words']}{by}")


def _value(value: float | None, unit: str) -> str:
    if value is None:
        return text.NOTHING
    match unit:
        case "percent":
            return text.share(value)
        case "bytes":
            return text.size(value)
        case "ms" | "s":
            return f"{value:,.4g} {unit}"
        case _:
            return text.count(value)


def _change(change: float | None, unit: str) -> str:
    """A difference; of a hit rate in points."""
    if change is None:
        return text.NOTHING
    sign = "+" if change > 0 else "−" if change < 0 else "±"
    if unit == "percent":
        return f"{sign}{abs(100 * change):.1f} pt"
    return f"{sign}{_value(abs(change), unit)}"
