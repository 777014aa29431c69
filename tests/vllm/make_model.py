"""Writes tiny seeded models, each with a byte-level tokenizer, to folders named by their shape.

Run by the vLLM interpreter: `python make_model.py FOLDER SEED`. Shapes: llama (grouped
query attention), gemma, gptoss and cohere2 (every other layer sees a sliding window), window (every
layer does), moe (4 experts, 2
of them for a token), mla (DeepSeek's latent attention), longrope (other positions from 1024 tokens
on), bert (no KV at all), mamba (a state in place of KV), qwen3next (in every other
layer), whisper (reads an encoder of two seconds of sound), blip (sees an image: 8 tokens ahead of
the text). Beside them two adapters for llama: lora-a, lora-b.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertModel,
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    Cohere2Config,
    DeepseekV2Config,
    Gemma3TextConfig,
    GptOssConfig,
    LlamaConfig,
    Mamba2Config,
    MistralConfig,
    MixtralConfig,
    OPTConfig,
    Phi3Config,
    PreTrainedTokenizerFast,
    Qwen3NextConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

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
    "gptoss": GptOssConfig(
        **COMMON, num_local_experts=4, num_experts_per_tok=2, sliding_window=128,
        layer_types=WINDOWS, rope_scaling=None,
    ),
    "cohere2": Cohere2Config(**COMMON, sliding_window=96, layer_types=WINDOWS),
    "qwen3next": Qwen3NextConfig(
        # Much KV a token, so that an engine block that holds a state is short: 96 tokens.
        **COMMON | {"num_key_value_heads": 4, "head_dim": 256},
        num_experts=4, num_experts_per_tok=2, moe_intermediate_size=64,
        shared_expert_intermediate_size=64, layer_types=["linear_attention", "full_attention"] * 2,
        linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=128,
        linear_value_head_dim=128, linear_conv_kernel_dim=4, mlp_only_layers=[],
        decoder_sparse_step=1,
    ),
    "window": MistralConfig(**COMMON, sliding_window=128),
    "moe": MixtralConfig(**COMMON, num_local_experts=4, num_experts_per_tok=2),
    "mla": DeepseekV2Config(**COMMON | LATENT),
    "longrope": Phi3Config(
        **COMMON | {"hidden_size": 128},
        original_max_position_embeddings=1024,
        rope_scaling={
            "rope_type": "longrope",
            "short_factor": [1.0 + 0.05 * n for n in range(16)],
            "long_factor": [2.0 + 1.5 * n for n in range(16)],
            "original_max_position_embeddings": 1024,
            "rope_theta": 10000.0,
        },
    ),
    "mamba": Mamba2Config(
        vocab_size=256, hidden_size=128, num_hidden_layers=2, num_heads=8, head_dim=32,
        state_size=16, n_groups=1, bos_token_id=None, eos_token_id=None, pad_token_id=None,
        initializer_range=0.2, dtype="float32",
    ),
}  # fmt: skip
alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
for shape, config in CONFIGS.items():
    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(config).save_pretrained(f"{folder}/{shape}")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(f"{folder}/{shape}")
BertModel(
    BertConfig(
        vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=512,
    )
).save_pretrained(f"{folder}/bert")  # fmt: skip
PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(f"{folder}/bert")

END, START = 256, 257
torch.manual_seed(seed)
WhisperForConditionalGeneration(
    WhisperConfig(
        vocab_size=258, d_model=64, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=128, decoder_ffn_dim=128,
        max_source_positions=100, max_target_positions=448, bos_token_id=END, eos_token_id=END,
        pad_token_id=END, decoder_start_token_id=START, init_std=0.2, suppress_tokens=None,
        begin_suppress_tokens=None,
    )
).save_pretrained(f"{folder}/whisper")  # fmt: skip
speech = WhisperTokenizer(vocab={c: i for i, c in enumerate(alphabet)}, merges=[])
speech.add_special_tokens({"additional_special_tokens": ["<|startoftranscript|>"]})
WhisperProcessor(
    feature_extractor=WhisperFeatureExtractor(feature_size=80, chunk_length=2), tokenizer=speech
).save_pretrained(f"{folder}/whisper")

SEEING = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
}  # fmt: skip
IMAGE_TOKENS = 8
words = OPTConfig(
    vocab_size=257, hidden_size=64, ffn_dim=128, num_hidden_layers=4, num_attention_heads=2,
    max_position_embeddings=2048, word_embed_proj_dim=64, bos_token_id=None, eos_token_id=None,
    pad_token_id=None,
)  # fmt: skip
torch.manual_seed(seed)
blip = Blip2ForConditionalGeneration(
    Blip2Config(
        text_config=words.to_dict(),
        vision_config=SEEING | {"image_size": 56, "patch_size": 14},
        qformer_config=SEEING | {"vocab_size": 257, "encoder_hidden_size": 32},
        num_query_tokens=IMAGE_TOKENS,
        image_token_index=256,
    )
)
for weights in blip.parameters():
    if weights.dim() > 1:
        torch.nn.init.normal_(weights, std=COMMON["initializer_range"])
blip.save_pretrained(f"{folder}/blip")
tokenizer.add_special_tokens([AddedToken("<image>", special=True)])
Blip2Processor(
    image_processor=BlipImageProcessorPil(size={"height": 56, "width": 56}),
    tokenizer=PreTrainedTokenizerFast(tokenizer_object=tokenizer),
    num_query_tokens=IMAGE_TOKENS,
).save_pretrained(f"{folder}/blip")

RANK = 8
ADAPTER: dict[str, Any] = {
    "peft_type": "LORA", "task_type": "CAUSAL_LM", "bias": "none", "r": RANK,
    "lora_alpha": 2 * RANK,
    "target_modules": ["k_proj", "v_proj"], "base_model_name_or_path": "llama",
}  # fmt: skip
for number, name in enumerate(("lora-a", "lora-b")):
    torch.manual_seed(seed + 1 + number)
    path = Path(folder, name)
    path.mkdir()
    (path / "adapter_config.json").write_text(json.dumps(ADAPTER))
    weights = {}
    for layer in range(COMMON["num_hidden_layers"]):
        for target in ADAPTER["target_modules"]:
            place = f"base_model.model.model.layers.{layer}.self_attn.{target}"
            weights[f"{place}.lora_A.weight"] = torch.randn(RANK, 64)
            weights[f"{place}.lora_B.weight"] = torch.randn(64, RANK)
    save_file(weights, path / "adapter_model.safetensors")
