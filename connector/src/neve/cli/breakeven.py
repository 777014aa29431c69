"""The command `neve breakeven`: a table of when loading a model's KV beats computing it."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import click

from neve.cli.speeds import PrefillSpeed, prefill_of
from neve.errors import Misuse
from neve.planner.breakeven import (
    Prefill,
    Store,
    break_even_bytes_per_s,
    break_even_tokens,
)
from neve.planner.sizes import KvSize, kv_size

_GB = 1e9  # network bandwidth is decimal


@click.command()
@click.argument(
    "configs",
    nargs=-1,
    required=True,
    type=click.Path(exists=True, path_type=Path),
    metavar="CONFIG.json...",
)
@click.option(
    "--prefill-tokens-per-s",
    "speeds",
    type=PrefillSpeed(),
    multiple=True,
    required=True,
    help="Measured prefill speed; with @TOKENS several times for several prompt lengths.",
)
@click.option(
    "--bandwidth",
    "bandwidths",
    type=click.FloatRange(min=0, min_open=True),
    multiple=True,
    default=(1.25, 3.125, 12.5),
    show_default=True,
    help="Of the store in GB/s; may be given several times. 10 Gbit/s are 1.25.",
)
@click.option("--round-trip-ms", type=click.FloatRange(min=0), default=1.0, show_default=True)
@click.option("--kv-dtype", default="auto", show_default=True, help="As vLLM's --kv-cache-dtype.")
@click.option(
    "--tokens",
    "lengths",
    type=click.IntRange(min=1),
    multiple=True,
    default=(2048, 8192, 32768, 65536),
    show_default=True,
    help="Prompt lengths of the table.",
)
def breakeven(
    configs: Sequence[Path],
    speeds: Sequence[tuple[int | None, float]],
    bandwidths: Sequence[float],
    round_trip_ms: float,
    kv_dtype: str,
    lengths: Sequence[int],
) -> None:
    """Say when loading a model's KV is faster than computing it.

    CONFIG.json is a model's configuration, or the folder that holds it.
    """
    prefill = prefill_of(speeds)
    for path in configs:
        file = path / "config.json" if path.is_dir() else path
        try:
            config = json.loads(file.read_text())
        except (OSError, ValueError) as error:
            raise Misuse(f"cannot read {file}: {error}") from error
        if not isinstance(config, dict):
            raise Misuse(f"{file} is no model's configuration: no JSON object")
        kv = kv_size(config, kv_dtype=kv_dtype)
        name = (config.get("architectures") or [config.get("model_type", "model")])[0]
        click.echo(f"{path}: {name}, {_shape(kv)}, {kv.stored_bytes_per_token:,.0f} bytes a token")
        for line in table(kv, prefill, bandwidths, round_trip_ms / 1000, sorted(lengths)):
            click.echo(line)


def table(
    kv: KvSize,
    prefill: Prefill,
    bandwidths: Sequence[float],
    round_trip_s: float,
    lengths: Sequence[int],
) -> list[str]:
    """The table's lines: seconds to compute, seconds to load at each bandwidth (GB/s), and the
    break-even bandwidths and lengths."""
    size = int(kv.stored_bytes_per_token)
    head = f"{'tokens':>9} {'GB':>8} {'compute':>9} {'break even':>12}"
    lines = [head + "".join(f" {f'{gb:g} GB/s':>17}" for gb in bandwidths)]
    for tokens in lengths:
        compute_s = prefill.seconds(0, tokens)
        even = break_even_bytes_per_s(
            prefill, tokens=tokens, bytes_per_token=size, round_trip_s=round_trip_s
        )
        rate = "never" if math.isinf(even) else f"{even / _GB:.2f} GB/s"
        line = f"{tokens:>9} {tokens * size / _GB:>8.3f} {compute_s:>7.3f} s {rate:>12}"
        for gb in bandwidths:
            load_s = Store(gb * _GB, round_trip_s).seconds(tokens * size)
            line += f" {load_s:>7.3f} s {compute_s / load_s:>6.1f}x"
        lines.append(line)
    least = [
        break_even_tokens(prefill, Store(gb * _GB, round_trip_s), bytes_per_token=size)
        for gb in bandwidths
    ]
    words = ["never" if n is None else f"from {n:,}" for n in least]
    lines.append(f"{'worth loading':>41}" + "".join(f" {word:>17}" for word in words))
    return lines


def _shape(kv: KvSize) -> str:
    return ", ".join(f"{group.layers} layers of {group.shape}" for group in kv.groups)
