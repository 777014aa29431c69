"""Values of the options of `neve simulate`: sizes, durations, numbers of a tier."""

import math
import re
from dataclasses import dataclass
from typing import Any

import click

from neve.cli.text import duration
from neve.planner.simulate.settings import TIERS

_UNITS = {
    f"{prefix}{suffix}": step**power
    for step, suffix in ((1024, "ib"), (1000, "b"))
    for power, prefix in enumerate("kmgtp", start=1)
} | {"b": 1}
_SIZE = re.compile(r"(\d{1,18}(?:\.\d{1,6})?)\s*(blocks?|[kmgtp]i?b|b)", re.I | re.ASCII)
_MOST = 1 << 62


@dataclass(frozen=True)
class Amount:
    """A capacity in `blocks` or in `size_bytes`; both None: unlimited. `text`: as it was given."""

    text: str
    blocks: int | None = None
    size_bytes: int | None = None


class Capacity(click.ParamType[Amount]):
    """`50000blocks`, `64GiB`, `64GB`, `unlimited`."""

    name = "size"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Amount:
        if isinstance(value, Amount):
            return value
        text = str(value).strip()
        if text.lower() == "unlimited":
            return Amount("unlimited")
        parsed = _SIZE.fullmatch(text)
        unit = parsed[2].lower() if parsed else ""
        number = int(float(parsed[1]) * _UNITS.get(unit, 1)) if parsed else 0
        is_whole = parsed is not None and parsed[1].isdigit()
        in_blocks = unit.startswith("block")
        if not 1 <= number <= _MOST or (in_blocks and not is_whole):
            self.fail(f"{value!r} is no size; write 50000blocks, 64GiB or unlimited", param, ctx)
        return Amount(text, blocks=number) if in_blocks else Amount(text, size_bytes=number)


class Seconds(click.ParamType[int]):
    """`90s`, `6h`, `7d`."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        parsed = duration(str(value))
        if parsed is None or parsed.total_seconds() < 1:
            self.fail(f"{value!r} is no duration; write 90s, 6h or 7d", param, ctx)
        return int(parsed.total_seconds())


class OfTier(click.ParamType[tuple[str, float]]):
    """A number above 0 for one tier: `cold=2`."""

    name = "tier=number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        tier, _, number = str(value).partition("=")
        try:
            found = float(number)
        except ValueError:
            found = 0.0
        if tier not in TIERS or not 0 < found < math.inf:
            words = f"a tier ({', '.join(TIERS)}) and a number above 0, such as cold=2"
            self.fail(f"{value!r} is no number of a tier; write {words}", param, ctx)
        return tier, found
