"""The command `neve plan prfaas`. Its defaults are the published case of arXiv 2604.15039."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import click
import numpy as np

from neve.cli.offline import LEAST, MOST, Number, Whole, json_option
from neve.cli.plot import Line, Mark, draw
from neve.errors import Misuse
from neve.planner.prfaas import (
    Answer,
    Clusters,
    Curve,
    Lengths,
    LogNormal,
    Measured,
    Point,
    scaled_to,
    solve,
    thresholds,
)

_MIB: Final = 1 << 20
_GBIT: Final = 1e9 / 8  # bytes
# Table 5 of the paper: tokens, seconds of one instance of 8 H200, MiB of KV.
PUBLISHED: Final = (
    (1_000, 0.44, 190.8),
    (8_000, 0.72, 308.9),
    (32_000, 1.84, 701.3),
    (128_000, 7.40, 2316.3),
)
PUBLISHED_LENGTHS: Final = LogNormal(9.90, 1.00, 128, 128_000)
# Table 6: mean and 90th percentile of the time to the first token on 96 H20. They are prefill times
# without waiting: those of the table's H200 alone, 1.74 and 3.51 s, are 1.67 and 3.38 s by table 5.
PUBLISHED_LOCAL_S: Final = (4.44, 9.73)
PUBLISHED_PRICE: Final = 2.02


class Pair(click.ParamType[tuple[float, float]]):
    name = "number:number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            first, second = map(float, str(value).split(":"))
        except ValueError:
            self.fail(f"{value!r} is no pair; write two numbers such as 9.9:1", param, ctx)
        if not (abs(first) <= MOST and abs(second) <= MOST):
            self.fail(f"{value!r} is no pair of numbers", param, ctx)
        return first, second


_above = Number(min=0, min_open=True)
_file = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.option(
    "--points",
    "points_file",
    type=_file,
    help="Lines of tokens, prefill seconds and MiB of KV, measured on a remote instance.",
)
@click.option(
    "--local-points",
    "local_file",
    type=_file,
    help="Lines of tokens and prefill seconds, measured on a local instance.",
)
@click.option(
    "--local-mean-s",
    type=_above,
    help="Instead: mean prefill time on a local instance, of the given lengths.",
)
@click.option("--local-p90-s", type=_above, help="And its 90th percentile.")
@click.option(
    "--lognormal",
    type=Pair(),
    default="9.90:1.00",
    show_default=True,
    help="μ:σ of the logarithm of uncached prompt lengths in tokens.",
)
@click.option(
    "--cut", type=Pair(), default="128:128000", show_default=True, help="Shortest:longest of them."
)
@click.option(
    "--lengths",
    "lengths_file",
    type=_file,
    help="Uncached prompt lengths, one a line, instead of a distribution.",
)
@click.option("--remote-instances", type=Whole(1, 1000), default=4, show_default=True)
@click.option("--local-instances", type=Whole(2, 1000), default=8, show_default=True)
@click.option(
    "--baseline-instances",
    type=Whole(2, 1000),
    default=12,
    show_default=True,
    help="Machines like the local ones, without a remote cluster.",
)
@click.option("--link-gbit", type=_above, default=100.0, show_default=True)
@click.option(
    "--decode-batch", type=_above, default=20.0, show_default=True, help="Requests an instance."
)
@click.option("--decode-tokens-per-s", type=_above, default=40.0, show_default=True)
@click.option("--output-tokens", type=_above, default=1024.0, show_default=True)
@click.option(
    "--remote-price",
    type=_above,
    default=PUBLISHED_PRICE,
    show_default=True,
    help="Of a remote instance, in local ones.",
)
@click.option(
    "--each-length",
    is_flag=True,
    help="Take the mean time of all lengths instead of the time at the mean length.",
)
@click.option(
    "--plot", type=click.Path(path_type=Path), help="Write requests/s by threshold as SVG."
)
@json_option
def prfaas(
    points_file: Path | None,
    local_file: Path | None,
    local_mean_s: float | None,
    local_p90_s: float | None,
    lognormal: tuple[float, float],
    cut: tuple[float, float],
    lengths_file: Path | None,
    remote_instances: int,
    local_instances: int,
    baseline_instances: int,
    link_gbit: float,
    decode_batch: float,
    decode_tokens_per_s: float,
    output_tokens: float,
    remote_price: float,
    each_length: bool,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Say which prompts another cluster should compute.

    Prompts with many uncached tokens go to a remote cluster, which sends their KV back over a link.
    Without options: the published case of arXiv 2604.15039.
    """
    rows = _numbers(points_file, 3) if points_file else [list(row) for row in PUBLISHED]
    remote = Curve.through([(tokens, seconds) for tokens, seconds, _ in rows])
    fixed, per_token = _bytes_line([(tokens, mib * _MIB) for tokens, _, mib in rows])
    lengths: Lengths = (
        Measured([int(row[0]) for row in _numbers(lengths_file, 1)])
        if lengths_file
        else LogNormal(*lognormal, *cut)
    )
    if local_file:
        local = Curve.through([(tokens, seconds) for tokens, seconds in _numbers(local_file, 2)])
    elif local_mean_s and local_p90_s:
        local = scaled_to(remote, lengths, mean_s=local_mean_s, share=0.9, share_s=local_p90_s)
    elif points_file or local_mean_s or local_p90_s:
        raise Misuse("give --local-points, or --local-mean-s and --local-p90-s", field="local")
    else:
        mean_s, p90_s = PUBLISHED_LOCAL_S
        local = scaled_to(remote, PUBLISHED_LENGTHS, mean_s=mean_s, share=0.9, share_s=p90_s)
    clusters = Clusters(
        remote=remote,
        local=local,
        kv_fixed_bytes=fixed,
        kv_bytes_per_token=per_token,
        decode_per_s=decode_batch * decode_tokens_per_s / output_tokens,
        remote_instances=remote_instances,
        local_instances=local_instances,
        baseline_instances=baseline_instances,
        link_bytes_per_s=link_gbit * _GBIT,
    )
    answer = solve(clusters, lengths, by_each_length=each_length)
    assumptions = _assumptions(
        each_length,
        local=local,
        has_local_points=local_file is not None,
        is_local_published=not (local_file or local_mean_s),
        is_batch_published=(decode_batch, decode_tokens_per_s, output_tokens) == (20, 40, 1024),
        remote_price=remote_price,
    )
    if plot:
        _plot(plot, clusters, lengths, answer)
    equal_cost = answer.gain_at_equal_cost(remote_price, clusters)
    if as_json:
        click.echo(json.dumps(_document(answer, equal_cost, assumptions), indent=2))
        return
    for label, value in _facts(answer, clusters, equal_cost):
        click.echo(f"{label:<22}{value}")
    click.echo("Assumptions:")
    for line in assumptions:
        click.echo(f"- {line}")


def _facts(answer: Answer, clusters: Clusters, equal_cost: float) -> list[tuple[str, str]]:
    best, base = answer.best, answer.baseline
    egress = best.egress_bytes_per_s / _GBIT
    link = best.egress_bytes_per_s / clusters.link_bytes_per_s
    return [
        ("routing threshold", f"{best.threshold_tokens:,.0f} uncached tokens"),
        (
            "offloaded",
            f"{best.offloaded:.1%} of requests, {best.long_tokens:,.0f} tokens on average;"
            f" the others have {best.short_tokens:,.0f}",
        ),
        (
            "local instances",
            f"{best.prefill_instances} compute short prompts, {best.decode_instances} decode",
        ),
        ("requests/s", f"{best.requests_per_s:.2f}"),
        (
            "baseline requests/s",
            f"{base.requests_per_s:.2f} from {clusters.baseline_instances} local instances"
            f" ({base.prefill_instances} compute, {base.decode_instances} decode)",
        ),
        ("gain", f"{answer.gain:.2f} ×; at equal cost {equal_cost:.2f} ×"),
        ("egress", f"{egress:.1f} Gbit/s, {link:.0%} of the link"),
        ("mean prefill time", f"{best.prefill_mean_s:.2f} s, without waiting or transfer"),
        ("limited by", ", ".join(best.limits)),
        (
            "alone could sustain",
            "; ".join(f"{name} {_rate(rate)}" for name, rate in _parts(best).items()),
        ),
    ]


def _document(answer: Answer, equal_cost: float, assumptions: list[str]) -> dict[str, Any]:
    best = {
        name: value if not isinstance(value, float) or math.isfinite(value) else None
        for name, value in asdict(answer.best).items()
    }
    return {
        **best,
        "requests_per_s": answer.best.requests_per_s,
        "limited_by": list(answer.best.limits),
        "mean_tokens": answer.mean_tokens,
        "baseline": asdict(answer.baseline),
        "gain": answer.gain,
        "gain_at_equal_cost": equal_cost,
        "assumptions": assumptions,
    }


def _assumptions(
    each_length: bool,
    *,
    local: Curve,
    has_local_points: bool,
    is_local_published: bool,
    is_batch_published: bool,
    remote_price: float,
) -> list[str]:
    lines = [
        "Steady arrivals; no time is lost to waiting, transfers overlap computing"
        " (equations 3 to 6 of arXiv 2604.15039).",
        "Prefill time is a parabola, KV a line through the measured points (least squares).",
        "A cluster's prefill time is the mean of the times of its prompts."
        if each_length
        else "A cluster's prefill time is the time at its prompts' mean length, as in the paper;"
        " --each-length takes the mean of their times, which is longer.",
    ]
    if not has_local_points:
        lines.append(
            "A local instance's prefill time is the remote one's, scaled and shifted to a known"
            f" mean and 90th percentile: {local.at(1_000):.2f} s at 1,000 tokens,"
            f" {local.at(32_000):.2f} s at 32,000."
        )
    if is_local_published:
        mean_s, p90_s = PUBLISHED_LOCAL_S
        lines.append(
            f"These two, {mean_s} and {p90_s} s, are first-token times of 96 H20 (table 6), taken"
            " as prefill times without waiting: prefill times of H20 are not published."
        )
    if is_batch_published:
        lines.append(
            "A decode batch of 20 is not published; it follows from table 6: 6.25 requests/s"
            " of 8 instances at 40 tokens/s and 1,024 tokens."
        )
    lines.append(
        f"A remote instance costs {remote_price:g} local ones"
        + (
            ", which is not published: solved from the paper's gain of 15 % at equal cost."
            if remote_price == PUBLISHED_PRICE
            else "."
        )
    )
    return lines


def _plot(file: Path, clusters: Clusters, lengths: Lengths, answer: Answer) -> None:
    best = answer.best
    found = thresholds(clusters, lengths, best.prefill_instances)
    high = 3 * best.requests_per_s
    x = [one.threshold_tokens for one in found]
    lines = [
        Line("whole system", x, [one.requests_per_s for one in found]),
        *(
            Line(name, x, [min(high, _parts(one)[name]) for one in found], is_dashed=True)
            for name in ("remote prefill", "local prefill", "decode")
        ),
    ]
    draw(
        file,
        lines,
        title=f"Best threshold: {best.threshold_tokens:,.0f} uncached tokens,"
        f" {best.requests_per_s:.2f} requests/s",
        x_label="routing threshold (uncached tokens)",
        y_label="requests/s that each part could sustain",
        marks=[Mark(best.threshold_tokens, f"{best.offloaded:.1%} offloaded")],
        has_points=False,
    )


def _parts(found: Point) -> dict[str, float]:
    return {
        "remote prefill": found.remote_per_s,
        "local prefill": found.local_per_s,
        "decode": found.decode_per_s,
        "link": found.link_per_s,
    }


def _rate(rate: float) -> str:
    return f"{rate:.2f}" if math.isfinite(rate) else "any rate"


def _numbers(file: Path, columns: int) -> list[list[float]]:
    """Lines of numbers between spaces or commas; # begins a comment. Raises `Misuse`."""
    rows = []
    try:
        lines = file.read_text().splitlines()
    except (OSError, ValueError) as error:
        raise Misuse(f"cannot read {file}: {error}") from error
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].replace(",", " ").split()
        if not words:
            continue
        try:
            row = [float(word) for word in words]
        except ValueError:
            row = []
        if len(row) != columns or not all(LEAST <= one <= MOST for one in row):
            raise Misuse(f"{file}, line {number}: needs {columns} numbers above 0")
        rows.append(row)
    if not rows:
        raise Misuse(f"{file} has no line of {columns} numbers")
    return rows


def _bytes_line(points: list[tuple[float, float]]) -> tuple[float, float]:
    """Bytes of a prompt: a fixed part and bytes per token, neither below 0."""
    if len(points) == 1:
        return 0.0, points[0][1] / points[0][0]
    slope, fixed = np.polyfit([one[0] for one in points], [one[1] for one in points], 1)
    return max(0.0, float(fixed)), max(0.0, float(slope))
