"""The command `neve plan size`: a table of a model's KV by group, and what some lengths weigh."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import click

from neve.cli import text
from neve.cli.offline import CodecRatio, Whole, json_option, read_config, table
from neve.formats.space import choose_chunk_tokens
from neve.planner.sizes import KvGroup, KvSize, kv_size
from neve.planner.sizes.widths import INDEX_DTYPES, KV_DTYPES, STATE_DTYPES

_GB = 10**9  # as disks and networks are sold
_TITLES = (
    "KV GROUP", "SHAPE", "LAYERS", "SPAN", "GROWS B/TOKEN", "FIXED B", "ALL B/TOKEN", "BLOCK B",
)  # fmt: skip


@click.command()
@click.argument("model")
@click.option("--dtype", default="auto", show_default=True, help="As vLLM's --dtype.")
@click.option(
    "--kv-dtype", type=click.Choice(KV_DTYPES), default="auto", show_default=True,
    metavar="DTYPE", help="As vLLM's --kv-cache-dtype: fp8, fp8_ds_mla, bfloat16 …",
)  # fmt: skip
@click.option(
    "--state-dtype", type=click.Choice(STATE_DTYPES), default="auto", show_default=True,
    metavar="DTYPE", help="Of recurrent states, as vLLM's --mamba-ssm-cache-dtype.",
)  # fmt: skip
@click.option(
    "--index-dtype", type=click.Choice(INDEX_DTYPES), default="auto", show_default=True,
    metavar="DTYPE", help="Of an indexer's keys; auto is fp8 with scales, as in vLLM.",
)  # fmt: skip
@click.option("--tp", type=Whole(), default=1, show_default=True, help="TP ranks.")
@click.option(
    "--codec", "codec_ratio", type=CodecRatio(), default=1.0, show_default=True,
    help="Bytes before ÷ after the store's codec, such as zstd=1.4.",
)  # fmt: skip
@click.option(
    "--block-tokens", type=Whole(),
    help="Tokens of a stored block. Default: as Neve chooses them.",
)  # fmt: skip
@click.option(
    "--engine-block-tokens", type=Whole(),
    help="Tokens of the engine's block. Default: vLLM's, 16, or what the model needs.",
)  # fmt: skip
@click.option(
    "--tokens", "lengths", type=Whole(), multiple=True,
    default=(8192, 131_072, 1_000_000), show_default=True, help="Prompt lengths to weigh.",
)  # fmt: skip
@json_option
def size(
    model: str,
    block_tokens: int | None,
    engine_block_tokens: int | None,
    lengths: Sequence[int],
    as_json: bool,
    **options: Any,
) -> None:
    """Say how many bytes a model's KV takes.

    MODEL is a config.json, the folder that holds it, or - for standard input.
    """
    kv = kv_size(read_config(model), **options)
    largest = max((group.stored_bytes_per_token for group in kv.of_rank().groups), default=0.0)
    engine_block_tokens = engine_block_tokens or kv.engine_block_tokens
    if block_tokens is None:
        block_tokens = choose_chunk_tokens(engine_block_tokens, max(1, int(largest)))
    needed = max(group.engine_block_tokens or 1 for group in kv.groups)
    if engine_block_tokens % needed:
        raise click.BadParameter(
            f"this model needs a multiple of {needed}", param_hint="--engine-block-tokens"
        )
    if block_tokens % engine_block_tokens:
        raise click.BadParameter(
            f"must be a multiple of the engine's {engine_block_tokens}", param_hint="--block-tokens"
        )
    blocks = (block_tokens, engine_block_tokens)
    if as_json:
        click.echo(json.dumps(document(kv, blocks, sorted(lengths)), indent=2))
    else:
        show(kv, blocks, sorted(lengths))


def document(kv: KvSize, blocks: tuple[int, int], lengths: Sequence[int]) -> dict[str, Any]:
    """`blocks`: tokens of a stored block and of an engine block."""
    stored, rank = kv.stored(*blocks), kv.of_rank()
    return {
        "family": kv.family,
        "tp": kv.tp,
        "codec_ratio": kv.codec_ratio,
        "block_tokens": blocks[0],
        "engine_block_tokens": blocks[1],
        "groups": [
            asdict(group)
            | {
                "bytes_per_token": group.bytes_per_token,
                "fixed_bytes": group.fixed_bytes,
                "all_bytes_per_token": group.stored_bytes_per_token,
                "rank_block_bytes": group.of_rank().block_bytes(*blocks),
            }
            for group in kv.groups
        ],
        "bytes_per_token": kv.bytes_per_token,
        "fixed_bytes": kv.fixed_bytes,
        "all_bytes_per_token": kv.stored_bytes_per_token,
        "rank_bytes_per_token": rank.bytes_per_token,
        "rank_fixed_bytes": rank.fixed_bytes,
        "stored_bytes_per_token": stored.per_token,
        "stored_bytes_per_state": stored.fixed,
        "tokens_per_gb": _GB / stored.per_token if stored.per_token else None,
        "lengths": [
            {
                "tokens": tokens,
                "held_bytes": kv.bytes_of(tokens),
                "rank_held_bytes": rank.bytes_of(tokens),
                "stored_bytes": round(stored.of(tokens)),
            }
            for tokens in lengths
        ],
    }


def show(kv: KvSize, blocks: tuple[int, int], lengths: Sequence[int]) -> None:
    """See `document`."""
    stored, rank = kv.stored(*blocks), kv.of_rank()
    click.echo(f"{kv.family}, {kv.tp} TP rank{'s' if kv.tp > 1 else ''}\n")
    rows = [_row(group, blocks) for group in kv.groups]
    rows.append(_total("total", kv, blocks))
    if kv.tp > 1:
        rows.append(_total("of one rank", rank, blocks))
    table(_TITLES, rows, left=2)
    codec = "" if kv.codec_ratio == 1 else f", codec {kv.codec_ratio:g}"
    click.echo(f"\nblock: {blocks[0]} tokens of one rank{codec}")
    if stored.per_token:
        state = f" and {stored.fixed:,} a state" if stored.fixed else ""
        click.echo(f"store: {_number(stored.per_token)} bytes a token{state}")
        click.echo(f"1 GB of store: {_GB / stored.per_token:,.0f} tokens")
    else:
        click.echo(f"store: {stored.fixed:,} bytes a state, none a token")
    click.echo()
    titles = ["TOKENS", "A REQUEST HOLDS", "", "THE STORE HOLDS", ""]
    weights = []
    for tokens in lengths:
        held, kept = kv.bytes_of(tokens), stored.of(tokens)
        weights.append(
            [f"{tokens:,}", f"{held:,} B", text.size(held), f"{kept:,.0f} B", text.size(kept)]
        )
        if kv.tp > 1:
            weights[-1].append(text.size(rank.bytes_of(tokens)))
    table(titles + (["ONE RANK HOLDS"] if kv.tp > 1 else []), weights, left=0)


def _row(group: KvGroup, blocks: tuple[int, int]) -> list[str]:
    each = f" / {group.entry_tokens} tokens" if group.entry_tokens > 1 else ""
    return [
        str(group.kind),
        group.shape + each,
        str(group.layers),
        f"{group.span_tokens:,}" if group.span_tokens else text.NOTHING,
        *_sizes(group, blocks),
    ]


def _total(name: str, kv: KvSize, blocks: tuple[int, int]) -> list[str]:
    return [name, "", "", "", *_sizes(kv, blocks)]


def _sizes(of: KvGroup | KvSize, blocks: tuple[int, int]) -> list[str]:
    numbers = (
        of.bytes_per_token,
        of.fixed_bytes,
        of.stored_bytes_per_token,
        of.block_bytes(*blocks),
    )
    return [_number(number) if number else text.NOTHING for number in numbers]


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:,.2f}"
