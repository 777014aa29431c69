"""`neve codec-check`: what storing a model's KV with loss changes, measured on the model."""

import json
from collections.abc import Sequence
from pathlib import Path

import click

from neve.cli.offline import json_option
from neve.errors import Misuse

CODECS = ("int8", "fp8", "int4")


@click.command(name="codec-check")
@click.argument("model", type=click.Path(exists=True, file_okay=False))
@click.option("--text", "texts", type=click.Path(exists=True, dir_okay=False), multiple=True,
              required=True, help="A file of the prompts' kind; each is one prompt.")  # fmt: skip
@click.option("--codec", "codecs", type=click.Choice(CODECS), multiple=True, default=CODECS,
              show_default=True)  # fmt: skip
@click.option("--tokens", type=click.IntRange(64, 1_000_000), default=1536, show_default=True,
              help="Of each prompt whose KV is encoded; 128 more are computed.")  # fmt: skip
@click.option("--block-tokens", type=click.IntRange(1, 4096), default=16, show_default=True,
              help="Of the engine's block: int4 has a scale for each channel of one.")  # fmt: skip
@click.option("--write", type=click.Path(dir_okay=False, writable=True),
              help="Where the report goes that nodes send (option `codec_report`).")  # fmt: skip
@json_option
def codec_check(
    model: str,
    texts: Sequence[str],
    codecs: Sequence[str],
    tokens: int,
    block_tokens: int,
    write: str | None,
    as_json: bool,
) -> None:
    """Measure what storing a model's KV with loss changes.

    Of its KV: the relative error. Of its next tokens: KL divergence and agreement.

    MODEL is a Hugging Face folder. Needs torch and transformers, as an engine's environment has;
    computes on the CPU, in float32.
    """
    try:
        from neve.engine.device.agreement import AFTER_TOKENS, Model

        found = Model(
            model,
            [Path(text).read_text(errors="replace") for text in texts],
            tokens=tokens,
            block_tokens=block_tokens,
        )
    except ImportError as error:
        raise Misuse(f"needs {error.name}: use the engine's environment", field="model") from error
    except ValueError as error:
        raise Misuse(str(error), field="text") from error
    losses = [found.loss(codec) for codec in codecs]
    report = {"losses": [loss.as_dict() for loss in losses]}
    if write:
        Path(write).write_text(json.dumps(report, indent=1) + "\n")
    if as_json:
        click.echo(json.dumps(report))
        return
    click.echo(f"{found.prompts} × {tokens} tokens, logits of the {AFTER_TOKENS} behind them")
    for loss in losses:
        click.echo(f"{loss.words}, likeliest token stays {loss.argmax:.1%}")
