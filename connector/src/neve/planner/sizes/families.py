"""Which layers a model has, by the `model_type` of its language model.

A family reads config.json into one group for each layer. What is not in `FAMILIES` is refused: a
model with fields of the usual names may still keep other KV.

Source: defaults and patterns of configurations: the classes of transformers 5.19; what a layer
keeps: vLLM 0.32.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from neve.errors import Misuse
from neve.formats.parts import PartKind
from neve.planner.sizes import attention, states
from neve.planner.sizes.fields import Fields
from neve.planner.sizes.groups import KvGroup
from neve.planner.sizes.widths import Widths

FULL, WINDOW, LOCAL, STATE = "full", "window", "local", "state"
# Names in `layer_types`, `layers_block_type`: today's and those of older configurations.
_KINDS: Final = {
    "full_attention": FULL, "attention": FULL, "sliding_attention": WINDOW,
    "chunked_attention": LOCAL, "linear_attention": STATE, "mamba": STATE, "mamba2": STATE,
    "conv": STATE,
}  # fmt: skip

_MOST_LAYERS: Final = 4096

Reader = Callable[[Fields, Widths, int], Iterable[KvGroup]]


@dataclass(frozen=True)
class Family:
    """`read`: fields, widths and TP ranks → one group for each layer."""

    read: Reader
    defaults: Mapping[str, Any] = field(default_factory=dict)


def layer_count(fields: Fields) -> int:
    names = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
    return fields.number(*names, most=_MOST_LAYERS)


def listed_kinds(fields: Fields, layers: int) -> list[str] | None:
    """Kinds of the layers as config.json lists them; None: it has no list."""
    found = fields.words("layer_types", "layers_block_type")
    if found is None:
        return None
    name, words = found
    unknown = set(words) - set(_KINDS)
    if unknown:
        raise Misuse(f"unknown kind of layer: {min(unknown)!r:.60}", field=name)
    if len(words) < layers:
        raise Misuse(f"need one for each of {layers} layers", field=name)
    return [_KINDS[word] for word in words[:layers]]


def every(period: int, others: str, layers: int, *, last: str = FULL) -> list[str]:
    """`others`, and each `period`-th layer `last`."""
    return [last if (n + 1) % period == 0 else others for n in range(layers)]


def span_of(fields: Fields, kind: str) -> int | None:
    """Tokens of a window or a local chunk; None if no request can outgrow it: that is full
    attention."""
    name = "sliding_window" if kind == WINDOW else "attention_chunk_size"
    span = fields.number(name)
    longest = fields.get("max_position_embeddings")
    return None if isinstance(longest, int) and span >= longest else span


def by_kinds(
    fields: Fields,
    widths: Widths,
    tp: int,
    kinds: Iterable[str],
    *,
    state: KvGroup | None = None,
    more_window: int = 0,
) -> Iterator[KvGroup]:
    """A layer for each kind. `more_window`: tokens that a window has beyond `sliding_window`."""
    for kind in kinds:
        if kind == STATE:
            if state is None:
                raise Misuse("this family has no layers with states", field="layer_types")
            yield state
            continue
        span = None if kind == FULL else span_of(fields, kind)
        if span is None:
            yield attention.softmax(fields, widths, tp)
        elif kind == WINDOW:
            yield attention.softmax(
                fields, widths, tp, kind=PartKind.WINDOW, span_tokens=span + more_window
            )
        else:
            yield attention.softmax(fields, widths, tp, kind=PartKind.LOCAL, span_tokens=span)


def plain(fields: Fields, widths: Widths, tp: int) -> Iterator[KvGroup]:
    """Softmax attention in each layer; with `sliding_window` all have a window, unless
    `layer_types` tells them apart or `use_sliding_window` is false."""
    layers = layer_count(fields)
    kinds = listed_kinds(fields, layers)
    if kinds is None:
        windowed = fields.get("sliding_window") is not None
        windowed = windowed and fields.flag("use_sliding_window", default=True)
        kinds = [WINDOW if windowed else FULL] * layers
    return by_kinds(fields, widths, tp, kinds)


def full_only(fields: Fields, widths: Widths, tp: int) -> Iterator[KvGroup]:
    """Softmax attention in each layer, whatever config.json says of windows."""
    return by_kinds(fields, widths, tp, [FULL] * layer_count(fields))


def smollm3(fields: Fields, widths: Widths, tp: int) -> Iterator[KvGroup]:
    """Windows only with `use_sliding_window`, in the layers that `layer_types` names."""
    layers = layer_count(fields)
    kinds: list[str] | None = [FULL] * layers
    if fields.flag("use_sliding_window"):
        kinds = listed_kinds(fields, layers)
        if kinds is None:
            raise Misuse("config.json has no such list", field="layer_types")
    return by_kinds(fields, widths, tp, kinds or ())


def qwen(fields: Fields, widths: Widths, tp: int) -> Iterator[KvGroup]:
    """Windows only with `use_sliding_window`, from layer `max_window_layers` on."""
    layers = layer_count(fields)
    kinds = listed_kinds(fields, layers)
    if kinds is None or not fields.flag("use_sliding_window"):
        kinds = [FULL] * layers
        if fields.flag("use_sliding_window") and fields.get("sliding_window") is not None:
            first = fields.number("max_window_layers", least=0)
            kinds = [WINDOW if n >= first else FULL for n in range(layers)]
    return by_kinds(fields, widths, tp, kinds)


def patterned(period: int, *, more_window: int = 0) -> Reader:
    """Windows, and each `period`-th layer full attention, unless `layer_types` says otherwise."""

    def read(fields: Fields, widths: Widths, tp: int) -> Iterator[KvGroup]:
        layers = layer_count(fields)
        kinds = listed_kinds(fields, layers)
        if kinds is None:
            own = fields.number("sliding_window_pattern", "_sliding_window_pattern", default=period)
            kinds = every(own, WINDOW, layers)
        return by_kinds(fields, widths, tp, kinds, more_window=more_window)

    return read


def exaone4(fields: Fields, widths: Widths, tp: int) -> Iterator[KvGroup]:
    """The pattern is a number, or letters such as `LLLG`; without a window all is full."""
    layers = layer_count(fields)
    kinds = listed_kinds(fields, layers)
    if kinds is None:
        pattern = fields.get("sliding_window_pattern")
        if fields.get("sliding_window") is None:
            kinds = [FULL] * layers
        elif isinstance(pattern, str) and pattern and set(pattern) <= {"L", "G"}:
            kinds = [
                WINDOW if pattern[n % len(pattern)] == "L" and n < layers - 1 else FULL
                for n in range(layers)
            ]
        else:
            kinds = every(fields.number("sliding_window_pattern", default=4), WINDOW, layers)
    return by_kinds(fields, widths, tp, kinds)


def gemma3n(fields: Fields, widths: Widths, tp: int) -> Iterator[KvGroup]:
    """The last `num_kv_shared_layers` layers read the KV of earlier ones."""
    layers = layer_count(fields)
    kinds = listed_kinds(fields, layers) or every(5, WINDOW, layers)
    return by_kinds(fields, widths, tp, kinds[: layers - shared_layers(fields, layers)])


def shared_layers(fields: Fields, layers: int) -> int:
    shared = fields.number("num_kv_shared_layers", default=0, least=0)
    if shared >= layers:
        raise Misuse(f"need fewer than {layers}", field="num_kv_shared_layers")
    return shared


def gemma4(fields: Fields, widths: Widths, tp: int) -> Iterator[KvGroup]:
    """Layers of full attention have heads of their own: `global_head_dim`, or in newer
    configurations `per_layer_config`."""
    layers = layer_count(fields)
    kinds = listed_kinds(fields, layers)
    if kinds is None:
        kinds = [*every(6, WINDOW, layers)[:-1], FULL]
    own = fields.get("per_layer_config")
    changes = _by_layer(own) if own is not None else {}
    for number, kind in enumerate(kinds[: layers - shared_layers(fields, layers)]):
        here = Fields(changes.get(number, {}), fields.all())
        if own is None and kind == FULL:
            full = {"head_dim": fields.number("global_head_dim", default=512)}
            if fields.flag("attention_k_eq_v", default=True):
                heads = fields.get("num_global_key_value_heads")
                full |= {"num_key_value_heads": heads} if heads is not None else {}
            here = Fields(full, fields.all())
        yield from by_kinds(here, widths, tp, [kind])


def _by_layer(own: object) -> dict[int, Mapping[str, Any]]:
    """`per_layer_config`: an object for each layer that differs, by its number, such as `05`."""
    if not isinstance(own, Mapping) or not all(
        isinstance(number, str) and number.isdecimal() and isinstance(each, Mapping)
        for number, each in own.items()
    ):
        raise Misuse("need an object by number of the layer", field="per_layer_config")
    return {int(number): each for number, each in own.items()}


def gpt_oss(fields: Fields, widths: Widths, tp: int) -> Iterator[KvGroup]:
    """Window and full attention by turns, the window first."""
    kinds = every(2, WINDOW, layer_count(fields))
    return by_kinds(fields, widths, tp, listed_kinds(fields, len(kinds)) or kinds)


def llama4(fields: Fields, widths: Widths, tp: int) -> Iterator[KvGroup]:
    """Local chunks but where `no_rope_layers` has a 0."""
    layers = layer_count(fields)
    kinds = listed_kinds(fields, layers)
    if kinds is None:
        kinds = every(fields.number("no_rope_layer_interval", default=4), LOCAL, layers)
        if fields.get("no_rope_layers"):
            marks = fields.numbers("no_rope_layers")
            if len(marks) < layers:
                raise Misuse(f"need one for each of {layers} layers", field="no_rope_layers")
            kinds = [LOCAL if mark else FULL for mark in marks[:layers]]
    return by_kinds(fields, widths, tp, kinds)


def mimo_v2(fields: Fields, widths: Widths, tp: int) -> Iterator[KvGroup]:
    """Windowed layers have heads of their own, and values are narrower than keys."""
    layers = layer_count(fields)
    marks = fields.numbers("hybrid_layer_pattern")
    if len(marks) < layers:
        raise Misuse(f"need one for each of {layers} layers", field="hybrid_layer_pattern")
    window = fields.number("sliding_window_size", "sliding_window")
    for mark in marks[:layers]:
        prefix = "swa_" if mark else ""
        yield attention.softmax(
            fields, widths, tp,
            kind=PartKind.WINDOW if mark else PartKind.FULL,
            span_tokens=window if mark else None,
            heads=fields.number(f"{prefix}num_key_value_heads"),
            width=fields.number(f"{prefix}head_dim"),
            value_width=fields.number(f"{prefix}v_head_dim"),
        )  # fmt: skip


def mla(fields: Fields, widths: Widths, tp: int) -> Iterator[KvGroup]:
    """Latent attention in each layer; DeepSeek V3.2 and GLM-5 also an indexer."""
    del tp
    for number in range(layer_count(fields)):
        yield attention.latent(fields, widths)
        if attention.has_indexer(fields, number):
            yield attention.indexer(fields, widths)


def longcat(fields: Fields, widths: Widths, tp: int) -> Iterator[KvGroup]:
    """Two latent attentions in each layer."""
    del tp
    for _ in range(2 * fields.number("num_layers", "num_hidden_layers", most=_MOST_LAYERS)):
        yield attention.latent(fields, widths)


def deepseek_v4(fields: Fields, widths: Widths, tp: int) -> Iterator[KvGroup]:
    del tp
    for ratio in attention.compressed_ratios(fields, layer_count(fields)):
        yield from attention.compressed(fields, widths, ratio)


def kimi_linear(fields: Fields, widths: Widths, tp: int) -> Iterator[KvGroup]:
    """Layers are counted from 1 in `kda_layers`."""
    layers = layer_count(fields)
    linear = set(fields.inside("linear_attn_config").numbers("kda_layers"))
    for number in range(1, layers + 1):
        if number in linear:
            yield states.delta(fields, widths, tp)
        else:
            yield attention.latent(fields, widths)


def gated_hybrid(fields: Fields, widths: Widths, tp: int) -> Iterator[KvGroup]:
    """Gated DeltaNet, and each fourth layer full attention."""
    layers = layer_count(fields)
    kinds = listed_kinds(fields, layers)
    if kinds is None:
        kinds = every(fields.number("full_attention_interval", default=4), STATE, layers)
    return by_kinds(fields, widths, tp, kinds, state=states.gated_delta(fields, widths, tp))


def jamba(fields: Fields, widths: Widths, tp: int) -> Iterator[KvGroup]:
    period = fields.number("attn_layer_period")
    offset = fields.number("attn_layer_offset", least=0)
    state = states.mamba1(
        f"Mamba {fields.number('mamba_d_state')}",
        fields.number("mamba_expand") * fields.number("hidden_size"),
        fields.number("mamba_d_state"), fields.number("mamba_d_conv"), widths, tp,
    )  # fmt: skip
    kinds = [FULL if n % period == offset else STATE for n in range(layer_count(fields))]
    return by_kinds(fields, widths, tp, kinds, state=state)


def mamba(fields: Fields, widths: Widths, tp: int) -> Iterator[KvGroup]:
    state = fields.number("state_size")
    width = fields.number("intermediate_size", default=0) or (
        fields.number("expand") * fields.number("hidden_size")
    )
    kernel = fields.number("conv_kernel")
    for _ in range(layer_count(fields)):
        yield states.mamba1(f"Mamba {state}", width, state, kernel, widths, tp)


def mamba2(fields: Fields, widths: Widths, tp: int) -> Iterator[KvGroup]:
    for _ in range(layer_count(fields)):
        yield states.mamba2(
            inner=fields.number("expand") * fields.number("hidden_size"),
            groups=fields.number("n_groups"), heads=fields.number("num_heads"),
            head=fields.number("head_dim"), state=fields.number("state_size"),
            kernel=fields.number("conv_kernel"), widths=widths,
            recurrent_bytes=widths.state(fields), tp=tp,
        )  # fmt: skip


def mamba2_inside(fields: Fields, widths: Widths, tp: int, *, inner: int | None = None) -> KvGroup:
    """Of hybrids that name Mamba's fields `mamba_…`."""
    if inner is None:
        inner = fields.number("mamba_expand") * fields.number("hidden_size")
    return states.mamba2(
        inner=inner, groups=fields.number("mamba_n_groups", "mamba_ngroups"),
        heads=fields.number("mamba_n_heads", "n_mamba_heads"),
        head=fields.number("mamba_d_head", "mamba_headdim"),
        state=fields.number("mamba_d_state"), kernel=fields.number("mamba_d_conv"),
        widths=widths, recurrent_bytes=widths.state(fields), tp=tp,
    )  # fmt: skip


def granite_hybrid(fields: Fields, widths: Widths, tp: int) -> Iterator[KvGroup]:
    layers = layer_count(fields)
    kinds = listed_kinds(fields, layers)
    if kinds is None:
        raise Misuse("config.json has no such list", field="layer_types")
    state = mamba2_inside(fields, widths, tp) if STATE in kinds else None
    return by_kinds(fields, widths, tp, kinds, state=state)


def bamba(fields: Fields, widths: Widths, tp: int) -> Iterator[KvGroup]:
    layers = layer_count(fields)
    kinds = listed_kinds(fields, layers)
    if kinds is None:
        full = set(fields.numbers("attn_layer_indices"))
        kinds = [FULL if n in full else STATE for n in range(layers)]
    return by_kinds(fields, widths, tp, kinds, state=mamba2_inside(fields, widths, tp))


def falcon_h1(fields: Fields, widths: Widths, tp: int) -> Iterator[KvGroup]:
    """Each layer has attention and Mamba side by side."""
    inner = fields.number("mamba_d_ssm", default=0) or None
    for _ in range(layer_count(fields)):
        yield attention.softmax(fields, widths, tp)
        yield mamba2_inside(fields, widths, tp, inner=inner)


def zamba2(fields: Fields, widths: Widths, tp: int) -> Iterator[KvGroup]:
    """Each layer has Mamba, a `hybrid` one also attention, over inputs twice as wide."""
    found = fields.words("layers_block_type", "layer_types")
    if found is None:
        raise Misuse("config.json has no such list", field="layers_block_type")
    width, heads = fields.number("hidden_size"), attention.query_heads(fields)
    inner = fields.number("mamba_expand") * width
    state = mamba2_inside(
        fields.with_defaults({"mamba_headdim": inner // fields.number("n_mamba_heads")}),
        widths, tp,
    )  # fmt: skip
    head = fields.number("attention_head_dim", default=2 * width // heads)
    for kind in found[1][: layer_count(fields)]:
        yield state
        if kind == "hybrid":
            yield attention.softmax(fields, widths, tp, width=head)
        elif kind not in ("mamba", "linear_attention"):
            raise Misuse(f"unknown kind of layer: {kind!r:.60}", field=found[0])


_NEMOTRON_WORDS: Final = {
    "mamba": "M", "linear_attention": "M", "attention": "*", "full_attention": "*", "mlp": "-",
    "moe": "E",
}  # fmt: skip


def nemotron_h(fields: Fields, widths: Widths, tp: int) -> Iterator[KvGroup]:
    """`hybrid_override_pattern`: M Mamba, * attention, - and E neither."""
    pattern = fields.word("hybrid_override_pattern")
    if pattern is None:
        found = fields.words("layers_block_type", "layer_types")
        if found is None:
            raise Misuse("config.json has none", field="hybrid_override_pattern")
        pattern = "".join(_NEMOTRON_WORDS.get(word, "?") for word in found[1])
    if set(pattern) - set("M*-E"):
        raise Misuse("need letters of M, *, - and E", field="hybrid_override_pattern")
    state = states.mamba2(
        inner=fields.number("mamba_num_heads") * fields.number("mamba_head_dim"),
        groups=fields.number("n_groups", "mamba_n_groups"),
        heads=fields.number("mamba_num_heads"), head=fields.number("mamba_head_dim"),
        state=fields.number("ssm_state_size"), kernel=fields.number("conv_kernel", "mamba_d_conv"),
        widths=widths,
        recurrent_bytes=widths.state(fields, "mamba_ssm_cache_dtype", "float32"), tp=tp,
    )  # fmt: skip
    kinds = [STATE if letter == "M" else FULL for letter in pattern if letter in "M*"]
    return by_kinds(fields, widths, tp, kinds, state=state)


def lfm2(fields: Fields, widths: Widths, tp: int) -> Iterator[KvGroup]:
    layers = layer_count(fields)
    kinds = listed_kinds(fields, layers)
    if kinds is None:
        full = set(fields.numbers("full_attn_idxs"))
        kinds = [FULL if n in full else STATE for n in range(layers)]
    width = fields.number("conv_dim", "hidden_size")
    state = states.short_conv(width, fields.number("conv_L_cache"), widths, tp)
    return by_kinds(fields, widths, tp, kinds, state=state)


def minimax(fields: Fields, widths: Widths, tp: int) -> Iterator[KvGroup]:
    """`attn_type_list`: 1 is softmax attention, 0 linear attention."""
    layers = layer_count(fields)
    kinds = listed_kinds(fields, layers)
    if kinds is None:
        marks = fields.numbers("attn_type_list")
        if len(marks) < layers:
            raise Misuse(f"need one for each of {layers} layers", field="attn_type_list")
        kinds = [FULL if mark else STATE for mark in marks[:layers]]
    heads, head = attention.query_heads(fields), attention.head_width(fields)
    state = states.lightning(fields, widths, tp, heads, head)
    return by_kinds(fields, widths, tp, kinds, state=state)


_GEMMA3: Final = {
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "sliding_window": 4096,
    "hidden_size": 2304, "num_hidden_layers": 26,
}  # fmt: skip
_LINEAR: Final = {
    "linear_conv_kernel_dim": 4, "linear_key_head_dim": 128, "linear_value_head_dim": 128,
    "linear_num_key_heads": 16, "linear_num_value_heads": 32,
}  # fmt: skip
_PLAIN: Final = (
    "apertus", "arcee", "baichuan", "bailing_moe", "bloom", "chatglm", "cohere", "deepseek",
    "dots1", "ernie4_5", "ernie4_5_moe", "exaone", "falcon", "gemma", "glm", "glm4", "glm4_moe",
    "glm4v_moe_text", "glm4v_text", "gpt2", "gpt_bigcode", "gpt_neox", "gptj", "granite",
    "granitemoe", "granitemoeshared", "internlm2", "internlm3", "llama", "minicpm", "minimax_m2",
    "ministral", "ministral3", "mistral", "mixtral", "nemotron", "olmo", "olmo2", "olmoe", "opt",
    "orion", "persimmon", "phi", "phi3", "phimoe", "seed_oss", "solar", "stablelm", "starcoder2",
    "xverse",
)  # fmt: skip
_QWEN: Final = (
    "qwen2", "qwen2_5_omni_text", "qwen2_5_vl_text", "qwen2_moe", "qwen2_vl_text", "qwen3",
    "qwen3_moe", "qwen3_omni_moe_text", "qwen3_vl_moe_text", "qwen3_vl_text",
)  # fmt: skip
_MLA: Final = (
    "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa", "kimi_k2",
)  # fmt: skip
FAMILIES: Final[Mapping[str, Family]] = {
    **{name: Family(plain) for name in _PLAIN},
    **{name: Family(qwen) for name in _QWEN},
    **{name: Family(mla) for name in _MLA},
    "bamba": Family(bamba, {"mamba_expand": 2}),
    "cohere2": Family(patterned(4, more_window=1)),
    "deepseek_v4": Family(deepseek_v4),
    "exaone4": Family(exaone4),
    "falcon_h1": Family(falcon_h1),
    "falcon_mamba": Family(mamba),
    "gemma2": Family(patterned(2), _GEMMA3),
    "gemma3_text": Family(patterned(6), _GEMMA3),
    "gemma3n_text": Family(
        gemma3n,
        {
            "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 256,
            "sliding_window": 512, "num_kv_shared_layers": 15, "num_hidden_layers": 35,
        },
    ),
    "gemma4_text": Family(
        gemma4,
        {
            "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
            "sliding_window": 512, "num_kv_shared_layers": 0, "num_hidden_layers": 30,
        },
    ),
    "gpt_oss": Family(gpt_oss, {"head_dim": 64}),
    "granitemoehybrid": Family(granite_hybrid, {"mamba_expand": 2}),
    "jamba": Family(jamba),
    "kimi_linear": Family(kimi_linear),
    "lfm2": Family(lfm2),
    "lfm2_moe": Family(lfm2),
    "llama4_text": Family(
        llama4,
        {
            "num_attention_heads": 40, "num_key_value_heads": 8, "head_dim": 128,
            "num_hidden_layers": 48, "attention_chunk_size": 8192,
        },
    ),
    "longcat_flash": Family(longcat),
    "mamba": Family(mamba),
    "mamba2": Family(mamba2),
    "mimo_v2_flash": Family(mimo_v2),
    "minimax": Family(minimax),
    "minimax_m1": Family(minimax),
    "minimax_text_01": Family(minimax),
    "nemotron_h": Family(nemotron_h),
    "olmo3": Family(patterned(4)),
    "olmo_hybrid": Family(gated_hybrid),
    "qwen3_5_text": Family(gated_hybrid, _LINEAR),
    "qwen3_5_moe_text": Family(gated_hybrid, _LINEAR),
    "qwen3_next": Family(gated_hybrid, _LINEAR),
    "smollm3": Family(smollm3),
    "zamba2": Family(zamba2),
}  # fmt: skip
# Language models by other names.
ALIASES: Final = {
    "gemma3": "gemma3_text", "gemma3n": "gemma3n_text", "gemma4": "gemma4_text",
    "llama4": "llama4_text", "mimo_v2": "mimo_v2_flash", "qwen2_5_vl": "qwen2_5_vl_text",
    "qwen2_vl": "qwen2_vl_text", "qwen3_5": "qwen3_5_text", "qwen3_5_moe": "qwen3_5_moe_text",
    "qwen3_vl": "qwen3_vl_text", "qwen3_vl_moe": "qwen3_vl_moe_text",
}  # fmt: skip
# Models around a language model whose KV is all there is.
WRAPPERS: Final = frozenset((
    *("aya_vision", "cohere2_vision", "deepseek_vl_v2", "gemma3", "gemma3n", "gemma4", "glm4v"),
    *("glm4v_moe", "idefics3", "internvl", "internvl_chat", "kimi_k25", "kimi_vl", "lfm2_vl"),
    *("llama4", "llava", "llava_next", "llava_onevision", "mistral3", "paligemma", "pixtral"),
    *("qwen2_5_omni", "qwen2_5_omni_thinker", "qwen2_5_vl", "qwen2_audio", "qwen2_vl"),
    *("qwen3_5", "qwen3_5_moe", "qwen3_omni_moe", "qwen3_omni_moe_thinker", "qwen3_vl"),
    *("qwen3_vl_moe", "smolvlm", "ultravox", "voxtral"),
))  # fmt: skip
