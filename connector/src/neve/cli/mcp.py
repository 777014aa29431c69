"""`neve mcp`: contexts as tools for agents."""

import os
from pathlib import Path

import click

from neve.errors import Misuse

_LOOPBACK = ("127.0.0.1", "::1", "localhost")


@click.command("mcp")
@click.option("--endpoint", envvar="NEVE_ENDPOINT", help="URL of the platform [NEVE_ENDPOINT].")
@click.option(
    "--api-key-file",
    type=click.Path(dir_okay=False, exists=True),
    help="File that holds the key; else the environment's NEVE_API_KEY.",
)
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
    endpoint: str | None,
    api_key_file: str | None,
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
        from neve.mcp import CallersKey, OwnKey, http_app, make_server
    except ImportError as error:
        raise Misuse(str(error)) from error
    if not is_http and (lend_key or allow_host or allow_origin):
        raise click.UsageError("--lend-key, --allow-host and --allow-origin need --http")
    if is_http and host not in _LOOPBACK and not allow_host:
        raise click.UsageError(
            f"to listen on {host}, name the host that callers use: --allow-host mcp.example:{port}"
        )
    url, key = _credentials(endpoint, api_key_file)
    needs_key = is_http and not lend_key
    if not needs_key and not key:
        raise Misuse("no API key: set NEVE_API_KEY or give --api-key-file")
    server = make_server(CallersKey(url) if needs_key else OwnKey(url, key), can_write=write)
    if not is_http:
        server.run("stdio")
        return
    import uvicorn

    app = http_app(server, needs_key=needs_key, hosts=allow_host, origins=allow_origin)
    click.echo(f"Tools at http://{host}:{port}/mcp", err=True)
    uvicorn.run(app, host=host, port=port, log_level="warning", access_log=False)


def _credentials(endpoint: str | None, api_key_file: str | None) -> tuple[str, str]:
    if not endpoint:
        raise Misuse("no endpoint: set NEVE_ENDPOINT or give --endpoint")
    key = Path(api_key_file).read_text() if api_key_file else os.environ.get("NEVE_API_KEY", "")
    return endpoint, key.strip()
