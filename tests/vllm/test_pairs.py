"""Models that share a producer's KV and models that nearly do, as an engine computes them."""

import random

import pytest

from support.pairs import READERS, UNTRAINED

pytestmark = pytest.mark.vllm

_random = random.Random(13)
PROMPT = {"tokens": [_random.randrange(256) for _ in range(200)], "max_tokens": 1}


def test_kv_is_equal_where_nothing_below_it_differs(fresh_process, model, pairs, icarus):
    answers, kv = {}, {}
    with fresh_process("pairs", PYTHONPATH=icarus) as process:
        for name in ("producer", "twin", "nudged", *READERS, UNTRAINED):
            folder = model if name == "producer" else pairs / name
            process.start(None, model=str(folder))
            answers[name] = process.generate(PROMPT)[0]["logprobs"]
            kv[name] = list(process.ask("kv").values())
            process.ask("stop")
    same = {name: [a == b for a, b in zip(kv["producer"], kv[name], strict=True)] for name in kv}
    assert same.pop("nudged") == [True, True, True, False]
    assert all(all(each) for each in same.values()), same
    assert answers[UNTRAINED] == answers["producer"]
    others = ("producer", "twin", *READERS)
    assert len({str(answers[name]) for name in others}) == len(others)
