"""The command `neve simulate`: hits and bytes of simulated tiers on a recorded workload.

`neve.planner.simulate` plays, `neve.cli.simulate_report` writes.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from statistics import mode
from typing import Any

import click

from neve.cli.offline import Number, Whole, json_option, read_config
from neve.cli.simulate_options import Amount, Capacity, OfTier, Seconds
from neve.cli.simulate_report import (
    Row,
    Workload,
    Worth,
    curve_json,
    hit_rate_at,
    plot_curve,
    plot_rows,
    round_sizes,
    show_buckets,
    show_curve,
    show_rows,
)
from neve.errors import Misuse
from neve.planner.simulate import sampled, traces
from neve.planner.simulate.policies import POLICIES
from neve.planner.simulate.settings import REFUSE, Setting, TierSetting
from neve.planner.simulate.sweep import sweep
from neve.planner.simulate.tiers import Promote, hits_by_request
from neve.planner.sizes import kv_size
from neve.planner.whatif import scaled

DEFAULT_POLICY = "2q"
_MOST_SETTINGS = 1000
_MOST_BUCKETS = 1000


@click.command()
@click.argument("trace", metavar="TRACE")
@click.option(
    "--policy",
    "policies",
    type=click.Choice(POLICIES),
    multiple=True,
    default=(DEFAULT_POLICY,),
    help="Of the hot tier; several: a sweep. belady knows the future: the upper bound of a single "
    f"tier.  [default: {DEFAULT_POLICY}]",
)
@click.option(
    "--hot", "hots", type=Capacity(), multiple=True, help="Size of the hot tier; several: a sweep."
)
@click.option(
    "--cold",
    "colds",
    type=Capacity(),
    multiple=True,
    help="Size of the cold tier; several: a sweep.  [default: there is none]",
)
@click.option(
    "--cold-policy",
    type=click.Choice([*(name for name in POLICIES if name != "belady"), REFUSE]),
    default="lru",
    show_default=True,
    help="lru, the longest unread leave, and refuse are the platform's.",
)
@click.option("--local", type=Capacity(), help="Size of a node's own tier (lru) in front.")
@click.option("--block-bytes", type=Whole(), help="Bytes of a block's KV.")
@click.option("--model", metavar="CONFIG.json", help="A model, instead of --block-bytes.")
@click.option("--kv-dtype", default="auto", show_default=True, help="As vLLM's --kv-cache-dtype.")
@click.option(
    "--block-tokens",
    type=Whole(),
    help=f"Tokens of a block.  [default: {traces.BLOCK_TOKENS}]",
)
@click.option("--ttl", type=Seconds(), help="A block's life from its storing on, in all tiers.")
@click.option("--hot-idle", type=Seconds(), help="Blocks unused for so long leave the hot tier.")
@click.option("--flush-after", type=Seconds(), help="From the storing on.  [default: at once]")
@click.option(
    "--promote",
    type=click.Choice([each.value for each in Promote]),
    default=Promote.SECOND_READ.value,
    show_default=True,
    help="The read of a cold block that makes it hot again; second: of two within an hour.",
)
@click.option(
    "--codec",
    "codecs",
    type=OfTier(),
    multiple=True,
    help="Bytes before ÷ after a tier's codec: cold=2 halves them.",
)
@click.option(
    "--prefill-tokens-per-s",
    "prefill",
    type=Number(min=0, min_open=True),
    help="Measured prefill speed of a GPU: adds the GPU-seconds that hits spare.",
)
@click.option(
    "--bandwidth",
    "bandwidths",
    type=OfTier(),
    multiple=True,
    help="Of loading from a tier in GB/s, hot=5: takes the load time off what hits spare.",
)
@click.option("--every", type=Seconds(), help="Also split hits by time, in slices so long.")
@click.option(
    "--warm-up", type=Seconds(), help="Requests of so long a beginning only fill the tiers."
)
@click.option("--curve", is_flag=True, help="Hit rates of one LRU tier at every size, in one pass.")
@click.option("--plot", type=click.Path(path_type=Path), help="Draw hit rates by size: FILE.svg.")
@click.option("--processes", type=click.IntRange(1, 256), help="Of a sweep.  [default: all cores]")
@json_option
def simulate(
    trace: str,
    policies: Sequence[str],
    hots: Sequence[Amount],
    colds: Sequence[Amount],
    block_bytes: int | None,
    model: str | None,
    kv_dtype: str,
    block_tokens: int | None,
    prefill: float | None,
    bandwidths: Sequence[tuple[str, float]],
    every: int | None,
    warm_up: int | None,
    curve: bool,
    plot: Path | None,
    processes: int | None,
    as_json: bool,
    **others: Any,
) -> None:
    """Play a recorded workload on simulated tiers.

    TRACE is a file of requests: JSON Lines in Mooncake's format, a debug log of vLLM with prompt
    token ids, or samples of Neve; - is standard input. A request hits the blocks of its longest
    stored prefix, and stores its other blocks.

    Give --hot alone for a single tier, such as an ideal cache:

        neve simulate TRACE --policy lru --hot 1000blocks --hot 10000blocks

    Give --cold as well for the platform's two tiers. A size is a number of blocks (50000blocks),
    bytes (64GiB; with --block-bytes or --model), or unlimited.
    """
    workload = _workload(
        trace, block_tokens, _block_bytes(block_bytes, model, kv_dtype, block_tokens)
    )
    if curve:
        _curve(workload, hots, colds, policies, plot, as_json=as_json)
        return
    tiers = 1 + bool(colds) + (others["local"] is not None)
    worth = Worth(prefill, dict(bandwidths))
    _check(workload, hots, worth, others["codecs"], block_tokens, every, warm_up, tiers=tiers)
    below: list[Amount | None] = [*colds] or [None]
    choices = [
        (policy, hot, cold, _setting(workload, policy, hot, cold, **others))
        for policy, cold, hot in product(policies, below, hots)
    ]
    if len(choices) > _MOST_SETTINGS:
        raise click.UsageError(
            f"{len(choices)} settings are too many: give {_MOST_SETTINGS} at most"
        )
    if every and workload.span_s / every > _MOST_BUCKETS:
        raise click.UsageError(
            f"--every {every}s makes more than {_MOST_BUCKETS} slices: give longer ones"
        )
    first_s = workload.trace.requests[0].at_s
    with _progress(len(choices), is_quiet=as_json) as progress:
        results = sweep(
            [setting for *_, setting in choices],
            workload.trace.requests,
            processes=processes or len(os.sched_getaffinity(0)),
            bucket_s=every,
            count_from_s=None if warm_up is None else first_s + warm_up,
            progress=progress,
        )
    rows = [
        Row(*choice, result, _estimate(workload, choice[-1]))
        for choice, result in zip(choices, results, strict=True)
    ]
    if not rows[0].result.asked_blocks:
        raise Misuse(f"the trace has no request after {warm_up} s", field="warm-up")
    if plot is not None:
        plot_rows(plot, rows, workload)
    if as_json:
        found = [row.json(workload, worth) for row in rows]
        click.echo(json.dumps({"trace": workload.facts(), "settings": found}, indent=2))
        return
    for line in workload.words():
        click.echo(line)
    click.echo()
    show_rows(rows, workload, worth)
    if every and len(rows) == 1:
        show_buckets(rows[0], workload)


def _workload(name: str, block_tokens: int | None, block_bytes: int | None) -> Workload:
    """Raises: Misuse for a file that can't be read or holds no trace."""
    tokens = block_tokens or traces.BLOCK_TOKENS
    title = "standard input" if name == "-" else Path(name).name
    try:
        if name == "-":
            trace = traces.read(sys.stdin, block_tokens=tokens)
        else:
            with Path(name).open(encoding="utf-8") as lines:
                trace = traces.read(lines, block_tokens=tokens)
    except (OSError, UnicodeDecodeError) as error:
        words = getattr(error, "strerror", None) or str(error)
        raise Misuse(f"cannot read {name}: {words}", field="TRACE") from error
    except Misuse as error:
        raise Misuse(f"{title}: {error}", field="TRACE") from error
    if block_bytes is None and trace.samples is not None:
        sizes = [each.block_bytes for each in trace.samples.requests]
        block_bytes = mode(sizes) if sizes and mode(sizes) > 1 else None
    return Workload(
        "standard input" if name == "-" else Path(name).name, trace, tokens, block_bytes
    )


def _block_bytes(
    block_bytes: int | None, model: str | None, kv_dtype: str, block_tokens: int | None
) -> int | None:
    if model is None:
        return block_bytes
    if block_bytes is not None:
        raise click.UsageError("give either --block-bytes or --model, not both")
    kv = kv_size(read_config(model), kv_dtype=kv_dtype)
    return max(1, round(kv.block_bytes(block_tokens or traces.BLOCK_TOKENS)))


def _check(
    workload: Workload,
    hots: Sequence[Amount],
    worth: Worth,
    codecs: Sequence[tuple[str, float]],
    block_tokens: int | None,
    every: int | None,
    warm_up: int | None,
    *,
    tiers: int,
) -> None:
    if not hots:
        raise click.UsageError("give at least one --hot size, such as 50000blocks, or --curve")
    if worth.bandwidths and worth.prefill_tokens_per_s is None:
        raise click.UsageError("--bandwidth needs --prefill-tokens-per-s")
    if workload.block_bytes is None and (worth.bandwidths or codecs):
        name = "--bandwidth" if worth.bandwidths else "--codec"
        raise click.UsageError(f"{name} needs the bytes of a block: give --block-bytes or --model")
    if workload.samples is not None and (every or warm_up):
        name = "--every" if every else "--warm-up"
        raise click.UsageError(f"{name} needs a whole trace: this one has samples")
    if workload.samples is not None and tiers > 1 and worth.prefill_tokens_per_s:
        raise click.UsageError(
            "--prefill-tokens-per-s needs a whole trace or one tier: samples do not tell which "
            "tier serves a hit"
        )
    if workload.trace.samples is not None and worth.prefill_tokens_per_s and block_tokens is None:
        raise click.UsageError("samples do not say the tokens of a block: give --block-tokens")


def _setting(
    workload: Workload,
    policy: str,
    hot: Amount,
    cold: Amount | None,
    *,
    cold_policy: str,
    local: Amount | None,
    ttl: int | None,
    hot_idle: int | None,
    flush_after: int | None,
    promote: str,
    codecs: Sequence[tuple[str, float]],
) -> Setting:
    """Raises: Misuse, click.UsageError with the option."""
    ratios = dict(codecs)
    given = {"hot": hot, "cold": cold, "local": local}
    for name in ratios:
        if given[name] is None:
            raise click.UsageError(f"--codec {name}=…: there is no {name} tier; give --{name}")
    if cold is None and flush_after is not None:
        raise click.UsageError("--flush-after needs a cold tier: give --cold")

    def tier(name: str, amount: Amount, policy: str, idle_s: int | None = None) -> TierSetting:
        ratio = ratios.get(name, 1.0)
        capacity = _bytes(workload, name, amount)
        made = TierSetting(capacity, policy, idle_s, ratio)
        least = made.block_bytes(workload.block_bytes or 1)
        if capacity is not None and capacity < least:
            whole = "; samples need more than the whole traffic" if workload.trace.rate < 1 else ""
            words = f"{amount.text} hold not even one block of {least} bytes{whole}"
            raise Misuse(words, field=f"--{name}")
        return made

    return Setting(
        hot=tier("hot", hot, policy, hot_idle),
        cold=tier("cold", cold, cold_policy) if cold else None,
        local=tier("local", local, "lru") if local else None,
        block_bytes=workload.block_bytes or 1,
        block_tokens=workload.block_tokens,
        promote=Promote(promote),
        ttl_s=ttl,
        flush_after_s=flush_after or 0,
    )


def _bytes(workload: Workload, name: str, amount: Amount) -> int | None:
    """A tier's capacity, in blocks if their bytes are unknown, × the rate of samples."""
    if amount.blocks is not None:
        return int(amount.blocks * (workload.block_bytes or 1) * workload.trace.rate)
    if amount.size_bytes is None:
        return None
    if workload.block_bytes is None:
        raise click.UsageError(
            f"--{name} {amount.text} needs the bytes of a block: give --block-bytes or --model, or "
            "a size in blocks, such as 50000blocks"
        )
    return int(amount.size_bytes * workload.trace.rate)


def _curve(
    workload: Workload,
    hots: Sequence[Amount],
    colds: Sequence[Amount],
    policies: Sequence[str],
    plot: Path | None,
    *,
    as_json: bool,
) -> None:
    if colds or set(policies) - {"lru", DEFAULT_POLICY}:
        raise click.UsageError("--curve is of one LRU tier: leave --cold and other policies out")
    curve = hit_rate_at(workload)
    sizes: list[tuple[str, int | None]] = []
    for amount in hots:
        found = _bytes(workload, "hot", amount)
        blocks = None if found is None else int(found / (workload.block_bytes or 1))
        if blocks is not None:
            blocks = round(blocks / workload.trace.rate)
        sizes.append((amount.text, blocks))
    if not sizes:
        # Of a tier that holds less than one sampled block, samples say nothing.
        rounds = round_sizes(workload.distinct_blocks)
        sizes = [(f"{each}blocks", each) for each in rounds if each * workload.trace.rate >= 1]
        sizes.append(("unlimited", None))
    if plot is not None:
        plot_curve(plot, curve, workload)
    if as_json:
        found_json = {"trace": workload.facts(), "curve": curve_json(curve, sizes)}
        click.echo(json.dumps(found_json, indent=2))
        return
    for line in workload.words():
        click.echo(line)
    click.echo()
    show_curve(curve, sizes, workload)


def _estimate(workload: Workload, setting: Setting) -> sampled.Estimate | None:
    """Hit rates of the whole traffic, from samples. `setting`: scaled to their rate."""
    if workload.samples is None:
        return None
    rate = workload.trace.rate
    return sampled.estimate(
        workload.samples,
        lambda requests, part: hits_by_request(scaled(setting, part / rate), requests),
    )


@contextmanager
def _progress(total: int, *, is_quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error if that is a terminal and there are several settings."""
    if is_quiet or total < 2 or not sys.stderr.isatty():
        yield lambda done, total: None
        return
    with click.progressbar(length=total, label="settings", file=sys.stderr) as bar:
        yield lambda done, total: bar.update(done - bar.pos)
