"""`neve version`."""

import importlib.metadata

import click


@click.command()
def version() -> None:
    """Print the version of this library."""
    click.echo(f"neve {importlib.metadata.version('neve')}")
