"""KV cache groups as vLLM describes them."""

from types import SimpleNamespace

import pytest

from neve.engine.groups import alignment_tokens
from neve.engine.options import Options
from neve.formats.parts import PartKind
from neve.vllm.compat import describe_groups, groups_of, holds_latent
from neve.vllm.identity import why_unsupported


class FullAttentionSpec:
    block_size = 16
    non_causal = False


class SlidingWindowSpec:
    block_size = 16
    sliding_window = 512
    extra_retained_tokens = 0
    prefix_cacheable = True


class ChunkedLocalAttentionSpec:
    block_size = 16
    attention_chunk_size = 512


class CrossAttentionSpec:
    block_size = 16


class EncoderOnlyAttentionSpec:
    block_size = 16


class MambaSpec:
    block_size = 160
    mamba_cache_mode = "align"
    num_speculative_blocks = 0


class MLAAttentionSpec(FullAttentionSpec):
    pass


class OwnMlaSpec(MLAAttentionSpec):
    pass


class UniformTypeKVCacheSpecs:
    def __init__(self, *specs):
        self.kv_cache_specs = dict(enumerate(specs))


def config(*specs):
    groups = [
        SimpleNamespace(kv_cache_spec=spec, layer_names=[f"l{n}.attn", f"l{n + 1}.attn"])
        for n, spec in enumerate(specs)
    ]
    return SimpleNamespace(kv_cache_groups=groups)


def test_groups_are_named_in_words():
    assert describe_groups(config(FullAttentionSpec(), SlidingWindowSpec())) == (
        "0: FullAttentionSpec (2 layers from l0.attn); "
        "1: SlidingWindowSpec, window 512 (2 layers from l1.attn)"
    )


NO_CONFIG = object()


def refusal(*specs, longest=1024, supports_groups=True, layout="rank", parallel=None, **model):
    """Why an engine with these groups can't use Neve."""
    options = Options(endpoint="http://e", api_key="k", layout=layout)
    engine = SimpleNamespace(
        model_config=SimpleNamespace(max_model_len=longest, **model),
        cache_config=SimpleNamespace(enable_prefix_caching=True),
        scheduler_config=SimpleNamespace(enable_chunked_prefill=True),
        parallel_config=SimpleNamespace(**parallel or {}),
    )
    kv = None if specs == (NO_CONFIG,) else config(*specs)
    return why_unsupported(engine, kv, options, supports_groups=supports_groups)


def test_full_attention_comes_first_then_windows_each_with_its_number_in_the_engine():
    found = groups_of(config(SlidingWindowSpec(), FullAttentionSpec()), 1024)
    assert [(group.span, group.number, group.layers[0]) for group in found] == [
        (None, 1, "l1.attn"),
        (512, 0, "l0.attn"),
    ]
    assert refusal(SlidingWindowSpec(), FullAttentionSpec()) is None


def test_a_window_that_no_request_outgrows_is_full_attention():
    assert groups_of(config(SlidingWindowSpec()), 512)[0].kind is PartKind.FULL
    assert groups_of(config(SlidingWindowSpec()), 513)[0].span == 512
    assert refusal(SlidingWindowSpec(), longest=512, supports_groups=False) is None


def test_a_chunk_of_attention_that_no_request_outgrows_is_full_attention():
    chunked = config(FullAttentionSpec(), ChunkedLocalAttentionSpec())
    assert [group.kind for group in groups_of(chunked, 512)] == [PartKind.FULL, PartKind.FULL]
    assert [group.kind for group in groups_of(chunked, 513)] == [PartKind.FULL, PartKind.LOCAL]


def test_cross_attention_is_refused_in_words_whoever_tells_of_it():
    """Before 0.29 no hook comes early enough; then vLLM's own assertion ends the start."""
    for said in (
        refusal(FullAttentionSpec(), CrossAttentionSpec()),
        refusal(FullAttentionSpec(), is_encoder_decoder=True),
    ):
        assert "cross attention" in said
        assert "--disable" not in said


def test_kv_that_depends_on_later_tokens_is_refused():
    prefix_lm = FullAttentionSpec()
    prefix_lm.non_causal = True
    for spec in (prefix_lm, UniformTypeKVCacheSpecs(FullAttentionSpec(), prefix_lm)):
        assert "later tokens" in refusal(spec)
    assert "later tokens" in refusal(EncoderOnlyAttentionSpec())


def test_answers_pooled_of_all_tokens_are_refused_and_of_the_last_are_served():
    """Even if somebody switched prefix caching on, against vLLM's warning."""
    pooled = {"pooler_config": SimpleNamespace(seq_pooling_type="MEAN")}
    said = refusal(FullAttentionSpec(), **pooled, is_prefix_caching_supported=False)
    assert "pooled of all tokens" in said
    assert refusal(FullAttentionSpec(), **pooled, is_prefix_caching_supported=True) is None
    assert (
        refusal(FullAttentionSpec(), pooler_config=None, is_prefix_caching_supported=False) is None
    )


@pytest.mark.parametrize("kind", ["decode", "prefill"])
def test_context_parallel_is_refused_by_the_name_of_the_setting(kind):
    setting = f"{kind}_context_parallel_size"
    assert refusal(FullAttentionSpec(), parallel={setting: 2}).startswith(f"{setting} > 1")
    assert refusal(FullAttentionSpec(), parallel={setting: 1}) is None


def test_an_engine_that_says_nothing_of_its_kv_is_refused():
    assert "no description" in refusal(NO_CONFIG)


def test_a_description_that_can_not_be_read_is_refused_not_raised():
    class SlidingWindowSpec:  # of a later vLLM, with another name for its window
        block_size = 16

    assert "doesn't know (AttributeError" in refusal(SlidingWindowSpec())


def test_what_a_drafter_needs_kept_belongs_to_the_window():
    """The engine caches the blocks of a loaded window down to these tokens: they must be loaded."""
    spec = SlidingWindowSpec()
    spec.extra_retained_tokens = 2
    assert groups_of(config(spec), 1024)[0].span == 514


def test_a_drafter_beside_windows_is_refused_and_said_to_be_one():
    groups = config(FullAttentionSpec(), SlidingWindowSpec())
    groups.kv_cache_groups[0].is_eagle_group = True
    assert groups_of(groups, 1024) is None
    assert "0: FullAttentionSpec, of a drafter (2 layers from l0.attn)" in describe_groups(groups)


def test_windows_that_the_engine_does_not_take_from_a_store_are_refused():
    spec = SlidingWindowSpec()
    spec.prefix_cacheable = False
    assert "Neve knows" in refusal(FullAttentionSpec(), spec)


def test_groups_that_neve_does_not_know_are_refused_by_name_and_with_the_way_out():
    said = refusal(FullAttentionSpec(), RSWASpec())
    assert "1: RSWASpec (2 layers from l1.attn)" in said
    assert "--disable-hybrid-kv-cache-manager" in said
    assert "use 'rank'" in refusal(FullAttentionSpec(), SlidingWindowSpec(), layout="canonical")


def test_before_vllm_0_30_windows_are_refused_with_the_ways_out():
    said = refusal(SlidingWindowSpec(), supports_groups=False)
    assert "0: SlidingWindowSpec, window 512 (2 layers from l0.attn)" in said
    assert "--disable-sliding-window" in said


def test_only_mla_everywhere_is_the_same_on_every_rank():
    mla, full = MLAAttentionSpec(), FullAttentionSpec()
    assert holds_latent(config(mla))
    assert holds_latent(config(UniformTypeKVCacheSpecs(mla, OwnMlaSpec())))
    assert not holds_latent(config(full))
    assert not holds_latent(config(UniformTypeKVCacheSpecs(mla, full)))
    assert not holds_latent(config())


class RSWASpec(FullAttentionSpec):
    rswa_window = 512


def test_a_model_without_kv_is_refused_without_advice_that_does_not_help():
    assert "keeps no KV" in refusal()


def test_states_come_last_and_are_refused_where_vllm_does_not_offer_them():
    found = groups_of(config(MambaSpec(), FullAttentionSpec()), 1024)
    assert [group.kind for group in found] == [PartKind.FULL, PartKind.STATE]
    assert alignment_tokens(found) == 160
    for groups in ((MambaSpec(),), (FullAttentionSpec(), MambaSpec())):
        assert refusal(*groups) is None
        groups[-1].mamba_cache_mode = "none"
        said = refusal(*groups)
        assert "MambaSpec (2 layers" in said
        assert "--enable-prefix-caching" in said
        assert "--disable" not in said
        groups[-1].mamba_cache_mode = "align"
        groups[-1].num_speculative_blocks = 1
        assert "--speculative-config" in refusal(*groups)
