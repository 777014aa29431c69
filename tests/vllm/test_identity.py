"""What decides whether two engines may share KV, over stand-ins for vLLM's configuration."""

from types import SimpleNamespace

import pytest

from neve.vllm.identity import identify
from neve.vllm.options import Options
from neve.vllm.sharding import CANONICAL


class HfConfig:
    def __init__(self, **settings):
        self._settings = {"hidden_size": 64, "rope": {"theta": 1e4, "factors": [1]}} | settings

    def to_dict(self):
        return self._settings


def config(**changes):
    known = {
        "model": "org/name", "revision": None, "dtype": "torch.bfloat16", "seed": 0,
        "quantization": None, "hf": HfConfig(), "media": None, "cache_dtype": "auto",
        "block_size": 32, "tp": 2, "pp": 1, "load_format": "auto", "speculative": None,
    }  # fmt: skip
    assert changes.keys() <= known.keys()
    told = SimpleNamespace(**known | changes)
    media = None if told.media is None else SimpleNamespace(mm_processor_kwargs=told.media)
    return SimpleNamespace(
        model_config=SimpleNamespace(
            model=told.model,
            revision=told.revision,
            dtype=told.dtype,
            seed=told.seed,
            quantization=told.quantization,
            hf_config=told.hf,
            multimodal_config=media,
        ),
        load_config=SimpleNamespace(load_format=told.load_format),
        cache_config=SimpleNamespace(cache_dtype=told.cache_dtype, block_size=told.block_size),
        parallel_config=SimpleNamespace(
            tensor_parallel_size=told.tp, pipeline_parallel_size=told.pp
        ),
        speculative_config=told.speculative,
    )


def fingerprint(*, tp_rank=0, pp_rank=0, layout="4 layers", extra=(), **changes):
    tensors = SimpleNamespace(layout=layout, dtypes="torch.bfloat16", bytes_per_token=1024)
    options = Options(endpoint="http://e", api_key="k", **dict(extra))
    made = identify(config(**changes), tensors, options, tp_rank=tp_rank, pp_rank=pp_rank)
    return made.fingerprint(tenant_id=1, chunk_tokens=64)


def speculator(method="eagle", model="draft", **settings):
    draft = SimpleNamespace(hf_config=HfConfig(**settings))
    return SimpleNamespace(method=method, model=model, draft_model_config=draft)


OTHERS = [
    {"model": "org/other"}, {"revision": "v2"}, {"dtype": "torch.float16"},
    {"quantization": "fp8"}, {"hf": HfConfig(hidden_size=65)},
    {"hf": HfConfig(rope={"theta": 1e4, "factors": [2]})}, {"hf": HfConfig(_commit="x")},
    {"media": {"max_pixels": 9}}, {"cache_dtype": "fp8"}, {"block_size": 64}, {"tp": 4},
    {"tp_rank": 1}, {"pp": 2}, {"pp": 2, "pp_rank": 1}, {"layout": "8 layers"},
    {"load_format": "dummy"}, {"load_format": "dummy", "seed": 1}, {"extra": {"revision": "mine"}},
    {"speculative": speculator()}, {"speculative": speculator(model="other")},
    {"speculative": speculator(hidden_size=65)},
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
    ],
)
def test_where_a_model_came_from_and_how_it_samples_do_not_count(same):
    assert fingerprint(**same) == fingerprint()


def test_in_the_canonical_layout_tp_sizes_and_ranks_do_not_count():
    extra = {"layout": CANONICAL}
    found = {fingerprint(tp=tp, tp_rank=rank, extra=extra) for tp, rank in ((1, 0), (2, 0), (2, 1))}
    assert len(found) == 1
    assert fingerprint(tp=2, pp=2, pp_rank=1, extra=extra) not in found
