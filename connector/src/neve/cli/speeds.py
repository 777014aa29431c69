"""Prefill speeds as options of commands."""

import re
from collections.abc import Sequence
from typing import Any

import click

from neve.cli.offline import MOST
from neve.errors import Misuse
from neve.planner.breakeven import Prefill


class PrefillSpeed(click.ParamType[tuple[int | None, float]]):
    """`40000` (tokens/s at any length) or `40285@2048` (measured with prompts of 2048 tokens)."""

    name = "rate[@tokens]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        parsed = re.fullmatch(r"(\d+(?:\.\d+)?)(?:@(\d+))?", str(value))
        if parsed is None or not 0 < float(parsed[1]) <= MOST or int(parsed[2] or 1) > MOST:
            self.fail(f"{value!r} is no speed; write 40000 or 40285@2048", param, ctx)
        return (int(parsed[2]) if parsed[2] else None), float(parsed[1])


def prefill_of(speeds: Sequence[tuple[int | None, float]]) -> Prefill:
    """The speed that options of type `PrefillSpeed` say. Raises `Misuse`."""
    points = [(tokens, tokens / rate) for tokens, rate in speeds if tokens]
    if len(points) == len(speeds):
        return Prefill.through(points)
    if len(speeds) > 1:
        raise Misuse(
            "give one speed, or several that all say @TOKENS", field="prefill-tokens-per-s"
        )
    return Prefill.at(speeds[0][1])
