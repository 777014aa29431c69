"""`neve keys` and `neve quota`: who may call, and how much may be stored."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import click

from neve.cli import text
from neve.cli.connection import Connection, platform_options
from neve.cli.login import tenants_of
from neve.cli.names import find_key
from neve.cli.output import Cell, Column, name, number

_COLUMNS = (
    number("ID"),
    name("NAME"),
    Column("ROLE"),
    name("TENANT", drop=3),
    Column("SCOPES", drop=4),
    Column("STATE"),
    Column("USED", drop=1),
    Column("PREFIX", drop=5),
    Column("AGE", drop=2),
)
ROLES = ("team", "node", "operator")
SCOPES = ("read", "write", "contexts", "keys")


@click.group()
def keys() -> None:
    """API keys. A key is named by its name or its number."""


@keys.command("ls")
@click.option("--tenant", metavar="SLUG")
@click.option("--role", type=click.Choice(ROLES))
@platform_options
def ls(platform: Connection, tenant: str | None, role: str | None) -> None:
    """List keys, without their secrets."""
    found = list(platform.rows("/keys", {"tenant": tenant, "role": role}))
    now = datetime.now(UTC)
    rows = [_row(key, now) for key in found]
    platform.show(found, lambda: platform.out.table(_COLUMNS, rows, empty="No keys."))


def _row(key: dict[str, Any], now: datetime) -> list[Cell]:
    return [
        str(key["id"]),
        key["name"],
        key["role"],
        key.get("tenant") or text.NOTHING,
        ",".join(key.get("scopes") or ()) or text.NOTHING,
        _state(key, now),
        text.age(key.get("last_used_at"), now),
        key.get("prefix") or text.NOTHING,
        text.age(key.get("created_at"), now),
    ]


def _state(key: dict[str, Any], now: datetime) -> Cell:
    if key.get("revoked_at"):
        return "revoked", "dim"
    ends = text.moment(key.get("expires_at"))
    if ends is None:
        return "valid", "green"
    return (f"{text.left(ends, now)} left", "yellow") if ends > now else ("expired", "dim")


@keys.command()
@click.argument("key_name", metavar="NAME")
@click.option("--role", type=click.Choice(ROLES), default="team", show_default=True)
@click.option("--tenant", metavar="SLUG", help="[default: your own]")
@click.option(
    "--scope",
    "scopes",
    type=click.Choice(SCOPES),
    multiple=True,
    help="May be given several times.  [default: as the platform says for the role]",
)
@click.option("--expires-in", metavar="DURATION", help="Such as 90d.")
@click.option("--expires-at", metavar="MOMENT", help="Such as 2026-03-01T12:00:00Z.")
@platform_options
def create(
    platform: Connection,
    key_name: str,
    role: str,
    tenant: str | None,
    scopes: tuple[str, ...],
    expires_in: str | None,
    expires_at: str | None,
) -> None:
    """Make a key. It is shown once: standard output is the key alone."""
    if expires_in and expires_at:
        raise click.UsageError("give either --expires-in or --expires-at")
    made = platform.call(
        "POST",
        "/keys",
        {
            "name": key_name,
            "role": role,
            "tenant": tenant,
            "scopes": list(scopes) or None,
            "expires_in": expires_in,
            "expires_at": expires_at,
        },
    )
    _show_once(platform, made, f"Key {made['id']} ({made['role']}): shown once, keep it.")


@keys.command()
@click.argument("key")
@click.option(
    "--overlap", metavar="DURATION", default="1h", show_default=True, help="The old one's end."
)
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@platform_options
def rotate(platform: Connection, key: str, overlap: str, yes: bool) -> None:
    """Make a successor of a key; the old one ends after the overlap."""
    found = find_key(platform, key)
    platform.out.confirm(f"Rotate key {_named(found)}? It ends in {overlap}.", yes=yes)
    made = platform.call("POST", f"/keys/{found['id']}/rotate", {"overlap": overlap})
    _show_once(platform, made, f"Successor of {_named(found)}: shown once, keep it.")


@keys.command()
@click.argument("key")
@click.option("--keep-made", is_flag=True, help="Keys that this key made stay valid.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@platform_options
def revoke(platform: Connection, key: str, keep_made: bool, yes: bool) -> None:
    """Refuse a key, and the keys that it made, from now on."""
    found = find_key(platform, key)
    used = text.when(found.get("last_used_at"), datetime.now(UTC))
    made = "" if keep_made else " and the keys that it made"
    platform.out.confirm(f"Revoke key {_named(found)}, last used {used},{made}?", yes=yes)
    answer = platform.call("POST", f"/keys/{found['id']}/revoke", {"keep_made": keep_made})
    platform.show(answer, lambda: platform.out.say(f"{_named(found)}: revoked"))


def _named(key: dict[str, Any]) -> str:
    return f"{key['name']} ({key['role']}, {key['id']})"


def _show_once(platform: Connection, made: dict[str, Any], words: str) -> None:
    """The key alone on standard output, so that a script can take it."""

    def show() -> None:
        platform.out.note(words)
        platform.out.say(str(made.get("key") or ""))

    platform.show(made, show)


def own_tenant(platform: Connection) -> str:
    """Slug of the caller's tenant. Raises click's `UsageError` unless it has exactly one."""
    slugs = tenants_of(platform.get("/me"))
    if len(slugs) != 1:
        raise click.UsageError("say which tenant: --tenant SLUG")
    return slugs[0]


@click.command()
@click.option("--tenant", metavar="SLUG", help="[default: your own]")
@platform_options
def quota(platform: Connection, tenant: str | None) -> None:
    """Show what is used of the quota."""
    slug = tenant or own_tenant(platform)
    limits = platform.get(f"/tenants/{slug}/quota")
    used = limits.get("used") or {}

    def of(held: float | None, most: float | None, words: Callable[[float | None], str]) -> str:
        part = text.ratio(held, most)
        limit = "no limit" if most is None else words(most)
        return f"{words(held)} of {limit}" + (f" ({text.share(part)})" if part is not None else "")

    def show() -> None:
        bars = (
            ("hot (Valkey)", "hot_bytes", "hot_bytes"),
            ("cold (S3)", "cold_bytes", "cold_bytes"),
            ("pins", "pinned_bytes", "pin_budget_bytes"),
        )
        numbers = ("contexts", "context"), ("spaces", "space"), ("nodes", "node"), ("keys", "key")
        facts: list[tuple[str, Cell]] = [("tenant", slug)]
        facts += [(name, of(used.get(a), limits.get(b), text.size)) for name, a, b in bars]
        facts += [
            (name, of(used.get(name), limits.get(f"{one}_limit"), text.count))
            for name, one in numbers
        ]
        facts.append(("blocks of a context", f"{limits['context_block_limit']:,} at most"))
        platform.out.facts(facts)

    platform.show(limits, show)
