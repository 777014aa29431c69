"""KV cache groups as vLLM describes them."""

from types import SimpleNamespace

from neve.vllm.compat import describe_groups, holds_latent, keeps_all
from neve.vllm.identity import why_unsupported


class FullAttentionSpec:
    pass


class SlidingWindowSpec:
    sliding_window = 512


class MambaSpec:
    pass


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


def test_several_groups_are_refused_by_name_and_with_the_way_out():
    said = why_unsupported(SimpleNamespace(), config(FullAttentionSpec(), SlidingWindowSpec()))
    assert "1: SlidingWindowSpec, window 512 (2 layers from l1.attn)" in said
    assert "--disable-hybrid-kv-cache-manager" in said


def test_only_mla_everywhere_is_the_same_on_every_rank():
    mla, full = MLAAttentionSpec(), FullAttentionSpec()
    assert holds_latent(config(mla))
    assert holds_latent(config(UniformTypeKVCacheSpecs(mla, OwnMlaSpec())))
    assert not holds_latent(config(full))
    assert not holds_latent(config(UniformTypeKVCacheSpecs(mla, full)))
    assert not holds_latent(config())


class RSWASpec(FullAttentionSpec):
    rswa_window = 512


def test_requests_keep_their_blocks_where_attention_is_known_to_need_them():
    full, mla = FullAttentionSpec(), MLAAttentionSpec()
    full.sliding_window = 512  # type: ignore[attr-defined]  # as vLLM has it where other layers need all
    assert keeps_all(config(full), 513)
    assert keeps_all(config(UniformTypeKVCacheSpecs(full, mla)), 513)
    for other in (SlidingWindowSpec(), RSWASpec()):
        assert not keeps_all(config(other), 513)
        assert not keeps_all(config(UniformTypeKVCacheSpecs(full, other)), 513)
    # A window that no request outgrows.
    assert keeps_all(config(SlidingWindowSpec()), 512)
    assert not keeps_all(config(RSWASpec()), 512)


def test_a_model_that_gives_blocks_back_is_refused_by_name_and_with_the_way_out():
    model = SimpleNamespace(max_model_len=1024)
    said = why_unsupported(SimpleNamespace(model_config=model), config(SlidingWindowSpec()))
    assert "0: SlidingWindowSpec, window 512 (2 layers from l0.attn)" in said
    assert "--disable-sliding-window" in said


def test_a_model_without_kv_or_with_a_state_is_refused_without_advice_that_does_not_help():
    assert "keeps no KV" in why_unsupported(SimpleNamespace(), config())
    for groups in ((MambaSpec(),), (FullAttentionSpec(), MambaSpec())):
        said = why_unsupported(SimpleNamespace(), config(*groups))
        assert "running state" in said
        assert "--disable" not in said
