"""What decides whether two engines may share KV, over stand-ins for vLLM's configuration."""

from dataclasses import field, make_dataclass
from types import SimpleNamespace

import pytest

from neve.engine.groups import KvGroup
from neve.engine.options import Options
from neve.engine.sharding import CANONICAL
from neve.errors import Misuse
from neve.vllm.identity import identify


class HfConfig:
    def __init__(self, *, commit="c0ffee", **settings):
        self._commit_hash = commit
        self._settings = {"hidden_size": 64, "rope": {"theta": 1e4, "factors": [1]}} | settings

    def to_dict(self):
        return self._settings


def config(**changes):
    known = {
        "model": "org/name", "revision": None, "dtype": "torch.bfloat16", "seed": 0,
        "quantization": None, "hf": HfConfig(), "media": None, "cache_dtype": "auto",
        "block_size": 32, "tp": 2, "pp": 1, "load_format": "auto", "speculative": None,
        "model_weights": "", "model_impl": "auto", "quantization_config": None, "hf_token": None,
        "invented": 0,
    }  # fmt: skip
    assert changes.keys() <= known.keys()
    values = SimpleNamespace(**known | changes)
    media = None
    if values.media is not None:
        media = a_config("MultiModalConfig", mm_processor_kwargs=(values.media, {}))
    return a_config(
        "VllmConfig",
        model_config=a_config(
            "ModelConfig",
            model=values.model,
            model_weights=values.model_weights,
            revision=values.revision,
            dtype=values.dtype,
            seed=values.seed,
            quantization=(values.quantization, None),
            quantization_config=(values.quantization_config, None),
            model_impl=values.model_impl,
            hf_token=values.hf_token,
            hf_config=values.hf,
            multimodal_config=media,
            invented=(values.invented, 0),
        ),
        load_config=a_config("LoadConfig", load_format=values.load_format),
        cache_config=a_config(
            "CacheConfig",
            cache_dtype=values.cache_dtype,
            block_size=values.block_size,
        ),
        parallel_config=a_config(
            "ParallelConfig",
            tensor_parallel_size=values.tp,
            pipeline_parallel_size=values.pp,
        ),
        speculative_config=values.speculative,
    )


def a_config(name, **values):
    """A dataclass as vLLM's; a pair is a value and its default."""
    fields = [
        (key, object, field(default=value[1]) if isinstance(value, tuple) else field(default=None))
        for key, value in values.items()
        if not isinstance(value, tuple) or value[1].__hash__ is not None
    ]
    fields += [
        (key, object, field(default_factory=type(value[1])))
        for key, value in values.items()
        if isinstance(value, tuple) and value[1].__hash__ is None
    ]
    plain = {k: v[0] if isinstance(v, tuple) else v for k, v in values.items()}
    return make_dataclass(name, fields)(**plain)


def identity(*, tp_rank=0, pp_rank=0, layout="4 layers", extra=(), built=("llama",), **changes):
    tensors = SimpleNamespace(
        layout=layout, dtypes="torch.bfloat16", bytes_per_token=1024, codec="none"
    )
    options = Options(endpoint="http://e", api_key="k", **dict(extra))
    engine = config(**changes)
    return identify(
        engine,
        [tensors],
        [KvGroup((), None, engine.cache_config.block_size)],
        options,
        BuiltAs(built),
        tp_rank=tp_rank,
        pp_rank=pp_rank,
    )


class BuiltAs:
    """What vLLM made of the configuration."""

    def __init__(self, described):
        self.describe = lambda: list(described)


def fingerprint(**changes):
    return identity(**changes).fingerprint(tenant_id=1, chunk_tokens=64)


def speculator(method="eagle", model="draft", **settings):
    draft = a_config(
        "ModelConfig", model=model, model_weights="", revision=None, hf_config=HfConfig(**settings)
    )
    return a_config("SpeculativeConfig", method=method, model=model, draft_model_config=draft)


OTHERS = [
    {"model": "org/other"}, {"hf": HfConfig(commit="decaf")}, {"dtype": "torch.float16"},
    {"quantization": "fp8"}, {"hf": HfConfig(hidden_size=65)},
    {"hf": HfConfig(rope={"theta": 1e4, "factors": [2]})}, {"hf": HfConfig(_commit="x")},
    {"media": {"max_pixels": 9}}, {"cache_dtype": "fp8"}, {"block_size": 64}, {"tp": 4},
    {"tp_rank": 1}, {"pp": 2}, {"pp": 2, "pp_rank": 1}, {"layout": "8 layers"},
    {"load_format": "dummy"}, {"load_format": "dummy", "seed": 1}, {"extra": {"revision": "mine"}},
    {"speculative": speculator()}, {"speculative": speculator(commit="decaf")},
    {"speculative": speculator(hidden_size=65)}, {"quantization_config": {"linear": "fp8"}},
    {"built": ("transformers",)}, {"invented": 1},
]  # fmt: skip


def test_whatever_changes_what_the_bytes_mean_is_another_space():
    found = [fingerprint(), *(fingerprint(**other) for other in OTHERS)]
    assert len(set(found)) == len(OTHERS) + 1


@pytest.mark.parametrize(
    "same",
    [
        {"hf": HfConfig(transformers_version="9", _name_or_path="/elsewhere")},
        {"hf": HfConfig(rope={"theta": 1e4, "factors": [1], "_name_or_path": "/there"})},
        {"media": {}},
        {"seed": 1},
        {"revision": "v2"},  # the commit counts
        {"model_impl": "vllm"},  # as built
        {"hf_token": "secret"},
        {"speculative": speculator(method="ngram")},
    ],
)
def test_where_a_model_came_from_and_how_it_samples_do_not_count(same):
    assert fingerprint(**same) == fingerprint()


def test_in_the_canonical_layout_tp_sizes_and_ranks_do_not_count():
    extra = {"layout": CANONICAL}
    found = {fingerprint(tp=tp, tp_rank=rank, extra=extra) for tp, rank in ((1, 0), (2, 0), (2, 1))}
    assert len(found) == 1
    assert fingerprint(tp=2, pp=2, pp_rank=1, extra=extra) not in found


@pytest.mark.parametrize(
    ("unseen", "why"),
    [
        ({"hf": HfConfig(commit=None)}, "no commit"),
        ({"hf": HfConfig(commit=None), "revision": "main"}, "no commit"),
        ({"model_weights": "s3://bucket/model"}, "s3://bucket/model"),
        ({"load_format": "tensorizer"}, "--load-format tensorizer"),
        ({"speculative": speculator(commit=None)}, "of draft no commit"),
    ],
)
def test_weights_that_cannot_be_told_must_be_named(unseen, why):
    with pytest.raises(Misuse, match=why) as refused:
        identity(**unseen)
    assert refused.value.field == "revision"
    assert identity(**unseen, extra={"revision": "mine"}).revision.startswith("set:mine ")


def test_a_folder_without_weight_files_must_be_named(tmp_path):
    (tmp_path / "original").mkdir()
    (tmp_path / "original" / "model.safetensors").write_bytes(b"not at the top")
    with pytest.raises(Misuse, match="no weight file"):
        identity(model=str(tmp_path))
    (tmp_path / "model.bin").write_bytes(b"weights")
    assert identity(model=str(tmp_path)).revision.startswith("files:")


def test_a_named_commit_tells_the_weights():
    named = identity(hf=HfConfig(commit=None), revision="0123456789" * 4)
    assert named.revision.startswith("commit:0123456789")
