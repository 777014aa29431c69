"""The command `neve plan breakeven`: from which prefix length on loading KV beats computing it."""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import click

from neve.cli import offline
from neve.cli.speeds import PrefillSpeed, prefill_of
from neve.errors import Misuse
from neve.index.tier import Tier
from neve.planner.breakeven import Prefill, Store, break_even_bytes_per_s, break_even_tokens
from neve.planner.choice import choose
from neve.planner.parts import PrefixBytes
from neve.planner.sizes import kv_size

_GB = 1e9  # network bandwidth is decimal
# Of --stored: nodes load whole chunks of at most so many tokens.
_CHUNK_TOKENS = 256
_LEGEND = """\
Load times count {}. x: compute ÷ load. Break even: the bandwidth of 1.0x.
Worth loading: prefixes that load sooner. Nodes load whole chunks, and want 5 % less time."""
MOST_STORED = 100_000_000  # tokens of a stored prefix


class _Stored(click.ParamType[tuple[int, float]]):
    """`8192@12.5`: tokens, and GB/s of the store that holds them."""

    name = "tokens@GB/s"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        parsed = re.fullmatch(r"(\d+)@(\d+(?:\.\d+)?)", str(value))
        if parsed is None or not (
            0 < int(parsed[1]) <= MOST_STORED and 0 < float(parsed[2]) <= offline.MOST
        ):
            self.fail(f"{value!r} is no stored prefix; write 8192@12.5", param, ctx)
        return int(parsed[1]), float(parsed[2])


@dataclass(frozen=True)
class Load:
    """Loading one prompt length from one store. `times`: compute time ÷ load time."""

    bytes_per_s: float
    load_s: float
    times: float


@dataclass(frozen=True)
class Row:
    """One prompt length. `break_even_bytes_per_s`: None if no bandwidth is enough."""

    tokens: int
    bytes: float
    compute_s: float
    break_even_bytes_per_s: float | None
    loads: list[Load]


@click.command()
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
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
    type=offline.Number(min=0, min_open=True),
    multiple=True,
    default=(1.25, 3.125, 12.5),
    show_default=True,
    help="Of the store in GB/s; may be given several times. 10 Gbit/s are 1.25.",
)
@click.option("--round-trip-ms", type=offline.Number(min=0), default=1.0, show_default=True)
@click.option(
    "--queue-gb",
    type=offline.Number(min=0),
    default=0.0,
    help="Loads of other requests that are ahead, in GB.",
)
@click.option("--dtype", default="auto", show_default=True, help="As vLLM's --dtype.")
@click.option("--kv-dtype", default="auto", show_default=True, help="As vLLM's --kv-cache-dtype.")
@click.option(
    "--tokens",
    "lengths",
    type=offline.Whole(),
    multiple=True,
    default=(2048, 8192, 32768, 65536),
    show_default=True,
    help="Prompt lengths of the table.",
)
@click.option(
    "--stored",
    "stored",
    type=_Stored(),
    multiple=True,
    help="A stored prefix: tokens at a bandwidth; twice for a hot part and a cold part behind it.",
)
@click.option(
    "--prompt-tokens",
    type=offline.Whole(),
    help="With --stored: of the whole prompt. Default: the stored tokens.",
)
@offline.json_option
def breakeven(
    models: Sequence[str],
    speeds: Sequence[tuple[int | None, float]],
    bandwidths: Sequence[float],
    round_trip_ms: float,
    queue_gb: float,
    dtype: str,
    kv_dtype: str,
    lengths: Sequence[int],
    stored: Sequence[tuple[int, float]],
    prompt_tokens: int | None,
    as_json: bool,
) -> None:
    """Say from which prefix length on loading KV is faster than computing it.

    MODEL is a config.json, the folder that holds it, or - for standard input. With --stored, says
    how much of a stored prefix is worth loading, as a node decides for each request.
    """
    prefill, answers = prefill_of(speeds), []
    ahead: dict[str, Any] = {
        "round_trip_s": round_trip_ms / 1000,
        "queue_bytes": int(queue_gb * _GB),
    }
    stores = [Store(gb * _GB, **ahead) for gb in bandwidths]
    for model in models:
        config = offline.read_config(model)
        found = kv_size(config, dtype=dtype, kv_dtype=kv_dtype)
        size = PrefixBytes(found.bytes_per_token, found.fixed_bytes)
        answer: dict[str, Any] = {
            "model": model,
            "architecture": (config.get("architectures") or [config.get("model_type")])[0],
            "layers": [f"{group.layers} layers of {group.shape}" for group in found.groups],
            "bytes_per_token": size.per_token,
            "fixed_bytes": size.fixed,
            "rows": [_row(tokens, size, prefill, stores) for tokens in sorted(lengths)],
            "from_tokens": [
                break_even_tokens(prefill, store, bytes_per_token=size) for store in stores
            ],
        }
        if stored:
            answer["stored"] = _partial(stored, prompt_tokens, size, prefill, ahead)
        answers.append(answer)
    if as_json:
        rows = [each | {"rows": [asdict(row) for row in each["rows"]]} for each in answers]
        click.echo(json.dumps({"models": rows}))
        return
    for answer in answers:
        for line in _lines(answer, bandwidths):
            click.echo(line)
    ahead_words = f"a round trip of {round_trip_ms:g} ms"
    if queue_gb:
        ahead_words += f" and {queue_gb:g} GB of other loads ahead"
    click.echo(_LEGEND.format(ahead_words))


def _row(tokens: int, size: PrefixBytes, prefill: Prefill, stores: Sequence[Store]) -> Row:
    size_bytes, compute_s = size.of(tokens), prefill.seconds(0, tokens)
    even = break_even_bytes_per_s(
        prefill,
        tokens=tokens,
        bytes_per_token=size,
        round_trip_s=stores[0].round_trip_s,
        queue_bytes=stores[0].queue_bytes,
    )
    loads = [
        Load(store.bytes_per_s, load_s, compute_s / load_s)
        for store in stores
        if (load_s := store.seconds(size_bytes))
    ]
    return Row(tokens, size_bytes, compute_s, None if math.isinf(even) else even, loads)


def _partial(
    stored: Sequence[tuple[int, float]],
    prompt_tokens: int | None,
    size: PrefixBytes,
    prefill: Prefill,
    ahead: dict[str, Any],
) -> dict[str, Any]:
    """How much of a stored prefix to load, by the function that nodes ask."""
    if len(stored) > 2:
        raise Misuse("give it at most 2 times: hot, then cold", field="stored")
    if size.fixed:
        raise Misuse("a model with windows or states is loaded whole or not at all", field="stored")
    found = [tokens // _CHUNK_TOKENS * _CHUNK_TOKENS for tokens, _ in stored]
    prompt = sum(found) if prompt_tokens is None else prompt_tokens
    if prompt < sum(found):
        raise Misuse(f"is less than the {sum(found)} stored tokens", field="prompt-tokens")
    tiers, ends = [], [0]
    stores = {}
    for tier, tokens, (_, gb) in zip((Tier.HOT, Tier.COLD), found, stored, strict=False):
        stores[tier] = Store(gb * _GB, **ahead)
        for _ in range(tokens // _CHUNK_TOKENS):
            tiers.append(tier)
            ends.append(ends[-1] + _CHUNK_TOKENS)
    choice = choose(
        tiers,
        block_bytes=round(size.per_token * _CHUNK_TOKENS),
        block_ends=ends[1:],
        start=0,
        end=prompt,
        prefill=prefill,
        stores=stores,
    )
    loaded = min(ends[choice.blocks], prompt)
    loads = [
        store.seconds(size.per_token * _CHUNK_TOKENS * tiers[: choice.blocks].count(tier))
        for tier, store in stores.items()
    ]
    return {
        "prompt_tokens": prompt,
        "stored_tokens": sum(found),
        "load_tokens": loaded,
        "decision": str(choice.decision),
        "first_token_s": max(loads) + prefill.seconds(loaded, prompt),
        "compute_s": prefill.seconds(0, prompt),
    }


def _lines(answer: dict[str, Any], bandwidths: Sequence[float]) -> list[str]:
    """Seconds to compute, seconds to load at each bandwidth, and where both are equal."""
    fixed = f" and {answer['fixed_bytes']:,} for each request" if answer["fixed_bytes"] else ""
    head = f"{'tokens':>9} {'GB':>8} {'compute':>9} {'break even':>12}"
    lines = [
        f"{answer['model']}: {', '.join((answer['architecture'] or 'model', *answer['layers']))}, "
        f"{answer['bytes_per_token']:,.0f} bytes a token{fixed}",
        head + "".join(f" {f'{gb:g} GB/s':>17}" for gb in bandwidths),
    ]
    for row in answer["rows"]:
        even = row.break_even_bytes_per_s
        rate = "never" if even is None else f"{even / _GB:.2f} GB/s"
        line = f"{row.tokens:>9} {row.bytes / _GB:>8.3f} {row.compute_s:>7.3f} s {rate:>12}"
        line += "".join(f" {each.load_s:>7.3f} s {each.times:>6.1f}x" for each in row.loads)
        lines.append(line)
    words = ["never" if n is None else f"from {n:,}" for n in answer["from_tokens"]]
    lines.append(f"{'worth loading':>41}" + "".join(f" {word:>17}" for word in words))
    if part := answer.get("stored"):
        lines.append(
            f"load {part['load_tokens']:,} of {part['stored_tokens']:,} stored tokens: the first "
            f"token of a prompt of {part['prompt_tokens']:,} comes after "
            f"{part['first_token_s']:.3f} s; computing all takes {part['compute_s']:.3f} s"
        )
    return lines
