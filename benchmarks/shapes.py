"""Models of benchmarks/ttft.py by name: sizes of real ones, weights at random.

Imports torch only where weights are written.
"""

from typing import Any, Final

_COMMON: Final[dict[str, Any]] = {
    "rms_norm_eps": 1e-5, "torch_dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 2,
    "tie_word_embeddings": False, "attention_bias": False,
}  # fmt: skip
_EXPERTS: Final[dict[str, Any]] = {
    "num_experts_per_tok": 2, "moe_intermediate_size": 64, "shared_expert_intermediate_size": 64,
}  # fmt: skip
_SMALL: Final[dict[str, Any]] = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 256, "head_dim": 32,
}  # fmt: skip
_LINEAR: Final[list[str]] = ["linear_attention"] * 3 + ["full_attention"]

# Shape → the model's configuration.
SHAPES: Final[dict[str, dict[str, Any]]] = {
    # Every layer attends to all tokens.
    "llama-8b": _COMMON | {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096,
        "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 131072,
        "rope_theta": 500000.0, "hidden_act": "silu",
    },
    # Gemma 3 12B: five layers with a window of 1,024 tokens to each layer of full attention.
    "gemma-12b": _COMMON | {
        "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "hidden_size": 3840,
        "intermediate_size": 15360, "num_hidden_layers": 48, "num_attention_heads": 16,
        "num_key_value_heads": 8, "head_dim": 256, "vocab_size": 262208,
        "max_position_embeddings": 131072, "sliding_window": 1024, "sliding_window_pattern": 6,
        "query_pre_attn_scalar": 256, "rope_theta": 1000000.0, "rope_local_base_freq": 10000.0,
        "hidden_activation": "gelu_pytorch_tanh", "tie_word_embeddings": True,
    },
    # DeepSeek-V2-Lite: multi-head latent attention, mixture of experts.
    "deepseek-lite": _COMMON | {
        "architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2",
        "hidden_size": 2048, "intermediate_size": 10944, "moe_intermediate_size": 1408,
        "num_hidden_layers": 27, "num_attention_heads": 16, "num_key_value_heads": 16,
        "kv_lora_rank": 512, "q_lora_rank": None, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
        "v_head_dim": 128, "n_routed_experts": 64, "n_shared_experts": 2, "num_experts_per_tok": 6,
        "first_k_dense_replace": 1, "moe_layer_freq": 1, "n_group": 1, "topk_group": 1,
        "topk_method": "greedy", "scoring_func": "softmax", "norm_topk_prob": False,
        "routed_scaling_factor": 1.0, "vocab_size": 102400, "max_position_embeddings": 163840,
        "rope_theta": 10000.0, "hidden_act": "silu",
    },
    # Qwen3-Next 80B-A3B with a quarter of its experts, so that it fits: three layers of linear
    # attention to each layer of full attention.
    "qwen-next": _COMMON | {
        "architectures": ["Qwen3NextForCausalLM"], "model_type": "qwen3_next", "hidden_size": 2048,
        "intermediate_size": 5120, "num_hidden_layers": 48, "num_attention_heads": 16,
        "num_key_value_heads": 2, "head_dim": 256, "vocab_size": 151936,
        "max_position_embeddings": 262144, "partial_rotary_factor": 0.25, "rope_theta": 1e7,
        "hidden_act": "silu", "linear_conv_kernel_dim": 4, "linear_key_head_dim": 128,
        "linear_value_head_dim": 128, "linear_num_key_heads": 16, "linear_num_value_heads": 32,
        "layer_types": _LINEAR * 12, "num_experts": 128, "num_experts_per_tok": 10,
        "moe_intermediate_size": 512, "shared_expert_intermediate_size": 512,
        "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [],
        "output_router_logits": False, "router_aux_loss_coef": 0.001,
    },
}  # fmt: skip
# Shape → what differs in a model that a CPU serves in seconds.
TINY: Final[dict[str, dict[str, Any]]] = {
    "llama-8b": _SMALL,
    "gemma-12b": _SMALL | {
        "num_hidden_layers": 6, "sliding_window": 128, "query_pre_attn_scalar": 32
    },
    "deepseek-lite": _SMALL | _EXPERTS | {
        "num_key_value_heads": 4, "qk_nope_head_dim": 32, "v_head_dim": 32, "n_routed_experts": 4
    },
    "qwen-next": _SMALL | _EXPERTS | {
        "num_experts": 4, "layer_types": _LINEAR, "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
    },
}  # fmt: skip
# Linear attention whose state lasts for some tens of tokens, so that an answer depends on it.
_LOG_DECAY: Final = -3.0


def use_random_weights() -> None:
    """Let vLLM's `dummy` weights be such that answers depend on the KV of every layer.

    vLLM's own are so small that a wrong load would change no token. The same weights in every
    process.
    """
    import torch
    from vllm.model_executor.model_loader.dummy_loader import DummyModelLoader

    @torch.no_grad()
    def load_weights(loader: Any, model: Any, config: Any) -> None:
        number = 0
        for module in model.modules():
            is_norm = "norm" in type(module).__name__.lower()
            for name, weights in module.named_parameters(recurse=False):
                if not torch.is_floating_point(weights) or weights.device.type == "meta":
                    continue
                number += 1
                generator = torch.Generator(weights.device).manual_seed(number)
                if is_norm:
                    weights.fill_(1.0)
                elif name == "A_log":
                    weights.fill_(_LOG_DECAY)
                else:
                    weights.uniform_(-0.04, 0.04, generator=generator)

    DummyModelLoader.load_weights = load_weights
