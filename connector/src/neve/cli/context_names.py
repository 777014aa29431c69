"""Contexts on a command line: one or several, by name or id, and where to look."""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import click

from neve.cli.connection import Connection
from neve.cli.names import complete_context, find_context

F = TypeVar("F", bound=Callable[..., Any])


def where(command: F) -> F:
    """--space and --tenant, for names that several spaces have."""
    for option in (
        click.option("--tenant", metavar="SLUG", help="Where to look, for operators."),
        click.option("--space", metavar="SPACE", help="Where to look if several have the name."),
    ):
        command = option(command)
    return command


one = click.argument("context", metavar="CONTEXT", shell_complete=complete_context)
several = click.argument(
    "names", metavar="CONTEXT...", nargs=-1, required=True, shell_complete=complete_context
)
yes_option = click.option("--yes", "-y", is_flag=True, help="Do not ask.")


def all_of(
    platform: Connection, names: Iterable[str], space: str | None, tenant: str | None
) -> list[dict[str, Any]]:
    """All of them, before anything is changed."""
    return [find_context(platform, each, space=space, tenant=tenant) for each in names]
