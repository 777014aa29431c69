"""The size of published models' KV: figures that their makers and engines tell.

tests/neve/data/model_configs.json has those fields of each public config.json that say what is kept
of a sequence, and a few that vLLM wants to build the model (tests/vllm/check_sizes.py).
"""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neve.errors import Misuse
from neve.formats.parts import PartKind
from neve.planner.parts import loaded_bytes, stored_bytes
from neve.planner.sizes import kv_size
from neve.planner.sizes.families import ALIASES, FAMILIES, WRAPPERS

CONFIGS = json.loads((Path(__file__).parent / "data/model_configs.json").read_text())
LLAMA = CONFIGS["Llama-3-8B"]
MILLION = 1 << 20
GIB = 1 << 30


def size_of(name, **options):
    return kv_size(CONFIGS[name], **{"dtype": "bfloat16", **options})


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("Llama-3-8B", 131_072),
        ("Llama-3-70B", 327_680),
        ("Llama-3.1-405B", 516_096),
        ("Qwen2.5-7B", 57_344),
        ("Qwen3-30B-A3B", 98_304),
        ("Qwen3-235B-A22B", 192_512),
        ("GLM-4.7", 376_832),
        ("MiniMax-M2", 253_952),
        ("DeepSeek-V3", 70_272),
        ("Kimi-K2", 70_272),
    ],
)
def test_models_of_full_attention_grow_by_the_known_bytes_a_token(model, expected):
    kv = size_of(model)
    assert kv.bytes_per_token == kv.stored_bytes_per_token == expected
    assert kv.fixed_bytes == 0
    assert kv.bytes_of(1000) == 1000 * expected


def test_an_indexer_counts_in_the_dtype_of_its_keys():
    """DeepSeek-V3.2: 85,888 bytes with keys in bf16; vLLM keeps 128 fp8 values and a scale."""
    assert size_of("DeepSeek-V3.2", index_dtype="bfloat16").bytes_per_token == 85_888
    assert size_of("DeepSeek-V3.2").bytes_per_token == 70_272 + 61 * 132
    assert size_of("DeepSeek-V3.2", kv_dtype="fp8_ds_mla").bytes_per_token == 61 * (656 + 132)
    assert size_of("DeepSeek-V3.2", index_dtype="fp4").bytes_per_token == 70_272 + 61 * 68


def test_layers_that_take_over_chosen_tokens_have_no_indexer():
    config = CONFIGS["DeepSeek-V3.2"]
    every_fourth = kv_size(config | {"index_topk_freq": 4, "index_skip_topk_offset": 3})
    (latent, indexer) = every_fourth.groups
    assert (latent.layers, indexer.layers) == (61, 2 + 1 + 58 // 4)
    pattern = kv_size(config | {"index_topk_pattern": "FSSF" + "S" * 57})
    assert pattern.groups[1].layers == 2


def test_windows_are_fixed_and_only_full_attention_grows():
    kv = size_of("gpt-oss-120b")
    assert kv.bytes_per_token == 36_864
    assert kv.stored_bytes_per_token == 73_728
    assert kv.fixed_bytes == 128 * 36_864
    assert kv.bytes_of(100) == 100 * 73_728  # no window is full yet
    assert kv.bytes_of(10_000) == 10_000 * 36_864 + 128 * 36_864
    assert [(each.kind, each.layers) for each in kv.groups] == [("full", 18), ("window", 18)]


@pytest.mark.parametrize(
    ("model", "gib", "layers"),
    [("DeepSeek-V4-Pro", 9.62, 61), ("DeepSeek-V4-Flash", 6.72, 43)],
)
def test_compressed_attention_of_a_million_tokens(model, gib, layers):
    """Source: vLLM's announcement of DeepSeek V4, with keys and indexer in bf16."""
    kv = size_of(model, index_dtype="bfloat16")
    assert round(kv.bytes_per_token * MILLION / GIB, 2) == gib
    windows = [group for group in kv.groups if group.span_tokens == 128]
    assert sum(group.layers for group in windows if group.shape == "latent 512") == layers
    # Windows and open entries come on top, whatever the length.
    assert kv.bytes_of(MILLION) == kv.bytes_per_token * MILLION + kv.fixed_bytes
    assert kv.fixed_bytes < GIB / 32


def test_compressed_attention_counts_whole_entries():
    kv = size_of("DeepSeek-V4-Pro", index_dtype="bfloat16")
    full = [group for group in kv.groups if group.kind is PartKind.FULL]
    assert {group.entry_tokens for group in full} == {4, 128}
    heavy = next(group for group in full if group.entry_tokens == 128)
    assert heavy.bytes_of(127) == 0
    assert heavy.bytes_of(255) == heavy.bytes_of(128) == 31 * 1024
    packed = size_of("DeepSeek-V4-Pro", kv_dtype="fp8_ds_mla")
    assert packed.bytes_per_token == 30 * (584 + 132) / 4 + 31 * 584 / 128


def test_layer_kinds_name_the_same_compressed_attention():
    config = {key: v for key, v in CONFIGS["DeepSeek-V4-Flash"].items() if key != "compress_ratios"}
    names = {0: "sliding", 4: "compressed_sparse", 128: "heavily_compressed"}
    ratios = CONFIGS["DeepSeek-V4-Flash"]["compress_ratios"][:43]
    config["layer_types"] = [f"{names[ratio]}_attention" for ratio in ratios]
    assert kv_size(config) == kv_size(CONFIGS["DeepSeek-V4-Flash"])


@pytest.mark.parametrize(
    ("model", "per_token", "fixed"),
    [
        # 36 layers of 32 × 128 × 128 and the last 3 inputs of 8,192 channels, in bf16
        ("Qwen3-Next-80B-A3B", 24_576, 36 * 2 * (32 * 128 * 128 + 3 * 8192)),
        # 20 layers; the recurrent part in float32
        ("Kimi-Linear-48B-A3B", 7 * 1152, 20 * (4 * 32 * 128 * 128 + 2 * 3 * 3 * 4096)),
        ("Nemotron-H-8B", 16_384, 24 * (4 * 128 * 64 * 128 + 2 * 3 * (8192 + 2 * 8 * 128))),
        ("Mamba2-2.7B", 0, 64 * 2 * (80 * 64 * 128 + 3 * (5120 + 256))),
        ("Jamba-v0.1", 16_384, 28 * 2 * 8192 * (16 + 3)),
        ("Granite-4.0-H-Small", 16_384, 36 * 2 * (128 * 64 * 128 + 3 * (8192 + 256))),
        ("LFM2-1.2B", 12_288, 10 * 2 * 2 * 2048),
    ],
)
def test_states_have_a_fixed_size(model, per_token, fixed):
    kv = size_of(model)
    assert (kv.bytes_per_token, kv.stored_bytes_per_token) == (per_token, per_token)
    assert kv.fixed_bytes == fixed
    assert kv.bytes_of(0) == fixed


def test_a_states_dtype_is_a_parameter():
    plain, wide = (
        size_of("Qwen3-Next-80B-A3B"),
        size_of("Qwen3-Next-80B-A3B", state_dtype="float32"),
    )
    assert wide.fixed_bytes - plain.fixed_bytes == 36 * 2 * 32 * 128 * 128
    named = CONFIGS["Qwen3-Next-80B-A3B"] | {"mamba_ssm_dtype": "float32"}
    assert kv_size(named) == wide


def test_multimodal_models_are_read_by_their_language_model():
    kv = size_of("Gemma-3-27B")
    assert (kv.bytes_per_token, kv.stored_bytes_per_token) == (81_920, 507_904)
    assert [(each.layers, each.span_tokens) for each in kv.groups] == [(10, None), (52, 1024)]
    scout = size_of("Llama-4-Scout")
    assert [(each.kind, each.layers) for each in scout.groups] == [("full", 12), ("local", 36)]
    assert scout.groups[1].span_tokens == 8192


def test_layers_that_share_kv_have_none_of_their_own():
    kv = size_of("Gemma-3n-E4B")
    assert sum(group.layers for group in kv.groups) == 35 - 15
    assert kv.stored_bytes_per_token == 20 * 2 * 2 * 256 * 2


def test_a_window_that_no_request_outgrows_is_full_attention():
    config = CONFIGS["Mistral-7B-v0.1"]
    assert kv_size(config).bytes_per_token == 0
    assert kv_size(config).fixed_bytes == 4096 * 131_072
    assert kv_size(config | {"sliding_window": 32_768}).bytes_per_token == 131_072
    assert kv_size(config | {"sliding_window": None}).bytes_per_token == 131_072


def test_heads_are_divided_among_ranks_and_then_repeated():
    assert size_of("Llama-3-8B", tp=4).of_rank().bytes_per_token == 131_072 // 4
    assert size_of("Llama-3-8B", tp=16).of_rank().bytes_per_token == 131_072 // 8
    assert size_of("Llama-3-8B", tp=16).bytes_per_token == 131_072
    assert size_of("DeepSeek-V3", tp=8).of_rank().bytes_per_token == 70_272
    state = size_of("Qwen3-Next-80B-A3B", tp=2)
    assert state.of_rank().fixed_bytes * 2 == state.fixed_bytes
    with pytest.raises(Misuse, match="8 KV heads") as refused:
        size_of("Llama-3-8B", tp=3)
    assert refused.value.field == "tp"


def test_mamba2_repeats_groups_for_the_heads_of_each_rank():
    rank = size_of("Granite-4.0-H-Small", tp=2).of_rank().groups[1]
    assert rank.entry_bytes == 2 * (64 * 64 * 128 + 3 * (8192 + 2 * 2 * 128) // 2)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"kv_dtype": "fp8"}, 65_536),
        ({"kv_dtype": "auto", "dtype": "float32"}, 262_144),
        ({"kv_dtype": "float16", "dtype": "float32"}, 131_072),
    ],
)
def test_dtypes_are_parameters(options, expected):
    assert kv_size(LLAMA, **options).bytes_per_token == expected


def test_a_codec_changes_what_the_store_holds():
    plain, packed = size_of("Qwen3-Next-80B-A3B"), size_of("Qwen3-Next-80B-A3B", codec_ratio=2.5)
    assert plain.stored(256).of(1000) == plain.bytes_of(1000)
    assert packed.stored(256).of(1000) == pytest.approx(plain.bytes_of(1000) / 2.5, abs=1)
    assert packed.bytes_of(1000) == plain.bytes_of(1000)  # in the engine


def test_heads_by_other_names():
    plain = {k: v for k, v in LLAMA.items() if k != "num_key_value_heads"}
    assert kv_size(plain).bytes_per_token == 4 * 131_072  # every head has its own
    falcon = {"model_type": "falcon", "num_hidden_layers": 32, "hidden_size": 4544,
              "num_attention_heads": 71, "multi_query": True, "dtype": "bfloat16"}  # fmt: skip
    assert kv_size(falcon).bytes_per_token == 32 * 2 * 64 * 2
    new = falcon | {"new_decoder_architecture": True, "num_kv_heads": 8, "num_attention_heads": 71}
    assert kv_size(new).bytes_per_token == 32 * 8 * 2 * 64 * 2
    chatglm = {"model_type": "chatglm", "num_layers": 28, "num_attention_heads": 32,
               "kv_channels": 128, "multi_query_attention": True, "multi_query_group_num": 2,
               "torch_dtype": "float16"}  # fmt: skip
    assert kv_size(chatglm).bytes_per_token == 28 * 2 * 2 * 128 * 2
    assert kv_size(chatglm | {"multi_query_attention": False}).bytes_per_token == 28 * 32 * 512
    gpt2 = {"model_type": "gpt2", "n_embd": 768, "n_head": 12, "n_layer": 12, "dtype": "float32"}
    assert kv_size(gpt2).bytes_per_token == 12 * 2 * 768 * 4


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({}, "model_type"),
        ({"model_type": "unheard_of"}, "model_type"),
        ({"model_type": "minimax_m3_vl", "text_config": LLAMA}, "model_type"),
        (
            {"model_type": "llava", "dtype": "half", "text_config": {"model_type": "llama"}},
            "num_hidden_layers",
        ),
        (LLAMA | {"num_hidden_layers": None}, "num_hidden_layers"),
        (LLAMA | {"num_key_value_heads": "8"}, "num_key_value_heads"),
        (LLAMA | {"num_key_value_heads": True}, "num_key_value_heads"),
        (LLAMA | {"head_dim": 0}, "head_dim"),
        (LLAMA | {"hidden_size": 4097}, "head_dim"),
        (LLAMA | {"torch_dtype": None}, "dtype"),
        (LLAMA | {"torch_dtype": "int3"}, "torch_dtype"),
        (LLAMA | {"layer_types": ["full_attention"] * 31}, "layer_types"),
        (LLAMA | {"layer_types": ["full_attention"] * 31 + ["new"]}, "layer_types"),
        (LLAMA | {"layer_types": ["linear_attention"] * 32}, "layer_types"),
        (CONFIGS["DeepSeek-V3"] | {"kv_lora_rank": None}, "kv_lora_rank"),
        (CONFIGS["DeepSeek-V3.2"] | {"index_head_dim": None}, "index_head_dim"),
        (CONFIGS["DeepSeek-V4-Pro"] | {"compress_ratios": [4] * 60}, "compress_ratios"),
        (CONFIGS["DeepSeek-V4-Pro"] | {"compress_ratios": [8] * 61}, "compress_ratios"),
        (CONFIGS["Kimi-Linear-48B-A3B"] | {"linear_attn_config": None}, "linear_attn_config"),
        (CONFIGS["Jamba-v0.1"] | {"mamba_d_state": None}, "mamba_d_state"),
        (CONFIGS["LFM2-1.2B"] | {"full_attn_idxs": None}, "full_attn_idxs"),
        (CONFIGS["Nemotron-H-8B"] | {"hybrid_override_pattern": "MXM"}, "hybrid_override_pattern"),
    ],
)
def test_what_is_missing_or_unknown_is_named(config, field):
    with pytest.raises(Misuse) as refused:
        kv_size(config)
    assert refused.value.field == field


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"kv_dtype": "int3"}, "kv_dtype"),
        ({"kv_dtype": "fp8_ds_mla"}, "kv_dtype"),
        ({"dtype": "fp8"}, "dtype"),
        ({"state_dtype": "fp8"}, "state_dtype"),
        ({"index_dtype": "int8"}, "index_dtype"),
        ({"tp": 0}, "tp"),
        ({"codec_ratio": 0.0}, "codec_ratio"),
        ({"codec_ratio": float("nan")}, "codec_ratio"),
    ],
)
def test_a_wrong_parameter_is_named(options, field):
    with pytest.raises(Misuse) as refused:
        kv_size(LLAMA, **options)
    assert refused.value.field == field


HEADS = {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64, "dtype": "half"}
LAYERS = HEADS | {"num_hidden_layers": 8, "hidden_size": 512, "max_position_embeddings": 1 << 20}
ROW = 2 * 2 * 64 * 2  # of one layer
MAMBA2 = {
    "mamba_n_heads": 8, "mamba_d_head": 32, "mamba_d_state": 16, "mamba_n_groups": 1,
    "mamba_d_conv": 4, "mamba_expand": 2,
}  # fmt: skip
GEMMA4 = LAYERS | {"model_type": "gemma4_text", "num_hidden_layers": 6, "sliding_window": 96}


@pytest.mark.parametrize(
    ("config", "full", "windows"),
    [
        (GEMMA4, 2 * 2 * 512 * 2, 5 * ROW),
        (GEMMA4 | {"global_head_dim": 128, "num_global_key_value_heads": 1}, ROW, 5 * ROW),
        (GEMMA4 | {"per_layer_config": {"05": {"head_dim": 32}}}, ROW // 2, 5 * ROW),
        (LAYERS | {"model_type": "exaone4", "sliding_window": 96}, 2 * ROW, 6 * ROW),
        (
            LAYERS
            | {"model_type": "exaone4", "sliding_window": 96, "sliding_window_pattern": "LLG"},
            3 * ROW,
            5 * ROW,
        ),
        (LAYERS | {"model_type": "exaone4", "sliding_window": None}, 8 * ROW, 0),
        (LAYERS | {"model_type": "gemma2", "sliding_window": 96}, 4 * ROW, 4 * ROW),
        (LAYERS | {"model_type": "cohere2", "sliding_window": 96}, 2 * ROW, 6 * ROW),
        (
            LAYERS
            | {
                "model_type": "qwen2", "sliding_window": 96, "use_sliding_window": True,
                "max_window_layers": 5,
            },
            5 * ROW,
            3 * ROW,
        ),
        (LAYERS | {"model_type": "smollm3", "sliding_window": 96}, 8 * ROW, 0),
        (
            LAYERS
            | {
                "model_type": "mimo_v2_flash", "hybrid_layer_pattern": [0, 1, 1, 1] * 2,
                "sliding_window_size": 96, "v_head_dim": 32, "swa_num_key_value_heads": 4,
                "swa_head_dim": 64, "swa_v_head_dim": 64,
            },
            2 * 2 * (64 + 32) * 2,
            6 * 2 * ROW,
        ),
    ],
)  # fmt: skip
def test_windows_and_heads_by_the_rules_of_each_family(config, full, windows):
    kv = kv_size(config)
    assert (kv.bytes_per_token, kv.stored_bytes_per_token) == (full, full + windows)


@pytest.mark.parametrize(
    ("config", "full", "state"),
    [
        (LAYERS | MAMBA2 | {"model_type": "falcon_h1", "mamba_d_ssm": 256}, 8, 8 * 4096 + 8 * 864),
        (
            LAYERS | MAMBA2
            | {"model_type": "bamba", "attn_layer_indices": [3], "hidden_size": 128},
            1,
            7 * (4096 + 864),
        ),
        (
            LAYERS | MAMBA2
            | {
                "model_type": "zamba2", "hidden_size": 128, "n_mamba_heads": 8, "mamba_ngroups": 1,
                "mamba_n_heads": None, "mamba_n_groups": None, "mamba_d_head": None,
                "attention_head_dim": 64, "layers_block_type": ["mamba", "hybrid"] * 4,
            },
            4,
            8 * (4096 + 864),
        ),
        (
            LAYERS | {"model_type": "minimax_text_01", "attn_type_list": [0, 0, 0, 1] * 2},
            2,
            6 * 8 * 64 * 64,
        ),
    ],
)  # fmt: skip
def test_states_by_the_fields_of_each_family(config, full, state):
    kv = kv_size(config)
    assert kv.bytes_per_token == full * ROW
    assert kv.fixed_bytes == 2 * state


def test_two_latent_attentions_a_layer():
    config = {"model_type": "longcat_flash", "num_layers": 28, "kv_lora_rank": 512,
              "qk_rope_head_dim": 64, "dtype": "bfloat16"}  # fmt: skip
    assert kv_size(config).bytes_per_token == 56 * 1152


ODD = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 1 << 40), st.floats(), st.text(max_size=4),
    st.lists(st.one_of(st.none(), st.integers(-1, 200), st.text(max_size=4)), max_size=70),
    st.dictionaries(st.text(max_size=4), st.integers(), max_size=2),
)  # fmt: skip


@given(data=st.data())
def test_any_change_of_a_configuration_is_read_or_refused_by_name(data):
    config = dict(CONFIGS[data.draw(st.sampled_from(sorted(CONFIGS)))])
    config |= config.pop("text_config", {})
    more = ("layer_types", "sliding_window", "num_kv_shared_layers", "per_layer_config", "dtype")
    for name in data.draw(st.lists(st.sampled_from([*sorted(config), *more]), max_size=3)):
        config[name] = data.draw(ODD)
    named, groups = None, ()
    try:
        groups = kv_size(config).groups
    except Misuse as refused:
        named = refused.field
    assert bool(named) != bool(groups)
    assert all(group.entry_bytes > 0 for group in groups)


def test_similar_architectures_are_named():
    with pytest.raises(Misuse, match="qwen3_moe"):
        kv_size(LLAMA | {"model_type": "qwen3_mo"})


def test_other_names_lead_to_families():
    assert set(ALIASES.values()) <= set(FAMILIES)
    assert not WRAPPERS & (set(FAMILIES) - set(ALIASES))


@pytest.mark.parametrize("model", sorted(set(CONFIGS) - {"DeepSeek-V4-Pro", "DeepSeek-V4-Flash"}))
def test_a_space_with_these_groups_has_the_same_sizes(model):
    """`neve.planner.parts` works with groups as nodes describe them to the platform."""
    kv = size_of(model)
    stored = stored_bytes(kv.part_groups(), 16_384)
    states = sum(g.fixed_bytes for g in kv.groups if g.kind is PartKind.STATE)
    assert stored.fixed == states
    assert stored.per_token <= kv.stored_bytes_per_token
    assert kv.stored(256) == stored_bytes(kv.part_groups(), 256)
    loaded = loaded_bytes(kv.part_groups(), 256)
    assert loaded.per_token == kv.bytes_per_token
    # A window's parts are whole chunks: at most two more than its tokens.
    slack = sum(2 * 256 * g.stored_bytes_per_token for g in kv.groups if g.span_tokens)
    assert kv.fixed_bytes - slack <= loaded.fixed <= kv.fixed_bytes + slack


def test_a_block_of_a_window_is_the_chunks_tail():
    full, window = size_of("gpt-oss-120b").groups
    assert full.block_bytes(256) == 256 * 36_864
    assert window.block_bytes(256) == window.block_bytes(128) == 128 * 36_864
    assert size_of("gpt-oss-120b").block_bytes(256) == 384 * 36_864


@given(
    model=st.sampled_from(sorted(CONFIGS)),
    tokens=st.integers(0, 1 << 22),
    more=st.integers(0, 1 << 16),
)
def test_longer_sequences_hold_no_less_and_ranks_no_more_than_all(model, tokens, more):
    kv = size_of(model, tp=2)
    assert kv.bytes_of(tokens) <= kv.bytes_of(tokens + more)
    assert kv.bytes_of(tokens) <= kv.bytes_per_token * tokens + kv.fixed_bytes
    assert kv.of_rank().bytes_of(tokens) <= kv.bytes_of(tokens) <= 2 * kv.of_rank().bytes_of(tokens)
