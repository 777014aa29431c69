"""`neve webhooks`: addresses that are told of events, and what became of the deliveries."""

from datetime import UTC, datetime
from typing import Any

import click

from neve.cli import text
from neve.cli.connection import Connection, platform_options
from neve.cli.names import find_webhook
from neve.cli.output import Cell, Column, name, number

_SHORT = 8  # letters of an id: enough for `webhooks log`


@click.group()
def webhooks() -> None:
    """Addresses that are told of events. Make and change them by REST: docs/webhooks.md.

    A webhook is named by its id, the id's first letters, or its address.
    """


@webhooks.command("ls")
@click.option("--tenant", metavar="SLUG")
@platform_options
def webhooks_ls(platform: Connection, tenant: str | None) -> None:
    """List webhooks."""
    found = list(platform.rows("/webhooks", {"tenant": tenant}))

    def row(hook: dict[str, Any]) -> list[Cell]:
        return [
            str(hook["id"])[:_SHORT],
            hook["url"],
            ",".join(hook.get("types") or ()) or "all",
            ("active", "green") if hook.get("is_active") else ("off", "red"),
        ]

    columns = (Column("ID"), name("ADDRESS"), name("TYPES"), Column("STATE"))
    platform.show(
        found,
        lambda: platform.out.table(
            columns, map(row, found), empty="No webhook is registered (POST /api/v1/webhooks)."
        ),
    )


@webhooks.command()
@click.argument("webhook")
@platform_options
def test(platform: Connection, webhook: str) -> None:
    """Send a webhook an event of type webhook.test."""
    hook = str(find_webhook(platform, webhook)["id"])
    answer = platform.call("POST", f"/webhooks/{hook}/test")
    platform.show(
        answer,
        lambda: platform.out.say(
            f"It is sent: `neve webhooks log {hook[:_SHORT]}` shows the outcome."
        ),
    )


@webhooks.command()
@click.argument("webhook")
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True)
@platform_options
def log(platform: Connection, webhook: str, limit: int) -> None:
    """List deliveries, the newest first."""
    hook = find_webhook(platform, webhook)["id"]
    found = list(platform.rows(f"/webhooks/{hook}/deliveries", limit=limit))
    now = datetime.now(UTC)

    def row(delivery: dict[str, Any]) -> list[Cell]:
        last = (delivery.get("log") or [{}])[-1]
        return [
            text.age(delivery["created_at"], now),
            delivery["type"],
            delivery["state"],
            text.count(delivery["attempts"]),
            text.count(last.get("status")),
            last.get("error") or text.NOTHING,
        ]

    columns = (
        Column("AGO"),
        Column("TYPE"),
        Column("STATE"),
        number("TRIES"),
        number("HTTP"),
        name("ERROR"),
    )
    platform.show(
        found, lambda: platform.out.table(columns, map(row, found), empty="No deliveries.")
    )
