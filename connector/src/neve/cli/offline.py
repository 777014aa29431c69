"""What commands without a platform share: --json, a model's configuration, plain tables.

Needs neither httpx nor rich: `pip install neve` is enough.
"""

import json
import re
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import click

from neve.cli.exits import JSON_MODE
from neve.cli.text import printable
from neve.errors import Misuse

F = TypeVar("F", bound=Callable[..., Any])
_MOST_BYTES = 4 << 20  # of a configuration
LEAST, MOST = 1e-15, 1e15  # of numbers in options


class Number(click.FloatRange):
    """A number that sums and quotients of others stay finite with: 0, or 10⁻¹⁵ to 10¹⁵."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not (number == 0 or LEAST <= abs(number) <= MOST):
            self.fail(f"{value!r} is out of range; write a number of 1e-15 to 1e15", param, ctx)
        return number


class Whole(click.IntRange):
    """A whole number up to 10¹², or `max`."""

    def __init__(self, min: int = 1, max: int = 10**12) -> None:
        super().__init__(min, max)


class CodecRatio(click.ParamType[float]):
    """`2.5` or `NAME=2.5`: bytes before ÷ bytes after a codec."""

    name = "[name=]ratio"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        parsed = re.fullmatch(r"(?:[\w.-]+=)?(\d+(?:\.\d+)?)", str(value))
        if parsed is None or not LEAST <= float(parsed[1]) <= MOST:
            self.fail(f"{value!r} is no ratio; write 2.5 or zstd=2.5", param, ctx)
        return float(parsed[1])


def json_option(command: F) -> F:
    """Adds --json to a command, which gets it as `as_json`. Errors become JSON as well."""

    @wraps(command)
    def run(*args: Any, as_json: bool, **rest: Any) -> Any:
        click.get_current_context().meta[JSON_MODE] = as_json
        return command(*args, as_json=as_json, **rest)

    option = click.option("--json", "as_json", is_flag=True, help="Write JSON instead of text.")
    return option(run)  # type: ignore[return-value]


def read_config(model: str) -> dict[str, Any]:
    """A model's `config.json`: a file, the folder that holds it, or `-` for standard input.

    Raises `Misuse` if it can't be read or holds no JSON object.
    """
    path = Path(model)
    if model != "-" and path.is_dir():
        path /= "config.json"
    name = "standard input" if model == "-" else str(path)
    try:
        raw = sys.stdin.read(_MOST_BYTES) if model == "-" else path.read_text()
        config = json.loads(raw)
    except OSError as error:
        raise Misuse(
            f"cannot read {name}: {error.strerror}. Give a model's config.json, its folder, or - "
            "for standard input; names on a hub are not looked up",
            field="MODEL",
        ) from error
    except (ValueError, RecursionError) as error:
        raise Misuse(f"cannot read {name}: it is no JSON: {error}", field="MODEL") from error
    if not isinstance(config, dict):
        raise Misuse(f"{name} is no model's configuration: no JSON object", field="MODEL")
    return config


def table(titles: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> None:
    """Writes a table: the first `left` columns to the left, all others to the right."""
    cells = [list(map(printable, row)) for row in (titles, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        line = (
            f"{cell:{'<' if place < left else '>'}{width}}"
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        click.echo("  ".join(line).rstrip())
