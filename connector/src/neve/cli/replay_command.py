"""The command line of `neve replay`; `neve.cli.replay` does its work."""

import json
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import click

from neve.cli.exits import WRONG_BLOCK
from neve.cli.node_key import node_credentials, node_key_options
from neve.cli.replay import ReplayOptions, compare_models, replay_workload
from neve.datapath.local import check_options
from neve.errors import Misuse
from neve.replay.generator import Workload
from neve.replay.report import format_comparison, format_table

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


class Size(click.ParamType[int]):
    """Bytes: 4096, 4KiB, 1.5GiB. K, KB and KiB all mean 1024."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        parsed = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", str(value).strip(), re.I)
        size = int(float(parsed[1]) * _UNITS[parsed[2].upper()]) if parsed else 0
        if size < 1:
            self.fail(f"{value!r} is not a size; write it like 4096, 4KiB or 1GiB", param, ctx)
        return size


class ReplaySpeed(click.ParamType[float | None]):
    """`max` (None), or a multiple of the recorded speed: 1x, 10x."""

    name = "max|1x|10x"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float | None:
        if value is None or value == "max":
            return None
        parsed = re.fullmatch(r"(\d+(?:\.\d+)?)x?", str(value))
        if parsed is None or float(parsed[1]) == 0:
            self.fail(f"{value!r} is no speed; write max, 1x or 10x", param, ctx)
        return float(parsed[1])


@click.command()
@click.argument("trace", required=False, type=click.Path(dir_okay=False, path_type=Path))
@node_key_options
@click.option(
    "--generate",
    type=click.Choice([workload.value for workload in Workload]),
    help="Built-in workload to use without TRACE.  [default: mixed]",
)
@click.option("--seed", type=int, default=1, show_default=True, help="Of the built-in workload.")
@click.option(
    "--requests",
    type=click.IntRange(min=1),
    help="How many.  [default: the whole trace; 200 of a built-in workload; no end with --loop]",
)
@click.option(
    "--kv-bytes-per-token", type=Size(), default="4KiB", show_default=True, help="All layers."
)
@click.option("--max-chunk-tokens", type=click.IntRange(min=16), default=256, show_default=True)
@click.option("--concurrency", type=click.IntRange(1, 32), default=4, show_default=True)
@click.option(
    "--speed",
    type=ReplaySpeed(),
    default="max",
    show_default=True,
    help="Of the workload's own times.",
)
@click.option(
    "--rate",
    type=click.FloatRange(min=0, min_open=True),
    help="Requests per second instead of --speed.  [default with --loop: 5]",
)
@click.option("--loop", is_flag=True, help="Never end: wait for Neve when away, repeat TRACE.")
@click.option("--model", default="replay", show_default=True, help="Model named in the space.")
@click.option(
    "--models",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    help="Models that take turns, request by request. Two or more replay twice, as one family that "
    "shares its KV and with a space each, and compare.",
)
@click.option("--space", help="Name of the space.  [default: by what it holds]")
@click.option("--node", help="Name of this node.  [default: replay-HOST]")
@click.option("--salt", default="", help="Another salt shares no block with earlier replays.")
@click.option(
    "--prefill-tokens-per-s",
    type=click.FloatRange(min=0, min_open=True),
    help="Wait as if tokens that were not loaded were computed at this rate.  [default: no wait]",
)
@click.option(
    "--capacity",
    type=Size(),
    help="Bytes of the ideal cache to compare with.  [default: the tenant's hot + cold quota]",
)
@click.option(
    "--local-dir",
    metavar="DIR",
    help="The node's local tier: an absolute path, as a node's option local_dir.",
)
@click.option("--local-bytes", type=Size(), help="The most bytes of blocks in --local-dir.")
@click.option("--json", "json_path", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--quiet", is_flag=True, help="No progress, only what is wrong and the summary.")
def replay(
    endpoint: str | None,
    api_key: str | None,
    api_key_file: Path | None,
    json_path: Path | None,
    **options: Any,
) -> None:
    """Replay TRACE, or a built-in workload, through the real client, and check every read.

    Blocks hold incompressible bytes that follow from their ids; a wrong one ends the replay with
    exit code 2. SIGTERM and Ctrl-C finish what is in flight and print the summary.
    """
    url, key = node_credentials(endpoint, api_key, api_key_file)
    chosen = _replay_options(**options)
    result: dict[str, Any]
    with _stopped_by_signals() as stop:
        if chosen.models > 1:
            summaries = compare_models(url, key, chosen, stop=stop)
            result = dict(zip(("family", "apart"), summaries, strict=False))
        else:
            summary = replay_workload(url, key, chosen, stop=stop)
            summaries = [] if summary is None else [summary]
            result = summary or {}
    if not summaries:
        return
    if len(summaries) == 2:
        click.echo(format_comparison(*summaries, models=chosen.models))
    else:
        click.echo(format_table(summaries[0]))
    if json_path:
        json_path.write_text(json.dumps(result, indent=2) + "\n")
    for summary in summaries:
        if summary["read"]["wrong_blocks"]:
            click.secho(f"WRONG BLOCK: {summary['error']}", fg="red", bold=True, err=True)
            sys.exit(WRONG_BLOCK)
        if summary["error"]:
            raise click.ClickException(summary["error"])


def _replay_options(
    *,
    generate: str | None,
    loop: bool,
    rate: float | None,
    speed: float | None,
    node: str | None,
    **rest: Any,
) -> ReplayOptions:
    if rest["trace"] is not None and generate is not None:
        raise click.UsageError("give either TRACE or --generate, not both")
    if rate is not None and speed is not None:
        raise click.UsageError("give either --rate or --speed, not both")
    if loop and rest["models"] > 1:
        raise click.UsageError("--models compares two replays that end; give no --loop")
    _check_local(rest["local_dir"], rest["local_bytes"])
    if loop and rate is None and speed is None:
        rate = 5.0
    workload = Workload(generate) if generate else Workload.MIXED
    return ReplayOptions(
        workload=workload,
        loop=loop,
        rate_per_s=rate,
        speed=speed,
        node=node or f"replay-{socket.gethostname()}",
        **rest,
    )


def _check_local(folder: str | None, most_bytes: int | None) -> None:
    """As a node's options are checked, before anything is asked."""
    try:
        check_options(folder, most_bytes)
    except Misuse as error:
        raise click.UsageError(str(error).replace("local_", "--local-")) from error


@contextmanager
def _stopped_by_signals() -> Iterator[threading.Event]:
    """An event set by SIGTERM or SIGINT; a second signal ends the process at once."""
    stop = threading.Event()

    def on_signal(number: int, _: FrameType | None) -> None:
        if stop.is_set():
            os._exit(128 + number)
        stop.set()

    before = {
        number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
