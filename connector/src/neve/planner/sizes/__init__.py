"""How large a model's KV is, from its Hugging Face `config.json`. Pure."""

from neve.planner.sizes.groups import KvGroup, KvSize
from neve.planner.sizes.model import ModelKv, kv_size, model_kv

__all__ = ("KvGroup", "KvSize", "ModelKv", "kv_size", "model_kv")
