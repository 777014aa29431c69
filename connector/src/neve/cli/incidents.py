"""`neve incidents`: what needs a person, why, and which lever helps."""

from datetime import UTC, datetime
from typing import Any

import click

from neve.cli import text
from neve.cli.connection import Connection, platform_options
from neve.cli.names import find_incident
from neve.cli.output import Cell, Column, name

_SHORT = 8  # letters of an id: enough for `incidents show`
_COLUMNS = (
    Column("ID"),
    name("TENANT"),
    name("WHAT"),
    name("CAUSE", drop=3),
    Column("STATE"),
    Column("SINCE"),
    name("LEVER", drop=2),
    name("OWNER", drop=1),
)


@click.group()
def incidents() -> None:
    """What needs a person: list, show, acknowledge, mute, own.

    An incident is named by its id or the id's first letters.
    """


_incident = click.argument("incident", metavar="INCIDENT")


@incidents.command("ls")
@click.option("--tenant", metavar="SLUG")
@click.option("--state", type=click.Choice(["open", "ended", "all"]), default="open")
@click.option("--kind", metavar="RULE", help="hit_rate, refused, load_p99, …")
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True)
@platform_options
def ls(platform: Connection, tenant: str | None, state: str, kind: str | None, limit: int) -> None:
    """List incidents, the newest first; open ones unless --state says otherwise."""
    query = {"tenant": tenant, "state": None if state == "all" else state, "kind": kind}
    found = list(platform.rows("/incidents", query, limit=limit))
    now = datetime.now(UTC)
    nothing = "No incident." if state == "all" else f"No {state} incident."
    platform.show(
        found,
        lambda: platform.out.table(_COLUMNS, [_row(row, now) for row in found], empty=nothing),
    )


def _row(row: dict[str, Any], now: datetime) -> list[Cell]:
    lever = (row.get("levers") or [{}])[0]
    return [
        str(row["id"])[:_SHORT],
        row.get("tenant") or "platform",
        row["title"],
        row.get("cause") or text.NOTHING,
        _state(row),
        text.age(row.get("since"), now),
        lever.get("name") or text.NOTHING,
        row.get("owner") or text.NOTHING,
    ]


def _state(row: dict[str, Any]) -> Cell:
    if row["state"] == "ended":
        return "ended", "dim"
    return ("acknowledged", "yellow") if row.get("acknowledged_at") else ("open", "red")


@incidents.command()
@_incident
@platform_options
def show(platform: Connection, incident: str) -> None:
    """Show an incident with its cause, its worst part and its levers."""
    found = find_incident(platform, incident)
    platform.show(found, lambda: _show(platform, found))


def _show(platform: Connection, row: dict[str, Any]) -> None:
    now = datetime.now(UTC)
    facts: list[tuple[str, Cell]] = [
        ("id", str(row["id"])),
        ("tenant", row.get("tenant") or "the platform itself"),
        ("what", row["title"]),
        ("state", _state(row)),
        ("since", text.when(row.get("since"), now)),
    ]
    if row.get("ended_at"):
        facts.append(("ended", text.when(row["ended_at"], now)))
    if row.get("before") is not None and row["kind"] == "hit_rate":
        facts.append(("hit rate", f"{text.share(row['before'])} → {text.share(row['value'])}"))
    facts.append(("cause", row.get("reason") or row.get("cause") or "not told apart"))
    part = row.get("slice") or {}
    if part.get("name"):
        facts.append(("worst part", f"{part.get('split', '')} {part['name']}"))
    facts += [("lever", _lever(each)) for each in row.get("levers") or ()]
    if row.get("lost_tokens"):
        facts.append(("computed again", f"about {text.count(row['lost_tokens'])} tokens"))
    facts.append(("owner", row.get("owner") or "nobody"))
    if row.get("acknowledged_at"):
        at = text.when(row["acknowledged_at"], now)
        facts.append(("acknowledged", f"{row['acknowledged_by']}, {at}"))
    for member, side in (("muted_until", "tenant"), ("operators_muted_until", "operators")):
        if row.get(member):
            facts.append((f"muted for {side}", text.when(row[member], now)))
    platform.out.facts(facts)


def _lever(lever: dict[str, Any]) -> str:
    now = f", now {lever['now']}" if lever.get("now") else ""
    to = f": try {lever['to']}" if lever.get("to") else ""
    gain = "" if lever.get("gain") is None else f" (hit rate {100 * lever['gain']:+.1f} points)"
    return f"{lever['name']}{now}{to}{gain}"


@incidents.command()
@_incident
@platform_options
def ack(platform: Connection, incident: str) -> None:
    """Say that you look after an incident: no more mail of it."""
    _act(platform, incident, "acknowledge", "acknowledged")


@incidents.command()
@_incident
@click.option("--for", "for_", metavar="DURATION", required=True, help="90m, 8h, 3d; 30d at most.")
@platform_options
def mute(platform: Connection, incident: str, for_: str) -> None:
    """Hide an incident from attention and mail for a while.

    Of your side only: a team key does not hide it from operators.
    """
    _act(platform, incident, "mute", f"muted for {for_}", {"for": for_})


@incidents.command()
@_incident
@platform_options
def unmute(platform: Connection, incident: str) -> None:
    """Show a muted incident again."""
    _act(platform, incident, "unmute", "shown again")


@incidents.command()
@_incident
@click.argument("user", required=False)
@click.option("--nobody", is_flag=True, help="Take its owner away.")
@platform_options
def own(platform: Connection, incident: str, user: str | None, nobody: bool) -> None:
    """Give an incident to a person, by user name."""
    if bool(user) == nobody:
        raise click.UsageError("give a user name, or --nobody")
    row = find_incident(platform, incident)
    changed = platform.call("PATCH", f"/incidents/{row['id']}", {"owner": user or ""})
    owner = changed.get("owner") or "nobody"
    platform.show(changed, lambda: platform.out.say(f"{row['title']}: owner {owner}"))


def _act(
    platform: Connection,
    incident: str,
    action: str,
    words: str,
    body: dict[str, Any] | None = None,
) -> None:
    row = find_incident(platform, incident)
    changed = platform.call("POST", f"/incidents/{row['id']}/{action}", body)
    platform.show(changed, lambda: platform.out.say(f"{row['title']}: {words}"))
