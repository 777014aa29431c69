"""Models that share a producer's KV and models that nearly do, as an engine computes them."""

import random

import pytest

pytestmark = pytest.mark.vllm

_random = random.Random(13)
PROMPT = {"tokens": [_random.randrange(256) for _ in range(200)], "max_tokens": 1}


def test_kv_is_equal_where_nothing_below_it_differs(fresh_process, model, pairs):
    answers, kv = {}, {}
    with fresh_process("pairs") as process:
        for name, folder in (
            ("producer", model),
            ("twin", pairs / "twin"),
            ("nudged", pairs / "nudged"),
        ):
            process.start(None, model=str(folder))
            answers[name] = process.generate(PROMPT)[0]["tokens"]
            kv[name] = list(process.ask("kv").values())
            process.ask("stop")
    same = {name: [a == b for a, b in zip(kv["producer"], kv[name], strict=True)] for name in kv}
    assert same == {
        "producer": [True] * 4,
        "twin": [True] * 4,
        "nudged": [True, True, True, False],
    }
    assert answers["twin"] != answers["producer"]
