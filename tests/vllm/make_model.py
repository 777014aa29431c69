"""Writes a tiny seeded Llama with grouped-query attention and a byte-level tokenizer to a folder.

Run by the vLLM interpreter: `python make_model.py FOLDER SEED`.
"""

import sys

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

folder, seed = sys.argv[1], int(sys.argv[2])
torch.manual_seed(seed)
config = LlamaConfig(
    vocab_size=256,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    max_position_embeddings=2048,
    bos_token_id=None,
    eos_token_id=None,
    tie_word_embeddings=False,
    # Random weights of the usual scale give near-uniform logits; these give distinct ones.
    initializer_range=0.2,
    dtype="float32",
)
LlamaForCausalLM(config).save_pretrained(folder)

alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
