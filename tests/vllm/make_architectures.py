"""Tiny seeded checkpoints of many architectures, for `benchmarks/architectures.py`.

    python make_architectures.py FOLDER NAME...

Run by the vLLM interpreter. Each checkpoint has a byte-level tokenizer, and weights so large that
its answers depend on the KV of every layer.
"""

import sys
from pathlib import Path
from typing import Any, Final

SEED: Final = 4711
COMMON: Final[dict[str, Any]] = {
    "vocab_size": 256, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096,
    "bos_token_id": None, "eos_token_id": None, "pad_token_id": None, "tie_word_embeddings": False,
    "initializer_range": 0.2, "dtype": "float32",
}  # fmt: skip
HEADS: Final = COMMON | {"head_dim": 32}
WIDE: Final = COMMON | {"hidden_size": 128}
EXPERTS: Final = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
EVERY_OTHER: Final = ["sliding_attention", "full_attention"] * 2
THREE_OF_FOUR: Final = ["sliding_attention"] * 3 + ["full_attention"]
LONGROPE: Final = {
    "rope_type": "longrope", "original_max_position_embeddings": 1024, "rope_theta": 10000.0,
    "short_factor": [1.0 + 0.05 * n for n in range(16)],
    "long_factor": [2.0 + 1.5 * n for n in range(16)],
}  # fmt: skip
LATENT: Final = {
    "num_key_value_heads": 4, "q_lora_rank": 32, "kv_lora_rank": 512, "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 32, "v_head_dim": 32,
}  # fmt: skip
# The name of a configuration's class in transformers, and its arguments.
ARCHITECTURES: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "llama": ("LlamaConfig", HEADS),
    "qwen2": ("Qwen2Config", WIDE),
    "qwen3": ("Qwen3Config", HEADS),
    "qwen3moe": (
        "Qwen3MoeConfig",
        HEADS | EXPERTS | {"decoder_sparse_step": 1, "mlp_only_layers": []},
    ),
    "mixtral": ("MixtralConfig", HEADS | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "phi3": ("Phi3Config", WIDE | {"sliding_window": None}),
    "phi3-longrope": (
        "Phi3Config",
        WIDE
        | {
            "sliding_window": None,
            "original_max_position_embeddings": 1024,
            "rope_scaling": LONGROPE,
        },
    ),
    "phi4-mini": (
        "Phi3Config",
        WIDE
        | {
            "sliding_window": 262144,
            "original_max_position_embeddings": 1024,
            "rope_scaling": LONGROPE,
            "partial_rotary_factor": 1.0,
        },
    ),
    "gpt2": (
        "GPT2Config",
        {
            "vocab_size": 256, "n_positions": 4096, "n_embd": 64, "n_layer": 4, "n_head": 2,
            "bos_token_id": None, "eos_token_id": None, "dtype": "float32",
            "initializer_range": 0.2,
        },
    ),
    "opt": (
        "OPTConfig",
        {
            "vocab_size": 256, "hidden_size": 64, "ffn_dim": 128, "num_hidden_layers": 4,
            "num_attention_heads": 2, "max_position_embeddings": 4096, "word_embed_proj_dim": 64,
            "bos_token_id": None, "eos_token_id": None, "pad_token_id": None, "dtype": "float32",
        },
    ),
    "bloom": (
        "BloomConfig",
        {
            "vocab_size": 256, "hidden_size": 64, "n_layer": 4, "n_head": 2, "bos_token_id": None,
            "eos_token_id": None, "pad_token_id": None, "dtype": "float32",
        },
    ),
    "falcon": (
        "FalconConfig",
        {
            "vocab_size": 256, "hidden_size": 128, "num_hidden_layers": 4,
            "num_attention_heads": 4, "num_kv_heads": 2, "new_decoder_architecture": True,
            "alibi": False, "max_position_embeddings": 4096, "bos_token_id": None,
            "eos_token_id": None, "pad_token_id": None, "dtype": "float32",
        },
    ),
    "stablelm": ("StableLmConfig", WIDE),
    "granite": ("GraniteConfig", WIDE | {"attention_multiplier": 0.2}),
    "olmo2": ("Olmo2Config", WIDE),
    "glm4": ("Glm4Config", HEADS | {"partial_rotary_factor": 0.5}),
    "smollm3": ("SmolLM3Config", WIDE | {"no_rope_layers": [1, 1, 1, 0]}),
    "mistral-window": ("MistralConfig", HEADS | {"sliding_window": 128}),
    "starcoder2-window": ("Starcoder2Config", WIDE | {"sliding_window": 128}),
    "qwen2-window": (
        "Qwen2Config",
        WIDE | {"use_sliding_window": True, "sliding_window": 96, "max_window_layers": 2},
    ),
    "gemma2": (
        "Gemma2Config",
        HEADS
        | {
            "tie_word_embeddings": True, "sliding_window": 96, "layer_types": EVERY_OTHER,
            "query_pre_attn_scalar": 32,
        },
    ),
    "gemma3": ("Gemma3TextConfig", HEADS | {"sliding_window": 96, "layer_types": THREE_OF_FOUR}),
    "gemma3n": (
        "Gemma3nTextConfig",
        HEADS
        | {
            "sliding_window": 96, "layer_types": EVERY_OTHER, "num_kv_shared_layers": 2,
            "vocab_size_per_layer_input": 256, "hidden_size_per_layer_input": 16,
            "laurel_rank": 8, "activation_sparsity_pattern": [0.0] * 4, "tie_word_embeddings": True,
        },
    ),
    "gemma4": (
        "Gemma4TextConfig",
        HEADS
        | {
            "sliding_window": 96, "layer_types": THREE_OF_FOUR, "num_kv_shared_layers": 0,
            "global_head_dim": 32, "hidden_size_per_layer_input": 0,
        },
    ),
    "gptoss": (
        "GptOssConfig",
        HEADS
        | {
            "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 128,
            "layer_types": EVERY_OTHER, "rope_scaling": None,
        },
    ),
    "cohere2": ("Cohere2Config", HEADS | {"sliding_window": 96, "layer_types": THREE_OF_FOUR}),
    "olmo3": ("Olmo3Config", WIDE | {"sliding_window": 96, "layer_types": THREE_OF_FOUR}),
    "exaone4": (
        "Exaone4Config",
        HEADS
        | {"sliding_window": 96, "sliding_window_pattern": 4, "layer_types": THREE_OF_FOUR},
    ),
    "llama4": (
        "Llama4TextConfig",
        HEADS
        | {
            "attention_chunk_size": 128, "num_local_experts": 2, "num_experts_per_tok": 1,
            "intermediate_size_mlp": 128, "interleave_moe_layer_step": 1,
            "no_rope_layers": [1, 1, 1, 0],
        },
    ),
    "deepseekv3": (
        "DeepseekV3Config",
        COMMON
        | LATENT
        | {
            "first_k_dense_replace": 2, "moe_intermediate_size": 64, "n_routed_experts": 4,
            "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "n_shared_experts": 1,
            "topk_method": "noaux_tc",
        },
    ),
    "qwen3next": (
        "Qwen3NextConfig",
        HEADS
        | EXPERTS
        | {
            # So much KV that a state is as large as that of some 150 tokens.
            "head_dim": 256,
            "shared_expert_intermediate_size": 64, "decoder_sparse_step": 1, "mlp_only_layers": [],
            "layer_types": ["linear_attention", "full_attention"] * 2, "linear_num_key_heads": 2,
            "linear_num_value_heads": 4, "linear_key_head_dim": 128, "linear_value_head_dim": 128,
            "linear_conv_kernel_dim": 4,
        },
    ),
    "mamba2": (
        "Mamba2Config",
        {
            "vocab_size": 256, "hidden_size": 128, "num_hidden_layers": 4, "num_heads": 8,
            "head_dim": 32, "state_size": 16, "n_groups": 1, "bos_token_id": None,
            "eos_token_id": None, "pad_token_id": None, "initializer_range": 0.2,
            "dtype": "float32",
        },
    ),
    "jamba": (
        "JambaConfig",
        WIDE
        | {
            "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2,
            "expert_layer_offset": 1, "num_experts": 2, "num_experts_per_tok": 1,
            "mamba_d_state": 16, "mamba_d_conv": 4, "mamba_expand": 2, "use_mamba_kernels": False,
        },
    ),
    "granite-hybrid": (
        "GraniteMoeHybridConfig",
        WIDE
        | {
            "layer_types": ["mamba", "attention"] * 2, "num_local_experts": 4,
            "num_experts_per_tok": 2, "shared_intermediate_size": 64, "mamba_n_heads": 8,
            "mamba_d_head": 32, "mamba_d_state": 16, "mamba_n_groups": 1, "mamba_d_conv": 4,
            "mamba_expand": 2, "position_embedding_type": "rope",
        },
    ),
    "lfm2": (
        "Lfm2Config",
        WIDE
        | {
            "layer_types": ["conv", "full_attention"] * 2, "conv_L_cache": 3,
            "block_auto_adjust_ff_dim": False,
        },
    ),
}  # fmt: skip


def make(folder: Path, name: str) -> None:
    """Writes checkpoint and tokenizer to `folder`/`name`."""
    import torch
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    kind, arguments = ARCHITECTURES[name]
    torch.manual_seed(SEED)
    config = getattr(transformers, kind)(**arguments)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for key, weights in model.named_parameters():
            if "sinks" in key:
                torch.nn.init.normal_(weights)
            elif weights.dim() > 1 and weights.std() < 0.1:
                torch.nn.init.normal_(weights, std=0.2)
    model.save_pretrained(folder / name)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: n for n, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    fast.save_pretrained(folder / name)


if __name__ == "__main__":
    for name in sys.argv[2:]:
        try:
            make(Path(sys.argv[1]), name)
        except Exception as error:  # the others are of use without it
            print(f"{name}: {error!r}", file=sys.stderr)
