"""`neve savings` and `neve prices`: what stored context is worth, and the prices that count."""

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import click

from neve.cli.connection import Connection, platform_options
from neve.cli.contexts import write_lines
from neve.cli.output import Cell, Column, name, number
from neve.planner.prices import LIST_PRICES_FROM, PRICE_NAMES
from neve.planner.savings import money_text

_WORDS = {
    "prefill": "prefill that loads spared",
    "loads": "time waited for those loads",
    "slower": "loads slower than computing",
    "hot": "hot tier",
    "cold": "object store",
    "requests": "requests to the object store",
    "egress": "bytes read from the object store",
}


@click.command()
@click.option("--month", metavar="YYYY-MM", help="[default: this month, UTC]")
@click.option("--months", type=click.IntRange(1, 36), help="So many that end with --month.")
@click.option("--by", type=click.Choice(["tenant", "space"]), default="tenant", show_default=True)
@click.option("--tenant", metavar="SLUG", help="[default: all that you may see]")
@click.option("--csv", "as_csv", is_flag=True, help="All figures as CSV, for charge-back.")
@click.option("--jsonl", "as_jsonl", is_flag=True, help="The same as JSON Lines.")
@click.option("--output", "-o", type=click.Path(dir_okay=False, writable=True), metavar="FILE")
@platform_options
def savings(
    platform: Connection,
    month: str | None,
    months: int | None,
    by: str,
    tenant: str | None,
    as_csv: bool,
    as_jsonl: bool,
    output: str | None,
) -> None:
    """Show what stored context saved and cost."""
    query = {"month": month, "months": months, "by": by, "tenant": tenant}
    if as_csv and as_jsonl:
        raise click.UsageError("give either --csv or --jsonl")
    if as_csv or as_jsonl:
        form = "csv" if as_csv else "jsonl"
        write_lines(platform, platform.lines("/savings/export", **query, format=form), output)
        return
    if output:
        raise click.UsageError("--output goes with --csv or --jsonl")
    answer = platform.get("/savings", **query)
    platform.show(answer, lambda: _say(platform, answer, by))


def _say(platform: Connection, answer: Mapping[str, Any], by: str) -> None:
    rows: list[dict[str, Any]] = answer["rows"]
    columns = (
        Column("MONTH"),
        name("TENANT"),
        *([name("SPACE")] if by == "space" else []),
        number("SAVED", drop=2),
        number("COST", drop=1),
        number("NET"),
        Column("IN"),
    )

    def cells(row: dict[str, Any]) -> list[Cell]:
        space = [str((row["space"] or {}).get("name", ""))] if by == "space" else []
        net = _money(row["net"])
        return [
            *(row["month"], row["tenant"], *space, _money(row["gross"]), _money(row["costs"])),
            (net, "red") if Decimal(row["net"]) < 0 else net,
            row["currency"],
        ]

    platform.out.table(
        columns, map(cells, rows), empty="Nothing was stored, loaded or counted in this time."
    )
    if len(rows) == 1:
        _say_one(platform, rows[0])
    for words in dict.fromkeys(words for row in rows for words in row["notes"].values()):
        platform.out.note(words)


def _say_one(platform: Connection, row: Mapping[str, Any]) -> None:
    platform.out.say("")
    platform.out.facts(
        (
            _WORDS.get(line["name"], line["name"]),
            f"{_plain(line['quantity'])} {line['unit']} × {line['price']} {row['currency']} per "
            f"{line['per']} = {_money(line['amount'])}",
        )
        for line in row["lines"]
    )
    net = Decimal(row["net"])
    platform.out.say(f"{'Loss' if net < 0 else 'Net'}: {_money(str(abs(net)))} {row['currency']}")


def _money(amount: str) -> str:
    return money_text(Decimal(amount))


def _plain(quantity: str) -> str:
    return f"{Decimal(quantity).normalize():,f}"


@click.group()
def prices() -> None:
    """Prices of GPUs, memory, storage and requests, which savings count with."""


@prices.command("show")
@platform_options
def show_prices(platform: Connection) -> None:
    """Show the prices of today, and since when."""
    answer = platform.get("/prices")
    platform.show(answer, lambda: _say_prices(platform, answer))


def _say_prices(platform: Connection, answer: Mapping[str, Any]) -> None:
    platform.out.facts(
        [
            ("since", _since(answer["valid_from"])),
            *((each, f"{answer[each]} {answer['currency']}") for each in PRICE_NAMES),
        ]
    )
    others = [_since(each["valid_from"]) for each in answer["versions"]]
    if len(others) > 1:
        platform.out.note(f"Versions from {', '.join(others)}: --json shows all.")


def _since(day: str) -> str:
    return "always: list prices" if day == LIST_PRICES_FROM.isoformat() else day


@prices.command("set")
@click.option("--from", "valid_from", metavar="DAY", help="First day.  [default: today, UTC]")
@click.option("--gpu-hour", metavar="PRICE", help="One GPU for one hour.")
@click.option("--hot-gib-hour", metavar="PRICE", help="One GiB of the hot tier for one hour.")
@click.option("--cold-gib-month", metavar="PRICE", help="One GiB in S3 for one month.")
@click.option("--put-1000", metavar="PRICE", help="1,000 PUT, POST, COPY or LIST requests.")
@click.option("--get-1000", metavar="PRICE", help="1,000 GET or HEAD requests.")
@click.option("--egress-gb", metavar="PRICE", help="10^9 bytes read from S3.")
@click.option("--currency", metavar="CODE", help="Such as EUR; from the first of a month.")
@platform_options
def set_prices(platform: Connection, valid_from: str | None, **changes: str | None) -> None:
    """Change prices from a day on. Past months keep theirs. For operators."""
    if not any(changes.values()):
        raise click.UsageError("give at least one price, or --currency")
    answer = platform.call("PATCH", "/prices", {"valid_from": valid_from, **changes})
    platform.show(answer, lambda: _say_prices(platform, answer))
