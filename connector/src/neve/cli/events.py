"""`neve events`: what happens, as it happens."""

import json
from pathlib import Path
from typing import Any

import click

from neve.cli import text
from neve.cli.connection import Connection, platform_options
from neve.errors import Misuse, NeveError


@click.command()
@click.option("--follow", "-f", is_flag=True, help="Go on with new events, until Ctrl-C.")
@click.option("--types", metavar="TYPE,...", help="Only these, such as context.*,job.failed.")
@click.option(
    "--after", metavar="NUMBER", help="With --follow: begin behind the event of this `sequence`."
)
@click.option(
    "--state",
    type=click.Path(dir_okay=False, path_type=Path),
    help="With --follow: file that keeps the last event's number; the next call goes on there.",
)
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True)
@platform_options
def events(
    platform: Connection,
    follow: bool,
    types: str | None,
    after: str | None,
    state: Path | None,
    limit: int,
) -> None:
    """List the latest events, or follow them.

    Following goes on behind the last event after a lost connection, so none is missed. With --json
    each event is a line.
    """
    if not follow:
        if after or state:
            raise click.UsageError("--after and --state go with --follow")
        _list(platform, types, limit)
        return
    after = after or (_stored(state) if state else None)

    def tell(error: NeveError) -> None:
        platform.out.note(f"{error}\nConnecting again ...")

    for event in platform.api.events.stream(types=types, after=after, on_lost=tell):
        _write(platform, dict(event.raw))
        if state:
            _store(state, str(event.raw["sequence"]))


def _list(platform: Connection, types: str | None, limit: int) -> None:
    found = list(platform.rows("/events", {"types": types}, limit=limit))
    if platform.out.as_json:
        for event in reversed(found):
            platform.out.line(event)
        return
    for event in reversed(found):  # the newest last, as --follow would go on
        _write(platform, event)
    if not found:
        platform.out.note("No events yet.")


def _write(platform: Connection, event: dict[str, Any]) -> None:
    if platform.out.as_json:
        platform.out.line(event)
        return
    subject = event.get("subject") or {}
    at = text.moment(event.get("at"))
    data = " ".join(f"{key}={_short(value)}" for key, value in (event.get("data") or {}).items())
    words = [
        at.astimezone().strftime("%H:%M:%S") if at else text.NOTHING,
        f"{event.get('type', ''):<21}",
        str(subject.get("name") or subject.get("id") or text.NOTHING),
        data,
    ]
    platform.out.say(text.printable("  ".join(words).rstrip()))


def _short(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _stored(file: Path) -> str | None:
    try:
        return file.read_text(encoding="utf-8").strip() or None
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise Misuse(f"cannot read {file}: {error}", field="--state") from error


def _store(file: Path, sequence: str) -> None:
    new = file.with_name(f"{file.name}.new")
    try:
        new.write_text(sequence + "\n", encoding="utf-8")
        new.replace(file)
    except OSError as error:
        raise Misuse(f"cannot write {file}: {error.strerror}", field="--state") from error
