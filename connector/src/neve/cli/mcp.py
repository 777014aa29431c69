"""`neve mcp`: contexts as tools for agents."""

import os
from typing import TYPE_CHECKING

import click

from neve.cli.config import find_credentials
from neve.errors import Misuse

if TYPE_CHECKING:
    from neve.mcp import OwnKey

_LOOPBACK = ("127.0.0.1", "::1", "localhost")


@click.command("mcp")
@click.option("--profile", metavar="NAME", help="Of `neve login`.  [env NEVE_PROFILE]")
@click.option("--endpoint", metavar="URL", help="Of the platform.  [env NEVE_ENDPOINT]")
@click.option("--write", is_flag=True, help="Also offer tools that change contexts.")
@click.option("--http", "is_http", is_flag=True, help="Serve HTTP at /mcp instead of stdio.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8765, show_default=True)
@click.option(
    "--allow-host",
    multiple=True,
    help="Host under which callers reach this server, besides loopback; repeatable.",
)
@click.option(
    "--allow-origin",
    multiple=True,
    help="Origin of a web page that may call, such as https://app.example; repeatable.",
)
@click.option(
    "--lend-key",
    is_flag=True,
    help="HTTP callers need no key: all act with the server's. Whoever reaches the port may then "
    "do what that key may.",
)
def mcp(
    profile: str | None,
    endpoint: str | None,
    write: bool,
    is_http: bool,
    host: str,
    port: int,
    allow_host: tuple[str, ...],
    allow_origin: tuple[str, ...],
    lend_key: bool,
) -> None:
    """Offer contexts as tools to an agent (Model Context Protocol).

    Over stdio, the agent acts with your key. Over HTTP, each caller sends a key of its own
    (Authorization: Bearer neve_...), unless you lend yours.
    """
    try:
        from neve.mcp import CallersKey, http_app, make_server
    except ImportError as error:
        raise Misuse(str(error)) from error
    if not is_http and (lend_key or allow_host or allow_origin):
        raise click.UsageError("--lend-key, --allow-host and --allow-origin need --http")
    if is_http and host not in _LOOPBACK and not allow_host:
        raise click.UsageError(
            f"to listen on {host}, name the host that callers use: --allow-host mcp.example:{port}"
        )
    needs_key = is_http and not lend_key
    credentials = (
        CallersKey(_endpoint(profile, endpoint)) if needs_key else _own_key(profile, endpoint)
    )
    server = make_server(credentials, can_write=write)
    if not is_http:
        server.run("stdio")
        return
    import uvicorn

    app = http_app(server, needs_key=needs_key, hosts=allow_host, origins=allow_origin)
    click.echo(f"Tools at http://{host}:{port}/mcp", err=True)
    uvicorn.run(app, host=host, port=port, log_level="warning", access_log=False)


def _endpoint(profile: str | None, endpoint: str | None) -> str:
    given = endpoint or os.environ.get("NEVE_ENDPOINT")
    return given or find_credentials(profile).endpoint


def _own_key(profile: str | None, endpoint: str | None) -> "OwnKey":
    from neve.mcp import OwnKey

    found = find_credentials(profile, endpoint)
    return OwnKey(found.endpoint, found.api_key)
