"""`neve top`: the platform live on one screen. `neve.cli.frame` draws it."""

import select
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import click

from neve.cli.connection import Connection, platform_options
from neve.cli.frame import MOST_TENANTS, Figures, frame
from neve.cli.login import tenants_of
from neve.errors import DeadlineExceeded, Unavailable

_WIDTH, _HEIGHT = 80, 24  # of --once where there is no terminal
_MOST_NODES = 100


@click.command()
@click.option(
    "--interval",
    type=click.FloatRange(0.5, 60),
    default=2.0,
    show_default=True,
    help="Seconds between two frames.",
)
@click.option("--once", is_flag=True, help="Print one frame and end, for scripts.")
@click.option("--tenant", metavar="SLUG", help="[default: all that you may see]")
@platform_options
def top(platform: Connection, interval: float, once: bool, tenant: str | None) -> None:
    """Show hit rate, bandwidth, quotas and nodes live, full screen. `q` or Ctrl-C ends it.

    With --json each interval is a line; with --once one document.
    """
    if once:
        figures = read(platform, tenant)
        if platform.out.as_json:
            platform.out.document(figures.as_json())
            return
        console = platform.out.console
        width, height = (
            (console.width, console.height) if console.is_terminal else (_WIDTH, _HEIGHT)
        )
        for line in frame(figures, width=width, height=height):
            console.print(line, soft_wrap=True)
        return
    if platform.out.as_json:
        while True:
            platform.out.line(read(platform, tenant).as_json())
            time.sleep(interval)
    if not (sys.stdout.isatty() and sys.stdin.isatty()):
        raise click.UsageError("top needs a terminal; --once prints one frame, --json lines")
    _show(platform, interval, tenant)


def _show(platform: Connection, interval: float, tenant: str | None) -> None:
    from rich.console import Group
    from rich.live import Live

    console = platform.out.console
    figures = read(platform, tenant)  # what is wrong with key or address is said before the screen
    with _keys(), Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            lines = frame(figures, width=console.width, height=console.height, interval_s=interval)
            live.update(Group(*lines), refresh=True)
            if _pressed(interval) in ("q", "Q", "\x1b", "\x03"):
                return
            try:
                figures = read(platform, tenant)
            except (Unavailable, DeadlineExceeded) as error:
                figures = figures.stale(str(error))


def read(platform: Connection, tenant: str | None) -> Figures:
    """What a frame shows, in a few requests."""
    me = platform.get("/me")
    points = platform.get("/usage", range="15m", tenant=tenant).get("points") or []
    query = {"live": True, "tenant": tenant}
    nodes = list(platform.rows("/nodes", query, limit=_MOST_NODES))
    spaces = {row["id"]: row["name"] for row in platform.rows("/spaces", {"tenant": tenant})}
    running = list(platform.rows("/jobs", {"state": "running", "tenant": tenant}, limit=50))
    if tenant is not None:
        slugs = [tenant]
    elif me["role"] == "operator":
        rows = platform.rows("/tenants", {"is_active": True}, limit=MOST_TENANTS)
        slugs = [row["slug"] for row in rows]
    else:
        slugs = tenants_of(me)[:MOST_TENANTS]
    return Figures(
        endpoint=platform.credentials.endpoint,
        caller=f"{(me.get('key') or me)['name']} ({me['role']})",
        at=datetime.now(UTC),
        points=points,
        nodes=nodes,
        spaces=spaces,
        running=len(running),
        quotas=[(slug, platform.get(f"/tenants/{slug}/quota")) for slug in slugs],
    )


@contextmanager
def _keys() -> Iterator[None]:
    """Keys arrive without Return, and are not shown."""
    import termios
    import tty

    number = sys.stdin.fileno()
    before = termios.tcgetattr(number)
    try:
        tty.setcbreak(number)
        yield
    finally:
        termios.tcsetattr(number, termios.TCSADRAIN, before)


def _pressed(wait_s: float) -> str | None:
    """A key pressed within the time; None: none was. `q` if nobody can press one any more."""
    import os

    ready, _, _ = select.select([sys.stdin], [], [], wait_s)
    if not ready:
        return None
    return os.read(sys.stdin.fileno(), 1).decode(errors="replace") or "q"
