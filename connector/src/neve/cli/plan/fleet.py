"""The command `neve plan fleet`."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from itertools import accumulate
from pathlib import Path
from typing import Any

import click

from neve.cli.offline import CodecRatio, Number, json_option, read_config, table
from neve.cli.plot import Line, draw
from neve.cli.speeds import PrefillSpeed, prefill_of
from neve.errors import Misuse
from neve.formats.space import choose_chunk_tokens
from neve.planner.breakeven import Prefill
from neve.planner.fleet import (
    GIB,
    Constants,
    Fleet,
    HitCurve,
    Model,
    Traffic,
    assumptions,
    best_hit_rate,
    plan,
)
from neve.planner.parts import PrefixBytes, loaded_bytes
from neve.planner.simulate.curve import lru_curve
from neve.planner.sizes import KvSize, kv_size
from neve.replay.trace import TRACE_BLOCK_TOKENS, Request, read_trace

_GB = 1e9
_POINTS = 200  # of a trace's curve that are kept


class Change(click.ParamType[tuple[str, float]]):
    name = "name=number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        key, _, number = str(value).partition("=")
        try:
            return key.strip(), Number().convert(number, None, None)
        except click.BadParameter:
            self.fail(f"{value!r} is no change; write NAME=NUMBER", param, ctx)


_above = Number(min=0, min_open=True)
_file = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.argument("model")
@click.option(
    "--requests-per-s",
    "rates",
    type=_above,
    multiple=True,
    required=True,
    help="Of the busiest hour; several times for several columns.",
)
@click.option(
    "--prefill-tokens-per-s",
    "speeds",
    type=PrefillSpeed(),
    multiple=True,
    required=True,
    help="Of one engine, measured; with @TOKENS several times for several prompt lengths.",
)
@click.option("--trace", type=_file, help="Traffic in Mooncake's format, for hit rate and lengths.")
@click.option(
    "--curve", "curve_file", type=_file, help="Or the answer of `neve simulate --curve --json`."
)
@click.option(
    "--hit-rate",
    type=Number(0, 1, max_open=True),
    help="Target, hits ÷ prompt tokens. Default: the one that pays most, by prices.",
)
@click.option("--prompt-tokens", type=_above, help="Mean. Default: as in the trace.")
@click.option("--output-tokens", type=Number(min=0), help="Of an answer, stored too.")
@click.option(
    "--ttft-s",
    type=_above,
    help="Target for the mean prompt; makes the hot tier as small as it may be.",
)
@click.option(
    "--hot-share",
    type=Number(0, 1),
    default=0.8,
    show_default=True,
    help="Of the hits that come from the hot tier, without --ttft-s.",
)
@click.option("--kv-dtype", default="auto", show_default=True, help="As vLLM's --kv-cache-dtype.")
@click.option(
    "--codec",
    "codec_ratio",
    type=CodecRatio(),
    default=1.0,
    show_default=True,
    help="Bytes before ÷ after the store's codec, such as zstd=1.4.",
)
@click.option(
    "--set", "changes", type=Change(), multiple=True, help="Another value of a listed assumption."
)
@click.option(
    "--plot", type=click.Path(path_type=Path), help="Write machines by requests/s as SVG."
)
@json_option
def fleet(
    model: str,
    rates: Sequence[float],
    speeds: Sequence[tuple[int | None, float]],
    trace: Path | None,
    curve_file: Path | None,
    hit_rate: float | None,
    prompt_tokens: float | None,
    output_tokens: float | None,
    ttft_s: float | None,
    hot_share: float,
    kv_dtype: str,
    codec_ratio: float,
    changes: Sequence[tuple[str, float]],
    plot: Path | None,
    as_json: bool,
) -> None:
    """Say how many machines a hit rate takes, and what limits first.

    MODEL is a config.json, the folder that holds it, or - for standard input.
    """
    constants = Constants.changed(dict(changes))
    curve, output = _curve(trace, curve_file, prompt_tokens)
    kv = kv_size(read_config(model), kv_dtype=kv_dtype, codec_ratio=codec_ratio)
    known = _model(kv, prefill_of(speeds))
    tokens = prompt_tokens or curve.prompt_tokens
    stored = output if output_tokens is None else output_tokens
    wanted = hit_rate
    if wanted is None:
        traffic = Traffic(max(rates), tokens, 0.0, stored)
        wanted = best_hit_rate(traffic, known, curve, constants, hot_share=hot_share, ttft_s=ttft_s)
    found = [
        plan(
            Traffic(rate, tokens, wanted, stored),
            known,
            curve,
            constants,
            hot_share=hot_share,
            ttft_s=ttft_s,
        )
        for rate in sorted(rates)
    ]
    notes = _notes(curve, known, codec_ratio)
    if plot:
        _plot(plot, found, wanted)
    if as_json:
        click.echo(json.dumps(_document(found, notes, constants), indent=2))
        return
    first = found[0]
    click.echo(
        f"KV {known.bytes_per_token:,.0f} bytes a token; of {tokens:,.0f} prompt tokens"
        f" {first.own_hit_rate:.1%} are in engines' own caches,"
        f" {first.hot_hit_rate:.1%} come from hot,"
        f" {first.cold_hit_rate:.1%} from cold"
    )
    click.echo(
        f"first token of the mean prompt {first.ttft_s:.3f} s,"
        f" without Neve {first.ttft_computed_s:.3f} s"
    )
    if not wanted:
        click.echo(
            "By these prices no hit rate pays: memory costs more than the time that it spares."
        )
    elif not first.is_hot_worth:
        click.echo("Loading is slower than computing here: storing saves nothing.")
    elif not first.is_cold_worth:
        click.echo("Loading from S3 is slower than computing: all hits come from hot, no flushes.")
    table(["requests/s", *(f"{one.traffic.requests_per_s:g}" for one in found)], _rows(found))
    click.echo("Limits at the highest rate, the first to be met first:")
    for limit in found[-1].limits:
        click.echo(f"- {limit.name}: {limit.units:,.2f} × {_limit_words(limit.one, limit.unit)}")
    click.echo("Assumptions (another value: --set NAME=NUMBER):")
    for line in notes:
        click.echo(f"- {line}")
    for name, value, words, source in assumptions(constants):
        click.echo(f"- {name} = {value:.12g}: {words} ({source})")


def _model(kv: KvSize, prefill: Prefill) -> Model:
    """Blocks as the connector chooses them by default."""
    largest = max((group.stored_bytes_per_token for group in kv.of_rank().groups), default=0.0)
    block = choose_chunk_tokens(kv.engine_block_tokens, max(1, int(largest)))
    stored = kv.stored(block, kv.engine_block_tokens)
    load = loaded_bytes(kv.part_groups(kv.engine_block_tokens), block)
    load = PrefixBytes(load.per_token / kv.codec_ratio, round(load.fixed / kv.codec_ratio))
    return Model(stored.per_token, block, prefill, stored.fixed, load)


def _rows(found: Sequence[Fleet]) -> list[list[str]]:
    def row(name: str, of: Any) -> list[str]:
        return [name, *(of(one) for one in found)]

    return [
        row("engines", lambda one: f"{one.engines:,}"),
        row("engines without Neve", lambda one: f"{one.engines_without:,}"),
        row("Valkey primaries", lambda one: f"{one.primaries:,}"),
        row("Valkey machines", lambda one: f"{one.hot_machines:,}"),
        row("Valkey clusters", lambda one: f"{one.clusters:,}"),
        row("hot blocks", lambda one: _bytes(one.hot_bytes)),
        row("RAM of Valkeys", lambda one: _bytes(one.memory_bytes)),
        row("cold blocks (S3)", lambda one: _bytes(one.cold_bytes)),
        row("or NVMe of your own S3", lambda one: _bytes(one.disk_bytes)),
        row("hot reads", lambda one: _rate(one.hot_read_bytes_per_s)),
        row("hot writes", lambda one: _rate(one.hot_written_bytes_per_s)),
        row("S3 reads", lambda one: _rate(one.cold_read_bytes_per_s)),
        row("S3 writes", lambda one: _rate(one.cold_written_bytes_per_s)),
        row("S3 GETs/s, PUTs/s", lambda one: f"{one.s3_gets_per_s:,.1f}, {one.s3_puts_per_s:,.1f}"),
        row("reads of an engine", lambda one: _rate(one.engine_read_bytes_per_s)),
        row("connections to a primary", lambda one: f"{one.connections_per_primary:,}"),
        row("heartbeats/s", lambda one: f"{one.heartbeats_per_s:,.1f}"),
        row("cores: web, workers", lambda one: f"{one.web_cores:,}, {one.worker_cores:,}"),
        row(
            f"spared, cost ({found[0].currency}/h)",
            lambda one: f"{one.spared_per_hour:,.2f}, {one.cost_per_hour:,.2f}",
        ),
        row("limits first", lambda one: one.limits[0].name),
    ]


def _document(found: Sequence[Fleet], notes: list[str], constants: Constants) -> dict[str, Any]:
    return {
        "plans": [asdict(one) for one in found],
        "notes": notes,
        "assumptions": [
            {"name": name, "value": value, "words": words, "source": source}
            for name, value, words, source in assumptions(constants)
        ],
    }


def _notes(curve: HitCurve, model: Model, codec_ratio: float) -> list[str]:
    watched = f" over {curve.span_s:,.0f} s" if curve.span_s else ""
    lines = [
        f"Hit rates are LRU's on {curve.name}: {curve.requests_per_s:.3g} requests/s of"
        f" {curve.prompt_tokens:,.0f} tokens{watched}, {curve.highest:.1%} with unlimited capacity."
        " Returns after a longer time are not in it.",
        "More requests come from more users alike: a hit rate's capacity grows with the tokens/s.",
        "An engine's own prefix cache serves some hits without Neve: see engine_cache_tokens.",
        "Each Valkey cluster has its own users and engines, so their hits stay in it.",
        "Engines are counted for prefill and loads; decoding is not in them.",
        "Prices are the defaults of `neve.planner.prices`; of Valkey only memory is priced.",
        f"A block has {model.block_tokens} tokens; every computed token is stored once.",
    ]
    if codec_ratio != 1:
        lines.append(f"A codec makes 1/{codec_ratio:g} of the bytes; its time is not counted.")
    if model.state_bytes:
        lines.append(f"Each request also stores {model.state_bytes:,.0f} bytes of states.")
    return lines


def _curve(
    trace: Path | None, file: Path | None, prompt_tokens: float | None
) -> tuple[HitCurve, float]:
    """The curve and the mean answer's tokens."""
    if (trace is None) == (file is None):
        raise click.UsageError("Give either --trace FILE or --curve FILE: the traffic.")
    if trace:
        requests = read_trace(trace)
        answers = [one.output_tokens for one in requests]
        return _curve_of(requests, trace.name), sum(answers) / len(answers)
    assert file is not None
    return _read_curve(file, prompt_tokens), 0.0


def _curve_of(requests: Sequence[Request], name: str) -> HitCurve:
    span_s = (requests[-1].timestamp_ms - requests[0].timestamp_ms) / 1000
    if span_s <= 0:
        raise Misuse("all requests have one time", field="trace")
    curve = lru_curve(request.hash_ids for request in requests)
    steps = curve.capacities
    # Evenly spaced by the logarithm; the last step, unlimited capacity, is among them.
    spread = (int(len(steps) ** (n / _POINTS)) for n in range(_POINTS + 1))
    kept = {min(len(steps) - 1, place) for place in spread} if steps else set()
    # Before a step the rate is that of the step before: no interpolation across it.
    capacities = sorted({blocks for place in kept for blocks in (steps[place] - 1, steps[place])})
    points = [
        (float(blocks * TRACE_BLOCK_TOKENS), curve.hit_rate(blocks) or 0.0)
        for blocks in capacities
        if blocks >= 1
    ]
    return HitCurve(
        points or [(float(TRACE_BLOCK_TOKENS), 0.0)],
        len(requests) / span_s,
        sum(one.input_tokens for one in requests) / len(requests),
        span_s,
        name,
    )


def _read_curve(file: Path, prompt_tokens: float | None) -> HitCurve:
    """The answer of `neve simulate --curve --json`. Raises `Misuse`."""
    try:
        document = json.loads(file.read_text())
        trace, rows = document["trace"], document["curve"]
        tokens = float(trace["block_tokens"])
        mean = prompt_tokens or trace["asked_blocks"] * tokens / trace["requests"]
        most = trace["distinct_blocks"]
        capacities = [most if row["blocks"] is None else min(most, row["blocks"]) for row in rows]
        # Estimates from samples may fall by their error.
        rates = accumulate((row["hit_rate"] for row in rows), max)
        points = sorted((tokens * each, hit) for each, hit in zip(capacities, rates, strict=True))
        rate = trace["asked_blocks"] * tokens / trace["span_s"] / mean
        return HitCurve(points, rate, mean, trace["span_s"], trace["name"])
    except (*(OSError, ValueError, KeyError, TypeError, ArithmeticError, RecursionError),) as error:
        raise Misuse(f"{file} is no answer of `neve simulate --curve --json`: {error!r}") from error


def _plot(file: Path, found: Sequence[Fleet], hit_rate: float) -> None:
    x = [one.traffic.requests_per_s for one in found]
    draw(
        file,
        [
            Line(
                "engines without Neve",
                x,
                [one.engines_without for one in found],
                is_dashed=True,
            ),
            Line("engines", x, [one.engines for one in found]),
            Line("Valkey primaries", x, [one.primaries for one in found]),
            Line("RAM of Valkeys (TiB)", x, [one.memory_bytes / GIB / 1024 for one in found]),
            Line("web cores", x, [one.web_cores for one in found]),
        ],
        title=f"Machines for a hit rate of {hit_rate:.1%}",
        x_label="requests/s",
        y_label="machines, cores, TiB",
        x_scale="log",
        y_scale="log",
    )


def _bytes(size: float) -> str:
    for unit, name in ((1024**5, "PiB"), (1024**4, "TiB"), (1024**3, "GiB"), (1024**2, "MiB")):
        if size >= unit:
            return f"{size / unit:,.1f} {name}"
    return f"{size / 1024:,.0f} KiB"


def _rate(bytes_per_s: float) -> str:
    if bytes_per_s >= 1e7:
        return f"{bytes_per_s / _GB:,.{0 if bytes_per_s >= 1e11 else 2}f} GB/s"
    return f"{bytes_per_s / 1e6:,.2f} MB/s" if bytes_per_s else "0"


def _limit_words(one: float, unit: str) -> str:
    if unit == "bytes":
        return f"{_bytes(one)} of a primary"
    if unit == "bytes/s":
        return f"{_rate(one)} of a machine"
    if unit.startswith("s of"):
        return f"the time of {unit.split()[2]} {unit.split()[3]}"
    return f"{one:,.0f} {unit}"
