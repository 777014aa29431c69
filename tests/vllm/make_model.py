"""Writes tiny seeded models, each with a byte-level tokenizer, to folders named by their shape.

Run by the vLLM interpreter: `python make_model.py FOLDER SEED`. Shapes: llama (grouped
query attention), gemma (every other layer sees a sliding window of 128 tokens), moe (4 experts, 2
of them for a token), mla (DeepSeek's latent attention).
"""

import sys

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    DeepseekV2Config,
    Gemma3TextConfig,
    LlamaConfig,
    MixtralConfig,
    PreTrainedTokenizerFast,
)

folder, seed = sys.argv[1], int(sys.argv[2])
COMMON = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 2048,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
    "tie_word_embeddings": False,
    # Random weights of the usual scale give near-uniform logits; these give distinct ones.
    "initializer_range": 0.2,
    "dtype": "float32",
}
WINDOWS = ["sliding_attention", "full_attention"] * 2
LATENT = {
    "q_lora_rank": None, "kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 32,
    "v_head_dim": 32, "num_key_value_heads": 4, "first_k_dense_replace": 4,
    "moe_intermediate_size": 64,
}  # fmt: skip
CONFIGS = {
    "llama": LlamaConfig(**COMMON),
    "gemma": Gemma3TextConfig(**COMMON, sliding_window=128, layer_types=WINDOWS),
    "moe": MixtralConfig(**COMMON, num_local_experts=4, num_experts_per_tok=2),
    "mla": DeepseekV2Config(**COMMON | LATENT),
}
alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
for shape, config in CONFIGS.items():
    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(config).save_pretrained(f"{folder}/{shape}")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(f"{folder}/{shape}")
