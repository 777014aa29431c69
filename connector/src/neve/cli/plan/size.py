"""The command `neve plan size`."""

import json

import click

from neve.cli.offline import json_option, read_config
from neve.planner.sizes import kv_size


@click.command()
@click.argument("model")
@json_option
def size(model: str, as_json: bool) -> None:
    """Say how many bytes a model's KV takes.

    MODEL is a config.json, the folder that holds it, or - for standard input.
    """
    found = kv_size(read_config(model))
    if as_json:
        click.echo(json.dumps({"bytes_per_token": found.bytes_per_token}))
        return
    click.echo(f"{found.bytes_per_token:,.0f} bytes a token")
