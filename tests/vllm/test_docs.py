"""docs/nodes.md names what there is: every option with its default, every metric, no others."""

import re
from dataclasses import MISSING, fields
from pathlib import Path

from neve.engine import telemetry
from neve.engine.options import Options

OPTIONS_HEAD = "| option | default | what |"
METRICS_HEAD = "| metric `vllm:neve_...` | what |"
PAGE = Path(__file__).parents[2].joinpath("docs/nodes.md").read_text()


def table(head: str) -> list[list[str]]:
    """Cells of the table that begins with this line."""
    rows = PAGE.split(f"{head}\n", 1)[1].split("\n\n", 1)[0].splitlines()[1:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def words(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def shown(value: object) -> str:
    if isinstance(value, bool):
        return f"`{value}`".lower()
    if isinstance(value, str):
        return f"`{value}`"
    if isinstance(value, int) and value >= 1 << 20:
        return f"{value >> 20} MiB"
    return f"{value:g}"


def test_every_option_stands_with_its_default():
    documented = {
        name: default for names, default, *_ in table(OPTIONS_HEAD) for name in words(names)
    }
    assert documented.keys() == {option.name for option in fields(Options)}
    for option in fields(Options):
        if option.default not in (MISSING, None, ()):
            assert documented[option.name] == shown(option.default), option.name


def test_every_metric_stands_with_its_label():
    documented = {
        name.removesuffix("_total") for names, *_ in table(METRICS_HEAD) for name in words(names)
    }
    assert documented == {
        metric.name + (f"_total{{{metric.label}}}" if metric.label else "")
        for metric in (*telemetry.COUNTERS, *telemetry.GAUGES, *telemetry.HISTOGRAMS)
    }
