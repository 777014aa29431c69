"""Writes a tiny seeded Llama with a byte-level tokenizer: `python make_model.py FOLDER SEED`.

Run by the interpreter of SGLang.
"""

import sys

import on_cpu  # noqa: F401
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedTokenizerFast,
)

folder, seed = sys.argv[1], int(sys.argv[2])
config = LlamaConfig(
    vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=4,
    num_attention_heads=4, num_key_value_heads=2, head_dim=32, max_position_embeddings=2048,
    bos_token_id=None, eos_token_id=None, pad_token_id=None, tie_word_embeddings=False,
    dtype="float32",
    # Random weights of the usual scale give near-uniform logits; these give distinct ones.
    initializer_range=0.2,
)  # fmt: skip
alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
torch.manual_seed(seed)
AutoModelForCausalLM.from_config(config).save_pretrained(folder)
PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
