"""`neve audit`: who changed what."""

from datetime import UTC, datetime
from typing import Any

import click

from neve.cli import text
from neve.cli.connection import Connection, platform_options
from neve.cli.contexts import write_lines
from neve.cli.output import Cell, Column, name


@click.command()
@click.option("--tenant", metavar="SLUG")
@click.option("--action", metavar="ACTION", help="Such as context.pin.")
@click.option("--actor", metavar="NAME")
@click.option("--object", "object_id", metavar="ID", help="Of the object that changed.")
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True)
@click.option("--export", "form", type=click.Choice(["jsonl", "csv"]), help="All, as lines.")
@click.option("--output", "-o", type=click.Path(dir_okay=False, writable=True))
@platform_options
def audit(
    platform: Connection,
    tenant: str | None,
    action: str | None,
    actor: str | None,
    object_id: str | None,
    limit: int,
    form: str | None,
    output: str | None,
) -> None:
    """List who changed what, the newest first."""
    query = {"tenant": tenant, "action": action, "actor": actor, "object_id": object_id}
    if form is not None:
        write_lines(platform, platform.lines("/audit/export", **query, format=form), output)
        return
    found = list(platform.rows("/audit", query, limit=limit))
    now = datetime.now(UTC)

    def row(event: dict[str, Any]) -> list[Cell]:
        return [
            text.age(event.get("at"), now),
            event.get("actor_name") or text.NOTHING,
            event["action"],
            f"{event.get('object_type')} {event.get('object_id')}",
            event.get("tenant") or text.NOTHING,
            event.get("address") or text.NOTHING,
        ]

    columns = (
        Column("AGO"),
        name("WHO"),
        Column("ACTION"),
        name("OBJECT"),
        name("TENANT", drop=2),
        Column("ADDRESS", drop=1),
    )
    platform.show(
        found, lambda: platform.out.table(columns, map(row, found), empty="Nothing changed yet.")
    )
