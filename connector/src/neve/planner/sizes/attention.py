"""Layers whose KV grows with the tokens: softmax attention, latent attention, compressed attention.

Each function returns the group of one layer.
"""

from collections.abc import Iterator
from typing import Final

from neve.errors import Misuse
from neve.formats.parts import PartKind
from neve.planner.sizes.fields import Fields
from neve.planner.sizes.groups import KvGroup
from neve.planner.sizes.widths import Widths

# Rows of fp8_ds_mla: 512 fp8 values, 4 float32 scales, 64 rotary values in bf16. V4: 448 fp8, 64
# rotary values in bf16, 8 bytes of scales.
# Source: vllm/model_executor/layers/attention/mla_attention.py, models/deepseek_v4/attention.py.
_PACKED_LATENT: Final = (512, 64)
_PACKED_BYTES: Final = 656
_V4_HEAD: Final = 512
_V4_PACKED_BYTES: Final = 584
_V4_BLOCK: Final = 256  # tokens of the engine's block; of a window's:
_V4_WINDOW_BLOCK: Final = 64
_V4_RATIOS: Final = (0, 1, 4, 128)  # tokens an entry; 0 and 1: the window alone
_V4_KINDS: Final = {
    "sliding_attention": 0,
    "compressed_sparse_attention": 4,
    "heavily_compressed_attention": 128,
}


def heads_of_rank(heads: int, tp: int) -> int:
    """KV heads of a TP rank; with fewer heads than ranks each is repeated. Raises `Misuse` where
    vLLM does."""
    if heads % tp and tp % heads:
        raise Misuse(f"{heads} KV heads can't be divided among {tp} ranks", field="tp")
    return max(1, heads // tp)


def kv_heads(fields: Fields) -> int:
    """Heads that keep KV: as many as query heads where config.json has no number of its own."""
    # Source: ModelArchConfigConvertorBase.get_total_num_kv_heads of vLLM.
    own = ("num_key_value_heads", "num_kv_heads", "n_head_kv", "multi_query_group_num")
    if fields.get("multi_query_attention") is False:  # ChatGLM names groups, and may not use them
        return query_heads(fields)
    if fields.flag("multi_query") and not fields.flag("new_decoder_architecture"):
        return 1  # Falcon 7B, GPT-BigCode
    if fields.get(*own) is not None:
        return fields.number(*own)
    return query_heads(fields)


def query_heads(fields: Fields) -> int:
    return fields.number("num_attention_heads", "n_head", "n_heads", "num_heads")


def head_width(fields: Fields) -> int:
    if fields.get("head_dim", "kv_channels", "attention_head_dim") is not None:
        return fields.number("head_dim", "kv_channels", "attention_head_dim")
    width, heads = fields.number("hidden_size", "n_embd", "n_embed", "d_model"), query_heads(fields)
    if width % heads:
        raise Misuse(f"hidden_size {width} is no multiple of {heads} heads", field="head_dim")
    return width // heads


def softmax(
    fields: Fields,
    widths: Widths,
    tp: int,
    *,
    kind: PartKind = PartKind.FULL,
    span_tokens: int | None = None,
    heads: int | None = None,
    width: int | None = None,
    value_width: int | None = None,
) -> KvGroup:
    """Keys and values of each KV head. The last three in place of the configuration's own."""
    if widths.is_packed:
        raise Misuse("fp8_ds_mla is of latent attention only: use fp8", field="kv_dtype")
    heads = kv_heads(fields) if heads is None else heads
    width = head_width(fields) if width is None else width
    both = width + (value_width or width)
    words = f"{heads} KV heads × {width}"
    if value_width and value_width != width:
        words += f" + {value_width}"
    entry = both * widths.kv_bytes
    return KvGroup(kind, words, 1, heads * entry, heads_of_rank(heads, tp) * entry, span_tokens)


def latent(fields: Fields, widths: Widths) -> KvGroup:
    """MLA: one compressed vector, which each TP rank holds and one stores."""
    rank, rotary = fields.number("kv_lora_rank"), fields.number("qk_rope_head_dim")
    entry = (rank + rotary) * widths.kv_bytes
    if widths.is_packed:
        if (rank, rotary) != _PACKED_LATENT:
            raise Misuse(f"fp8_ds_mla has 512 + 64 values, not {rank} + {rotary}", field="kv_dtype")
        entry = _PACKED_BYTES
    return KvGroup(PartKind.FULL, f"MLA {rank} + {rotary}", 1, entry, entry)


def indexer(fields: Fields, widths: Widths, *, entry_tokens: int = 1) -> KvGroup:
    """Keys by which sparse attention chooses tokens: one vector, on each TP rank."""
    width = fields.number("index_head_dim")
    entry = widths.index_row(width)
    return KvGroup(
        PartKind.FULL, f"indexer {width}", 1, entry, entry, entry_tokens=entry_tokens,
        engine_block_tokens=_V4_BLOCK if entry_tokens > 1 else None,
    )  # fmt: skip


def has_indexer(fields: Fields, layer: int) -> bool:
    """Whether a layer of DeepSeek V3.2's kind chooses tokens itself, and not as one before it.

    Source: DeepseekV2DecoderLayer of vLLM (0.32).
    """
    if fields.get("index_topk") is None:
        return False
    modes = fields.words("indexer_types")
    if modes is not None and layer < len(modes[1]):
        return modes[1][layer] == "full"
    pattern = fields.get("index_topk_pattern")
    if pattern is not None:
        if not isinstance(pattern, str):
            raise Misuse("config.json needs letters F and S here", field="index_topk_pattern")
        return pattern[layer : layer + 1] != "S"
    every = fields.number("index_topk_freq", default=1)
    offset = fields.number("index_skip_topk_offset", default=2, least=0)
    return max(layer - offset + 1, 0) % every == 0


def compressed_ratios(fields: Fields, layers: int) -> list[int]:
    """DeepSeek V4: for each layer how many tokens an entry stands for."""
    kinds = fields.words("layer_types")
    if kinds is not None:
        unknown = set(kinds[1]) - set(_V4_KINDS)
        if unknown:
            raise Misuse(f"unknown: {min(unknown)!r:.60}", field="layer_types")
        ratios = [_V4_KINDS[kind] for kind in kinds[1]]
    else:
        ratios = fields.numbers("compress_ratios")
    if len(ratios) < layers:  # behind them: layers that predict further tokens
        raise Misuse(f"need one for each of {layers} layers", field="compress_ratios")
    if set(ratios) - set(_V4_RATIOS):
        raise Misuse(f"need one of {_V4_RATIOS}", field="compress_ratios")
    return ratios[:layers]


def compressed(fields: Fields, widths: Widths, ratio: int) -> Iterator[KvGroup]:
    """A layer of DeepSeek V4: a window of plain rows, and with a ratio above 1 one entry for so
    many tokens, with the float32 sums of the entry that is still open. Ratio 4 (CSA) overlaps
    entries and has an indexer; ratio 128 (HCA) has neither.

    Source: vllm/models/deepseek_v4/attention.py and compressor.py (0.32).
    """
    head = fields.number("head_dim")
    row = head * widths.kv_bytes
    if widths.is_packed:
        if head != _V4_HEAD:
            raise Misuse(f"fp8_ds_mla has heads of {_V4_HEAD}, not {head}", field="kv_dtype")
        row = _V4_PACKED_BYTES
    window = fields.number("sliding_window")
    yield KvGroup(
        PartKind.WINDOW, f"latent {head}", 1, row, row, window,
        engine_block_tokens=_V4_WINDOW_BLOCK,
    )  # fmt: skip
    if ratio <= 1:
        return
    name = "CSA" if ratio == 4 else "HCA"
    yield KvGroup(
        PartKind.FULL, f"{name} {head}", 1, row, row, entry_tokens=ratio,
        engine_block_tokens=_V4_BLOCK,
    )  # fmt: skip
    yield _open_entry(head, ratio, "compressor")
    if ratio == 4:
        yield indexer(fields, widths, entry_tokens=ratio)
        yield _open_entry(fields.number("index_head_dim"), ratio, "indexer's compressor")


def _open_entry(width: int, ratio: int, name: str) -> KvGroup:
    """Weighted sum and weights of an entry's tokens, in float32; overlapping entries are two."""
    overlap = 2 if ratio == 4 else 1
    row = 2 * overlap * width * 4
    block = 4 if ratio == 4 else 8
    return KvGroup(
        PartKind.WINDOW, f"{name} {width}", 1, row, row, overlap * ratio, engine_block_tokens=block
    )
