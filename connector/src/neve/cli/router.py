"""`neve router`: a proxy before decode nodes and prefill pools."""

import json
import os
from dataclasses import replace
from pathlib import Path

import click

from neve.cli.config import find_credentials
from neve.errors import Misuse


@click.command("router")
@click.option(
    "--config",
    "path",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="TOML file with decode nodes and pools (docs/router.md).",
)
@click.option("--host", help="Address to listen on, instead of the file's.")
@click.option("--port", type=click.IntRange(0, 65535), help="Port, instead of the file's.")
@click.option("--profile", metavar="NAME", help="Of `neve login`.  [env NEVE_PROFILE]")
@click.option("--endpoint", metavar="URL", help="Of the platform.  [env NEVE_ENDPOINT]")
@click.option("--check", is_flag=True, help="Check the file, Neve and the engines, and end.")
def router(
    path: Path,
    host: str | None,
    port: int | None,
    profile: str | None,
    endpoint: str | None,
    check: bool,
) -> None:
    """Serve an OpenAI-compatible proxy before decode nodes.

    Long prompts whose KV is not stored go to prefill pools, if that is sooner; the decode node
    loads the blocks. Whatever fails there, the decode node computes the prompt.
    """
    try:
        from neve.router import checked, log_to_stderr, read_options, serve
    except ImportError as error:
        raise Misuse(str(error)) from error
    options = read_options(path)
    if host is not None:
        options = replace(options, host=host)
    if port is not None:
        options = replace(options, port=port)
    # The file's comes last, as it is the least deliberate.
    endpoint = endpoint or os.environ.get("NEVE_ENDPOINT") or options.endpoint
    found = find_credentials(profile, endpoint or None)
    if check:
        click.echo(json.dumps(checked(options, endpoint=found.endpoint, api_key=found.api_key)))
        return
    log_to_stderr()
    where = f"http://{options.host}:{options.port}"
    serve(
        options,
        endpoint=found.endpoint,
        api_key=found.api_key,
        started=lambda words: click.echo(f"Routing at {where}: {words}", err=True),
    )
