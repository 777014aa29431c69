"""Which contexts: the filters that `contexts ls`, `export` and `bulk` share, and their table."""

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, TypeVar

import click

from neve.cli import text
from neve.cli.connection import Connection
from neve.cli.names import find_space
from neve.cli.output import Cell, Column, name, number

F = TypeVar("F", bound=Callable[..., Any])

STATE_STYLES = {"stored": "green", "partial": "yellow", "lost": "red", "expired": "dim"}
SORTS = ("created_at", "updated_at", "last_used_at", "name", "tokens", "size_bytes")

COLUMNS = (
    name("NAME"),
    name("SPACE", drop=2),
    Column("STATE"),
    number("TOKENS"),
    number("SIZE", drop=3),
    Column("PINNED", drop=1),
    Column("USED", drop=4),
    Column("ID", drop=6),
    name("OWNER", drop=5),
)


def filters(command: F) -> F:
    """Options that narrow a list of contexts; the command gets them as keyword arguments, to be
    given to `query_of`."""
    for option in reversed(
        (
            click.option("--tenant", metavar="SLUG", help="Of operators: one tenant's."),
            click.option("--name", metavar="NAME", help="Exactly this name."),
            click.option("--glob", metavar="PATTERN", help="Names that fit, such as 'repo-*'."),
            click.option("--search", metavar="TEXT", help="Part of the name."),
            click.option("--label", metavar="LABEL", help="The label that retention rules match."),
            click.option(
                "--labels",
                metavar="KEY=VALUE",
                multiple=True,
                help="Has this label; may be given several times.",
            ),
            click.option("--space", metavar="SPACE", help="Name or number of the space."),
            click.option("--model", metavar="MODEL"),
            click.option(
                "--state",
                type=click.Choice(["expected", "stored", "partial", "lost", "expired"]),
            ),
            click.option("--pinned/--not-pinned", "pinned", default=None),
            click.option("--owner", metavar="NAME", help="Key or person that made it."),
            click.option(
                "--used-within", metavar="AGE", help="Used in the last AGE, such as 2h or 7d."
            ),
            click.option("--unused-for", metavar="AGE", help="Not used in the last AGE."),
            click.option("--older-than", metavar="AGE", help="Made longer ago than AGE."),
            click.option("--newer-than", metavar="AGE", help="Made in the last AGE."),
            click.option("--min-tokens", type=click.IntRange(min=0)),
            click.option("--max-tokens", type=click.IntRange(min=0)),
        )
    ):
        command = option(command)
    return command


FILTERS = (
    *("tenant", "name", "glob", "search", "label", "labels", "space", "model", "state", "pinned"),
    *("owner", "used_within", "unused_for", "older_than", "newer_than", "min_tokens"),
    "max_tokens",
)
_AGES = {
    "used_within": "used_after",
    "unused_for": "used_before",
    "older_than": "created_before",
    "newer_than": "created_after",
}


def query_of(platform: Connection, options: Mapping[str, Any]) -> dict[str, Any]:
    """The filters as the platform's query parameters, and as the filter of a bulk action."""
    query: dict[str, Any] = {}
    for option in FILTERS:
        value = options[option]
        if value is None or value == ():
            continue
        if option in _AGES:
            query[_AGES[option]] = before_now(value, option).isoformat()
        elif option == "labels":
            query["labels"] = ",".join(f"{key}={one}" for key, one in labels_of(value).items())
        elif option == "space":
            query["space"] = find_space(platform, value, tenant=options["tenant"])["id"]
        else:
            query[option] = value
    return query


def labels_of(given: Iterable[str]) -> dict[str, str]:
    """Of options KEY=VALUE. Raises click's `UsageError`."""
    labels = {}
    for each in given:
        key, equals, value = each.partition("=")
        if not key or not equals or "," in each:
            raise click.UsageError(f"write a label as KEY=VALUE, without a comma, got {each!r}")
        labels[key] = value
    return labels


def before_now(age: str, option: str) -> datetime:
    span = text.duration(age)
    if span is None:
        name = option.replace("_", "-")
        raise click.UsageError(f"--{name}: {age!r} is no duration; write 90s, 30m, 2h or 7d")
    return datetime.now(UTC) - span


def rows_of(
    found: list[dict[str, Any]], *, spaces: Mapping[Any, str], now: datetime
) -> list[list[Cell]]:
    return [
        [
            row["name"],
            spaces.get(row.get("space"), str(row.get("space", text.NOTHING))),
            state_of(row),
            text.count(row.get("tokens")),
            text.size(row.get("size_bytes")),
            pinned(row, now),
            text.age(row.get("last_used_at"), now),
            str(row["id"]),
            row.get("owner") or text.NOTHING,
        ]
        for row in found
    ]


def state_of(row: Mapping[str, Any]) -> Cell:
    state = row.get("state") or ("expired" if row.get("expired_at") else text.NOTHING)
    return state, STATE_STYLES.get(state, "")


def pinned(row: Mapping[str, Any], now: datetime) -> str:
    until = text.moment(row.get("pinned_until"))
    return text.left(until, now) if until is not None and until > now else text.NOTHING


def space_names(platform: Connection, *, tenant: str | None = None) -> dict[Any, str]:
    """Names of spaces by number."""
    return {row["id"]: row["name"] for row in platform.rows("/spaces", {"tenant": tenant})}
