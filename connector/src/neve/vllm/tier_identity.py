"""The identity of the KV in vLLM's DRAM tier, from the configuration that vLLM gives a tier.

That names neither the weights nor the model's settings, so the operator has to: engines that share
blocks by accident would answer with wrong tokens.
"""

from hashlib import blake2b
from typing import Any

from neve.engine.options import Options
from neve.errors import Misuse
from neve.formats.block import MAX_PAYLOAD_BYTES
from neve.formats.space import SpaceIdentity

# Raised when the meaning of a row's bytes changes.
LAYOUT_VERSION = 1


def chunk_tokens(config: Any) -> int:
    """Tokens of a row, of the first KV cache group; other groups may have another number."""
    return int(config.groups[0].tokens_per_block * config.cache.blocks_per_chunk)


def identify_tier(
    config: Any, row_bytes: int, options: Options, *, engine: str, device: str
) -> SpaceIdentity:
    """The identity of the rows; `config` is vLLM's `OffloadingConfig`.

    A row holds one chunk's KV of all ranks. The attention kernel is unknown too: it follows from
    engine release and device, unless the operator chose another.

    Raises:
        Misuse: `revision` is missing, or a row is larger than a block may be.
    """
    if options.revision is None:
        raise Misuse(
            "vLLM doesn't tell a tier which weights the KV is of: name them, and whatever changes "
            "what they compute (quantization, overrides, attention backend)",
            field="revision",
        )
    tokens = chunk_tokens(config)
    if row_bytes > MAX_PAYLOAD_BYTES:
        raise Misuse(
            f"a chunk of {tokens} tokens has {row_bytes} bytes, at most {MAX_PAYLOAD_BYTES} are "
            f"stored: set fewer in kv_connector_extra_config",
            field="block_size",
        )
    parallel = config.parallel
    everything = (
        [(group.tokens_per_block, group.layer_names) for group in config.groups],
        config.worker_kv_bytes_per_block,
        (config.cache.tokens_per_hash, config.cache.blocks_per_chunk),
        (parallel.world_size, parallel.pcp_size, parallel.dcp_size),
        *(
            getattr(config, name, None)  # not in all releases
            for name in ("replicated_layout", "canonical_layout", "kv_cache_layout")
        ),
    )
    digest = blake2b(repr(everything).encode(), digest_size=16).hexdigest()
    return SpaceIdentity(
        model=str(config.model.name)[-1024:],
        revision=f"set:{options.revision}",
        dtype=str(config.model.dtype),
        kv_dtype=str(config.model.dtype),
        layout=f"rows of vLLM {engine}'s DRAM tier on {device}, {row_bytes} bytes, all {digest}",
        layout_version=LAYOUT_VERSION,
        engine_block_tokens=tokens,
        bytes_per_token=-(-row_bytes // tokens),
        tp_size=parallel.tp_size,
        pp_size=parallel.pp_size,
    )
