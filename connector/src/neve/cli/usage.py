"""`neve usage`: hit rate, traffic and misses over time."""

from collections.abc import Mapping
from typing import Any

import click

from neve.cli import text
from neve.cli.connection import Connection, platform_options
from neve.cli.output import Cell, Column, name, number
from neve.planner.causes import misses_of, ranked, summed

RANGES = ("15m", "1h", "6h", "24h", "7d", "30d")
GROUPS = ("tenant", "space", "node", "tier", "store")


@click.command()
@click.option("--range", "range_", type=click.Choice(RANGES), default="24h", show_default=True)
@click.option("--from", "since", metavar="MOMENT", help="In place of --range.")
@click.option("--to", "until", metavar="MOMENT", help="With --from.  [default: now]")
@click.option("--step", metavar="DURATION", help="With --by and --json: length of a point.")
@click.option("--by", type=click.Choice(GROUPS), help="A line for each.")
@click.option("--tenant", metavar="SLUG", help="[default: all that you may see]")
@platform_options
def usage(
    platform: Connection,
    range_: str,
    since: str | None,
    until: str | None,
    step: str | None,
    by: str | None,
    tenant: str | None,
) -> None:
    """Show hit rate, traffic, and why prompts were missed."""
    if until and not since:
        raise click.UsageError("--to goes with --from")
    window = {"from": since, "to": until} if since else {"range": range_}
    answer = platform.get("/usage", **window, step=step, by=by, tenant=tenant)
    words = f"{since} to {until or 'now'}" if since else f"last {range_}"

    def show() -> None:
        if by is None:
            say_usage(platform, answer.get("points") or [], words)
        else:
            _say_groups(platform, by, answer)

    platform.show(answer, show)


def say_usage(platform: Connection, points: list[dict[str, Any]], words: str) -> None:
    total = summed(points)
    asked, hit = tokens_of(total)
    last = points[-1] if points else {}
    facts: list[tuple[str, Cell]] = [
        ("time", words),
        ("prompts", f"{text.count(asked)} tokens"),
        (
            "hit rate",
            f"{text.share(text.ratio(hit, asked))} (hot "
            f"{text.share(text.ratio(total.get('hit_hot_tokens'), asked))}, cold "
            f"{text.share(text.ratio(total.get('hit_cold_tokens'), asked))}, local "
            f"{text.share(text.ratio(total.get('hit_local_tokens'), asked))})",
        ),
        (
            "read",
            f"{text.size(total.get('hot_read_bytes', 0))} hot, "
            f"{text.size(total.get('cold_read_bytes', 0))} cold, "
            f"{text.size(total.get('local_read_bytes', 0))} local",
        ),
        (
            "written",
            f"{text.size(total.get('hot_write_bytes', 0))} in "
            f"{text.count(total.get('put_blocks', 0))} blocks",
        ),
        (
            "not stored",
            f"{text.count(total.get('put_refused', 0))} refused by quota, "
            f"{text.count(total.get('dropped', 0))} dropped, "
            f"{text.count(total.get('corrupt', 0))} corrupt",
        ),
        (
            "held now",
            f"{text.size(last.get('hot_used_bytes'))} hot, "
            f"{text.size(last.get('cold_used_bytes'))} cold",
        ),
    ]
    platform.out.facts(facts)
    missed = misses_of(points)
    if any(missed.values()):
        platform.out.say("")
        say_misses(platform, missed)


def say_misses(platform: Connection, missed: Mapping[str, int]) -> None:
    """Reasons with their share, then the lever of each."""
    found = ranked(missed)
    platform.out.table(
        (Column("MISSED BECAUSE"), number("BLOCKS"), number("SHARE"), name("WHAT HAPPENED")),
        [
            [each.reason, text.count(each.blocks), text.share(each.share), each.what]
            for each in found
        ],
    )
    platform.out.say("")
    platform.out.facts((each.reason, each.lever) for each in found)


def tokens_of(counts: Mapping[str, Any]) -> tuple[int, int]:
    """(tokens of prompts, those of them that were loaded)."""
    asked = (counts.get("requested_tokens") or 0) + (counts.get("tail_tokens") or 0)
    return asked, sum(counts.get(f"hit_{tier}_tokens") or 0 for tier in ("hot", "cold", "local"))


def _say_groups(platform: Connection, by: str, answer: dict[str, Any]) -> None:
    rows: list[list[Cell]] = []
    # Each tier's hits are a part of all prompts.
    whole = tokens_of(summed(answer.get("points") or []))[0] if by == "tier" else None
    for group in answer["groups"]:
        total = group["totals"]
        asked = total["requested_tokens"] if whole is None else whole
        rows.append(
            [
                group["name"],
                text.count(asked),
                text.share(text.ratio(total["hit_tokens"], asked)),
                text.size(total["read_bytes"]),
                text.size(total["written_bytes"]),
                text.size(total["used_bytes"]),
            ]
        )
    columns = (
        name(by.upper()),
        number("PROMPT TOKENS"),
        number("HITS"),
        number("READ"),
        number("WRITTEN", drop=1),
        number("HELD", drop=2),
    )
    platform.out.table(columns, rows, empty="Nothing was counted in this time.")
