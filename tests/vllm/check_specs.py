"""Every kind of KV cache of the installed vLLM is one that Neve stores, or one that it is known to
refuse: of a new kind nobody has said what a reader needs. Run by the vLLM interpreter."""

from types import SimpleNamespace

import torch
from vllm.v1 import kv_cache_interface
from vllm.v1.kv_cache_interface import (
    ChunkedLocalAttentionSpec,
    FullAttentionSpec,
    KVCacheGroupSpec,
    KVCacheSpec,
    MambaSpec,
    MLAAttentionSpec,
    SinkFullAttentionSpec,
    SlidingWindowMLASpec,
    SlidingWindowSpec,
    SparseCacheRole,
    UniformTypeKVCacheSpecs,
)

from neve.formats.parts import PartKind
from neve.vllm.compat import KNOWN, groups_of, holds_latent

# Rings and hot pages of one request, hidden states, KV of an encoder; windows with a rule of their
# own; bases of other classes.
REFUSED = {
    "CircularBufferSpec", "CrossAttentionSpec", "EncoderOnlyAttentionSpec", "HiSparseHotSpec",
    "HiSparseResidentSpec", "HiddenStateCacheSpec", "RSWASpec", "KVCacheSpec", "AttentionSpec",
    "UniformTypeKVCacheSpecs",
}  # fmt: skip
kinds = {
    name
    for name, each in vars(kv_cache_interface).items()
    if isinstance(each, type) and issubclass(each, KVCacheSpec)
}
assert kinds <= KNOWN | REFUSED, f"say what a reader needs of {kinds - KNOWN - REFUSED}"
assert not KNOWN & REFUSED

BYTES = {"num_kv_heads": 1, "head_size": 64, "dtype": torch.bfloat16}
LATENT = {"num_kv_heads": 1, "head_size": 576, "dtype": torch.bfloat16}
STATE = MambaSpec(
    block_size=160, shapes=((3, 64), (4, 64, 64)), dtypes=(torch.bfloat16, torch.float32),
    mamba_cache_mode="align",
)  # fmt: skip


def kinds_of(*specs, longest=100_000):
    """The kinds of groups with these specs, in the engine's order; None: refused."""
    groups = [
        KVCacheGroupSpec(layer_names=[f"l{n}"], kv_cache_spec=spec) for n, spec in enumerate(specs)
    ]
    found = groups_of(SimpleNamespace(kv_cache_groups=groups), longest)
    if found is None:
        return None
    assert [group.kind for group in found] == sorted(
        (group.kind for group in found), key=list(PartKind).index
    )
    return [group.kind for group in sorted(found, key=lambda group: group.number)]


full = FullAttentionSpec(block_size=160, **BYTES)
assert kinds_of(full) == [PartKind.FULL]
assert kinds_of(SinkFullAttentionSpec(block_size=16, sink_len=4, **BYTES)) == [PartKind.FULL]
assert kinds_of(STATE, full) == [PartKind.STATE, PartKind.FULL]
assert kinds_of(STATE) == [PartKind.STATE]
window = SlidingWindowSpec(block_size=16, sliding_window=128, **BYTES)
assert kinds_of(window, full) == [PartKind.WINDOW, PartKind.FULL]  # blocks of two sizes
llama4 = ChunkedLocalAttentionSpec(block_size=16, attention_chunk_size=8192, **BYTES)
assert kinds_of(llama4, full) == [PartKind.LOCAL, PartKind.FULL]
assert kinds_of(llama4, full, longest=8192) == [PartKind.FULL, PartKind.FULL]

# DeepSeek V3.2: an indexer's keys beside the latent KV, in the same group or one of its own. V4:
# one state for several tokens, and windows of latent KV.
latent = MLAAttentionSpec(block_size=64, **LATENT)
indexer = MLAAttentionSpec(
    block_size=64, num_kv_heads=1, head_size=132, dtype=torch.uint8,
    cache_role=SparseCacheRole.INDEXER,
)  # fmt: skip
compressed = MLAAttentionSpec(block_size=256, tokens_per_state=4, **LATENT)
tail = SlidingWindowMLASpec(block_size=64, sliding_window=128, **LATENT)
assert kinds_of(latent, indexer) == [PartKind.FULL, PartKind.FULL]
together = UniformTypeKVCacheSpecs(block_size=64, kv_cache_specs={"l0": latent, "l1": indexer})
assert kinds_of(together) == [PartKind.FULL]
assert kinds_of(compressed, tail) == [PartKind.FULL, PartKind.WINDOW]
for specs in ((latent, indexer), (together,), (compressed, tail)):
    groups = [SimpleNamespace(kv_cache_spec=spec) for spec in specs]
    assert holds_latent(SimpleNamespace(kv_cache_groups=groups))  # stored once for all TP ranks
# V4's ring of the tokens that are not compressed yet, and windows that vLLM computes anew.
ring = kv_cache_interface.CircularBufferSpec(block_size=8, **BYTES)
assert kinds_of(compressed, ring) is None
replayed = SlidingWindowMLASpec(block_size=64, sliding_window=128, bounded_replay=True, **LATENT)
assert kinds_of(compressed, replayed) is None
