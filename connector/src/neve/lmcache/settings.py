"""The options of the adapter (`adapter_params`), and the space of a model's objects."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from neve.engine.options import LEAST_SAVE_BUDGET_BYTES, Options
from neve.errors import Misuse
from neve.formats.space import SpaceIdentity

# Raised when the bytes of an object, or what its key is bound to, change their meaning.
LAYOUT_VERSION: Final = 1
CHUNK_TOKENS: Final = 256  # LMCache's default; Source: `--chunk-size` of its server
MOST_CHUNK_TOKENS: Final = 1 << 16
# A prefetch of LMCache loads whole prompts at once and has no deadline of its own.
LOAD_DEADLINE_S: Final = 5.0
# Of `neve.engine.options.Options`, those that an adapter of LMCache has.
TAKEN: Final = (
    *("endpoint", "api_key", "node", "revision", "match_deadline_s", "load_deadline_s"),
    *("save_budget_bytes", "connections", "cold_connections", "local_dir", "local_bytes"),
    "near_stores",
)
PLACE: Final = "adapter_params"


def read_options(params: Mapping[str, Any], environ: Mapping[str, str] | None = None) -> Options:
    """Reads `adapter_params`; endpoint and key may stand in NEVE_ENDPOINT and NEVE_API_KEY.

    Raises:
        Misuse: names the option that is missing, unknown or wrong.
    """
    values = dict(params)
    chunk_tokens = values.pop("chunk_tokens", CHUNK_TOKENS)
    for unknown in sorted(set(values) - set(TAKEN)):
        known = ", ".join((*TAKEN, "chunk_tokens"))
        raise Misuse(f"unknown option in {PLACE}; known are {known}", field=unknown)
    if type(chunk_tokens) is not int or not 0 < chunk_tokens <= MOST_CHUNK_TOKENS:
        raise Misuse(
            f"need a whole number of 1 … {MOST_CHUNK_TOKENS}, as LMCache's --chunk-size says, "
            f"got {chunk_tokens!r}",
            field="chunk_tokens",
        )
    values.setdefault("load_deadline_s", LOAD_DEADLINE_S)
    values.setdefault("save_budget_bytes", LEAST_SAVE_BUDGET_BYTES)
    options = Options.from_config(values, environ, place=PLACE)
    if not options.revision:
        raise Misuse(
            "name the weights and whatever else changes what bytes mean: KV type (fp8_e4m3 is not "
            "fp8_e5m2), serializer, quantization. Servers of equal revisions share KV, and keys of "
            "LMCache tell none of it",
            field="revision",
        )
    return replace(options, max_chunk_tokens=chunk_tokens)


def identify(model: str, options: Options) -> SpaceIdentity:
    """The space of all objects of `model`, a name that LMCache's clients gave.

    Objects of several ranks, groups, salts and layouts share it: the ids tell them apart. So what
    is known of one layout only stands in no field. Raises `Misuse` for a name that none can have.
    """
    return SpaceIdentity(
        model=model,
        revision=f"set:{options.revision}",
        dtype="of each object",
        kv_dtype="of each object",
        layout="objects of LMCache, each bound to its rank, group, salt, shapes and dtypes",
        layout_version=LAYOUT_VERSION,
        engine_block_tokens=options.max_chunk_tokens,
        bytes_per_token=1,
    )
