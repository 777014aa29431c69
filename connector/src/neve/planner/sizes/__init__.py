"""How large a model's KV is, from its Hugging Face `config.json`. Pure."""

from neve.planner.sizes.groups import ENGINE_BLOCK_TOKENS, KvGroup, KvSize
from neve.planner.sizes.model import kv_size

__all__ = ("ENGINE_BLOCK_TOKENS", "KvGroup", "KvSize", "kv_size")
