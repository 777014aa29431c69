"""Engines that look alike but compute other values: none answers from another's KV."""

import random
import shutil
import time

import pytest

pytestmark = pytest.mark.vllm

_random = random.Random(43)
PROMPT = [_random.randrange(256) for _ in range(700)]
CHUNK = 64
WHOLE = 640  # tokens of the prompt's whole blocks


@pytest.fixture(scope="module")
def process(fresh_process):
    with fresh_process("wrong-tokens") as process:
        yield process


@pytest.fixture
def started(platform, process):
    """Starts an engine; without Neve if `neve` is None."""

    def start(model, neve=(), **engine):
        if neve is not None:
            neve = {
                "endpoint": platform.url,
                "api_key": platform.node_key,
                "load": "always",
                "max_chunk_tokens": CHUNK,
                "match_deadline_s": 5,
                "load_deadline_s": 20,
                "canary": 0,
            } | dict(neve)
        options = {
            "kv_cache_memory_bytes": 32 << 20,
            "max_model_len": 2048,
            "enable_prefix_caching": False,
        }
        process.start(neve, model=str(model), engine=options | engine)

    yield start
    process.ask("stop")


def answer(process, tokens=PROMPT, **more):
    """Tokens, and how many of the prompt's were reused."""
    asked = {"tokens": tokens, "max_tokens": 8, "params": {"neve": {}}} | more
    said = process.generate(asked)[0]
    params = said["params"]
    return said["tokens"], params["neve"]["reused_tokens"] if params else 0


def until_reused(process, **more):
    """What is computed is stored behind the step."""
    deadline = time.monotonic() + 60
    while (found := answer(process, **more))[1] != WHOLE:
        assert time.monotonic() < deadline
    return found[0]


def test_longrope_by_the_longest_prompt_that_an_engine_takes(process, started, models):
    """vLLM takes the short or the long factors by `--max-model-len`: no list of flags says so."""
    model = models / "longrope"
    expected = {}
    for longest in (1024, 2048):
        started(model, None, max_model_len=longest)
        expected[longest] = answer(process)[0]
        process.ask("stop")
    assert expected[1024] != expected[2048]
    for longest in (1024, 2048):
        started(model, max_model_len=longest)
        assert answer(process) == (expected[longest], 0)
        until_reused(process)
        process.ask("stop")
    # Harmless settings still share KV.
    started(model, max_model_len=1536)
    assert answer(process) == (expected[2048], WHOLE)


def test_another_implementation_of_the_same_checkpoint(process, started, models):
    for implementation in ("vllm", "transformers"):
        started(models / "llama", {"revision": "impl"}, model_impl=implementation)
        assert answer(process)[1] == 0
        until_reused(process)
        process.ask("stop")
    # Adapters may be used, and are not: the same KV.
    started(models / "llama", {"revision": "impl"}, enable_lora=True, max_lora_rank=8)
    assert answer(process)[1] == WHOLE


def test_an_adapter_trained_anew_at_the_same_place(process, started, models, tmp_path):
    """A restarted engine reads the new files; a running one keeps the files that it read."""
    place = tmp_path / "adapter"
    asked = {"lora": ["prod", 1, str(place)]}
    adapted = {"enable_lora": True, "max_lora_rank": 8}
    expected = {}
    for name in ("lora-a", "lora-b"):
        train(place, models / name)
        started(models / "llama", None, **adapted)
        expected[name] = answer(process, **asked)[0]
        process.ask("stop")
    assert expected["lora-a"] != expected["lora-b"]

    train(place, models / "lora-a")
    started(models / "llama", **adapted)
    assert until_reused(process, **asked) == expected["lora-a"]
    train(place, models / "lora-b")
    assert answer(process, **asked) == (expected["lora-a"], 0)
    process.ask("stop")
    started(models / "llama", **adapted)
    assert answer(process, **asked) == (expected["lora-b"], 0)
    # Wherever it lies and whatever it is called.
    elsewhere = {"lora": ["other", 2, str(models / "lora-a")]}
    assert answer(process, **elsewhere) == (expected["lora-a"], WHOLE)


def train(place, like):
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(like, place)


def test_after_a_pause_or_sleep_kv_is_shared_if_the_weights_are_the_same(process, started, models):
    started(models / "llama", {"revision": "sleep"})
    expected = until_reused(process)
    process.ask("pause")
    assert answer(process) == (expected, WHOLE)
    process.ask("change_weights")
    process.ask("pause")
    changed, reused = answer(process)
    assert changed != expected
    assert reused == 0
    assert until_reused(process) == changed
    process.ask("change_weights")
    process.ask("sleep")
    assert answer(process) == (expected, WHOLE)
    process.ask("change_weights")
    process.ask("sleep")
    assert answer(process) == (changed, WHOLE)


def test_kv_that_an_engine_would_compute_otherwise_is_found_out(process, started, models, platform):
    """Under one identity, as far as settings tell: the first found prefix is computed as well."""
    careful = {"revision": "canary", "canary": 3, "node": "gpu-11"}
    started(models / "llama", careful)
    expected = until_reused(process)
    process.ask("stop")

    # The same engine anew: computes once, then loads two of three.
    started(models / "llama", careful)
    reused = []
    until(lambda: reused.append(answer(process)[1]) or reused[-1])
    assert reused[0] == 0
    reused += [answer(process)[1] for _ in range(6)]
    assert sorted(reused[-6:]) == [0, 0, WHOLE, WHOLE, WHOLE, WHOLE]
    until(lambda: process.ask("counters")["neve_compared_blocks.same"] >= 4)
    assert process.ask("counters")["neve_alone"] == 0
    process.ask("stop")

    # Other weights under the same name.
    started(models / "llama", careful)
    process.ask("change_weights")
    changed = answer(process)[0]
    assert changed != expected
    until(lambda: answer(process) and process.ask("counters")["neve_alone"])
    other = [*PROMPT[1:], 1]
    for tokens in (PROMPT, other, other):
        assert answer(process, tokens)[1] == 0
    counters = process.ask("counters")
    assert counters["neve_compared_blocks.other"] >= 1
    assert counters["neve_written_bytes"] == 0
    said = process.log.read_text()
    assert "neve.canary.differs" in said
    assert "layer=model.layers.0.self_attn.attn" in said
    assert "weights: revision" in said
    until(lambda: int(platform.manage("shell", "-v", "0", "-c", DIFFERING)) > 0)


DIFFERING = """
from catalog.models import NodeSession
found = NodeSession.unscoped.filter(node="gpu-11", ended_at=None)
print(sum(session.totals.get("differing_blocks", 0) for session in found))
"""


def until(holds):
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
