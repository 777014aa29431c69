"""`neve why`: why a request missed, where a context or a block is."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from itertools import groupby
from typing import Any

import click

from neve.cli import text
from neve.cli.connection import Connection, platform_options

_SIGNS = {"hot": "█", "cold": "▒", None: "·"}
_MOST = 60  # cells of a line; the platform already folds long chains


@click.command()
@click.argument("what")
@click.option("--tenant", metavar="SLUG", help="[default: all that you may see]")
@click.option("--space", type=int, metavar="NUMBER", help="Only of this space.")
@platform_options
def why(platform: Connection, what: str, tenant: str | None, space: int | None) -> None:
    """Say why a request missed, or where a context or block is.

    WHAT: id of a request (as the engine answered it), of a context or a block, or a context's name.
    """
    answer = platform.get("/why", q=what, tenant=tenant, space=space)
    platform.show(answer, lambda: _say(platform, answer))


def _say(platform: Connection, answer: Mapping[str, Any]) -> None:
    out = platform.out
    out.say(answer["sentence"])
    if answer["lever"]:
        out.say(answer["lever"])
    out.say("")
    out.facts((fact["words"], fact["value"]) for fact in answer["facts"])
    now = datetime.now(UTC)
    for strip in answer["strips"]:
        each = "" if strip["stride"] == 1 else f", a sign for {strip['stride']}"
        out.say(
            f"\n{strip['title']}: {text.count(strip['stored'])} of {text.count(strip['chunks'])} "
            f"chunks from the beginning (█ hot, ▒ cold, · gone{each})"
        )
        out.say("".join(_SIGNS.get(cell["tier"], "?") for cell in strip["cells"][:_MOST]))
        for words in _gone(strip["cells"], now):
            out.note(words)
    differing = [each for each in answer["fields_of_spaces"] if each["differs"]]
    for each in differing:
        fix = f" {each['fix']}" if each["fix"] else ""
        out.say(f"{each['field']} is {each['this']!r} here and {each['other']!r} there.{fix}")
    if answer["flags"]:
        out.say(f"Flags of vLLM: {answer['flags']}")


def _gone(cells: Iterable[Mapping[str, Any]], now: datetime) -> Iterable[str]:
    """A line for each stretch of chunks that left for one reason."""
    for reason, members in groupby(cells, key=lambda cell: cell["reason"]):
        found = list(members)
        if reason is None:
            continue
        first, last = found[0]["number"], found[-1]["number"]
        chunks = f"chunk {first}" if first == last else f"chunks {first} to {last}"
        at = found[0]["gone_at"]
        yield f"{chunks}: {reason}" + (f", {text.age(at, now)} ago" if at else "")
