"""`neve spaces`: KV layouts, and why two of them do not share."""

from datetime import UTC, datetime
from typing import Any

import click

from neve.cli import text
from neve.cli.connection import Connection, platform_options
from neve.cli.names import find_space
from neve.cli.output import Cell, Column, name, number


@click.group()
def spaces() -> None:
    """KV layouts: only engines of one space share blocks."""


@spaces.command("ls")
@click.option("--tenant", metavar="SLUG")
@click.option("--model", metavar="MODEL", help="Only of this model.")
@platform_options
def spaces_ls(platform: Connection, tenant: str | None, model: str | None) -> None:
    """List spaces."""
    found = list(platform.rows("/spaces", {"tenant": tenant, "model": model}))
    now = datetime.now(UTC)

    def row(space: dict[str, Any]) -> list[Cell]:
        identity = space.get("identity") or {}
        return [
            str(space["id"]),
            space["name"],
            str((space.get("loss") or {}).get("codec", text.NOTHING)),
            str(identity.get("model", text.NOTHING)),
            str(identity.get("dtype", text.NOTHING)),
            text.count(space.get("chunk_tokens")),
            text.size(identity.get("bytes_per_token")),
            str(space.get("fingerprint", ""))[:12],
            text.age(space.get("created_at"), now),
        ]

    columns = (
        number("ID"),
        name("NAME"),
        Column("LOSSY"),
        name("MODEL"),
        Column("DTYPE", drop=2),
        number("CHUNK", drop=3),
        number("PER TOKEN", drop=4),
        Column("FINGERPRINT", drop=1),
        Column("AGE", drop=5),
    )
    platform.show(
        found, lambda: platform.out.table(columns, map(row, found), empty="No spaces fit.")
    )


@spaces.command()
@click.argument("space")
@click.argument("other")
@click.option("--tenant", metavar="SLUG")
@platform_options
def compare(platform: Connection, space: str, other: str, tenant: str | None) -> None:
    """Say in which settings two spaces differ, and what to set so that they share."""
    first, second = (find_space(platform, each, tenant=tenant) for each in (space, other))
    answer = platform.get(f"/spaces/{first['id']}/compare", **{"with": second["id"]})
    platform.show(answer, lambda: say_differences(platform, first, second, answer))


def say_differences(
    platform: Connection, first: dict[str, Any], second: dict[str, Any], answer: dict[str, Any]
) -> None:
    differences = answer["differences"]
    if not differences:
        platform.out.say("They are equal: their engines share blocks.")
    for each in differences:
        platform.out.say(str(each["field"]), "bold")
        for space, value in ((first, each["this"]), (second, each["other"])):
            platform.out.say(f"  {space['name']}: {text.NOTHING if value is None else value}")
        platform.out.say(f"  fix: {each['fix']}")
