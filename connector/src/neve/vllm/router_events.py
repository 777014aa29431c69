"""Chunks stored and removed, as vLLM's own KV events, which its publisher sends to routers."""

from vllm.distributed.kv_events import BlockRemoved, BlockStored, KVCacheEvent
from vllm.v1.core.kv_cache_utils import maybe_convert_block_hash

from neve.engine.events import ChunkRemoved, ChunkStored

# vLLM's medium for storage behind GPU and CPU memory; 0.26 has no constant for it. Dynamo ignores
# events with an `ownership` or of another `locality` than the engine's own
# (tests/kvevents/test_consumers.py).
MEDIUM = "STORAGE"


def as_event(event: ChunkStored | ChunkRemoved, block_tokens: int) -> KVCacheEvent:
    """`block_tokens`: of an engine block. Hashes are bytes or integers, as in vLLM's own events."""
    hashes = [maybe_convert_block_hash(each) for each in event.hashes]
    if isinstance(event, ChunkRemoved):
        return BlockRemoved(block_hashes=hashes, medium=MEDIUM)
    parent = maybe_convert_block_hash(event.parent) if event.parent is not None else None
    return BlockStored(
        block_hashes=hashes,
        parent_block_hash=parent,
        token_ids=list(event.tokens),
        block_size=block_tokens,
        lora_id=event.lora_id,
        lora_name=event.lora_name,
        medium=MEDIUM,
    )
