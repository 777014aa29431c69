"""`neve policy`: how long a tenant's blocks stay, and what a change would remove."""

import json
from typing import Any

import click

from neve.cli import text
from neve.cli.connection import Connection, platform_options
from neve.cli.keys import own_tenant
from neve.cli.output import Cell

_BYTES = ("pin_budget_bytes",)


@click.group()
def policy() -> None:
    """How long blocks stay, and where."""


_tenant = click.option("--tenant", metavar="SLUG", help="[default: your own]")
_changes = click.argument("changes", metavar="FIELD=VALUE...", nargs=-1, required=True)


@policy.command()
@_tenant
@platform_options
def show(platform: Connection, tenant: str | None) -> None:
    """Show the policy."""
    found = platform.get(f"/policies/{tenant or own_tenant(platform)}")
    platform.show(found, lambda: platform.out.facts(_facts(found)))


def _facts(found: dict[str, Any]) -> list[tuple[str, Cell]]:
    return [(name, _value(name, value)) for name, value in found.items()]


def _value(name: str, value: Any) -> str:
    if value is None:
        return "no limit"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name.endswith("_s"):
        return f"{text.span(value)} ({text.count(value)} s)"
    return text.size(value) if name in _BYTES else str(value)


@policy.command("set")
@_changes
@_tenant
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@platform_options
def set_(platform: Connection, changes: tuple[str, ...], tenant: str | None, yes: bool) -> None:
    """Change the policy, such as `max_age_s=7d` or `cold_ttl_s=null`.

    Says what would go at once, and asks.
    """
    change = dict(map(_change, changes))
    slug = tenant or own_tenant(platform)
    if not yes:
        platform.out.note(_would(_dry_run(platform, slug, change)))
    platform.out.confirm(f"Change the policy of {slug}?", yes=yes)
    found = platform.call("PATCH", f"/policies/{slug}", change, keep_null=True)
    platform.show(found, lambda: platform.out.facts(_facts(found)))


@policy.command("dry-run")
@_changes
@_tenant
@platform_options
def dry_run(platform: Connection, changes: tuple[str, ...], tenant: str | None) -> None:
    """Say what a change would remove, without changing anything."""
    change = dict(map(_change, changes))
    answer = _dry_run(platform, tenant or own_tenant(platform), change)
    platform.show(answer, lambda: platform.out.say(_would(answer)))


def _dry_run(platform: Connection, slug: str, change: dict[str, Any]) -> dict[str, Any]:
    return dict(
        platform.call("POST", f"/policies/{slug}/dry-run", {"policy": change}, keep_null=True)
    )


def _would(answer: dict[str, Any]) -> str:
    least = "" if answer.get("is_complete", True) else "at least "
    return (
        f"Would remove {least}{text.count(answer.get('removed_blocks'))} blocks at once "
        f"({text.size(answer.get('removed_hot_bytes'))} hot, "
        f"{text.size(answer.get('removed_cold_bytes'))} cold; "
        f"{text.count(answer.get('contexts'))} contexts lose some), and take "
        f"{text.count(answer.get('cooled_blocks'))} out of the hot tier."
    )


def _change(given: str) -> tuple[str, Any]:
    """Durations become seconds, JSON values stay, everything else is text."""
    name, equals, value = given.partition("=")
    if not name or not equals:
        raise click.UsageError(f"write FIELD=VALUE, got {given!r}")
    span = text.duration(value)
    if span is not None and name.endswith("_s"):
        return name, int(span.total_seconds())
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
