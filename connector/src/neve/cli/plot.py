"""Figures of commands as SVG files, by matplotlib from the extra `neve[plot]`.

The same data make the same bytes: no dates, seeded ids, text kept as text. A figure in the
repository changes only when its data do (or matplotlib, which requirements-dev.txt pins).
matplotlib is imported when a figure is drawn, never by `neve --help`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from neve.errors import Misuse

# Okabe and Ito: told apart by colour-blind readers, on white and on black.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999933")
_MARKERS = "os^Dv*Px"


@dataclass(frozen=True, slots=True)
class Line:
    """Points of one line; `low` and `high`, if given, are a band around it, of the same length."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    is_dashed: bool = False


@dataclass(frozen=True, slots=True)
class Mark:
    """A vertical line at `x` with words beside it."""

    x: float
    label: str


def draw(
    file: Path,
    lines: Sequence[Line],
    *,
    title: str,
    x_label: str,
    y_label: str,
    marks: Sequence[Mark] = (),
    x_scale: Literal["linear", "log"] = "linear",
    y_scale: Literal["linear", "log"] = "linear",
    has_points: bool = True,
) -> None:
    """Write lines over one pair of axes to `file`, an SVG.

    Raises `Misuse` if matplotlib is missing (install `neve[plot]`), if `file` does not end with
    .svg or cannot be written, or if a line has unequal numbers of x and y.
    """
    if file.suffix != ".svg":
        raise Misuse(f"--plot {file}: figures are SVG; end the name with .svg", field="plot")
    for line in lines:
        if any(
            len(part) != len(line.x) for part in (line.y, line.low or line.x, line.high or line.x)
        ):
            raise Misuse(f"line {line.label!r}: {len(line.x)} x, {len(line.y)} y", field="plot")
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise Misuse(
            "figures need matplotlib: run `pip install 'neve[plot]'`", field="plot"
        ) from error
    # Neither a display, nor the user's settings, nor pyplot's global state.
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "neve"})
        figure = Figure(figsize=(8, 4.5), layout="constrained")
        axes = figure.add_subplot()
        for place, line in enumerate(lines):
            colour = COLOURS[place % len(COLOURS)]
            axes.plot(
                line.x,
                line.y,
                label=line.label,
                color=colour,
                linestyle="--" if line.is_dashed else "-",
                marker=_MARKERS[place % len(_MARKERS)] if has_points else None,
                markersize=4,
            )
            if line.low is not None and line.high is not None:
                axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.2, linewidth=0)
        for mark in marks:
            axes.axvline(mark.x, color="#666666", linestyle=":")
            axes.annotate(
                mark.label,
                (mark.x, 1),
                xycoords=("data", "axes fraction"),
                xytext=(4, -12),
                textcoords="offset points",
            )
        axes.set(title=title, xlabel=x_label, ylabel=y_label, xscale=x_scale, yscale=y_scale)
        if y_scale == "linear":
            axes.set_ylim(bottom=0)
        axes.grid(visible=True, alpha=0.3)
        if len(lines) > 1:
            axes.legend()
        try:
            figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
        except OSError as error:
            raise Misuse(f"cannot write {file}: {error}", field="plot") from error
