"""Models with windows in every layer, with states, or without KV."""

import random

import pytest

pytestmark = pytest.mark.vllm

_random = random.Random(41)
LONG = [_random.randrange(256) for _ in range(600)]
SHORT = {"tokens": LONG[:300], "max_tokens": 12}


def test_what_a_window_freed_is_not_stored_for_what_it_was(platform, fresh_process, models):
    """Of a cached prompt such an engine holds only the end. The rest of its block list is null
    blocks, which were once stored as if they were the prompt's KV."""
    options = {
        "endpoint": platform.url,
        "api_key": platform.node_key,
        "load": "always",
        "canary": 0,
        "max_chunk_tokens": 64,
        # One block a step: later requests, which find their prompt in the engine, save the others.
        "save_budget_bytes": 64 * 2048,
    }
    windowed = {"model": str(models / "window")}
    with fresh_process("windows") as process:
        process.start(None, **windowed)
        expected = process.generate(SHORT)[0]["tokens"]
        process.ask("stop")
        process.start(options, **windowed)
        for n in range(12):
            process.generate({"tokens": [*LONG, n], "max_tokens": 2})
        process.ask("stop")
        process.start(options, **windowed)
        assert process.generate(SHORT)[0]["tokens"] == expected
        process.ask("stop")

        # A window that no prompt outgrows is full attention, which has a block for every token.
        small = {"max_model_len": 128, "enable_prefix_caching": False}
        reused = []
        for disabled in (False, False, True, True):
            process.start(options, **windowed, engine=small | {"disable_sliding_window": disabled})
            asked = {"tokens": LONG[:100], "max_tokens": 2, "params": {"neve": {}}}
            reused.append(process.generate(asked)[0]["params"]["neve"]["reused_tokens"])
            process.ask("stop")
        assert reused[1] == reused[3] == 64


def test_engines_whose_layers_are_grouped_otherwise_share_nothing(platform, fresh_process, models):
    """With the hybrid KV cache manager off, one block holds all layers: other units."""
    options = {
        "endpoint": platform.url,
        "api_key": platform.node_key,
        "load": "always",
        "canary": 0,
        "max_chunk_tokens": 64,
        "match_deadline_s": 5,
        "load_deadline_s": 20,
        "revision": "grouped",
    }
    asked = SHORT | {"params": {"neve": {}}}
    answers, kinds = [], []
    with fresh_process("grouped") as process:
        for off in (False, True, False):
            engine = {"disable_hybrid_kv_cache_manager": off, "enable_prefix_caching": False}
            process.start(options, model=str(models / "gptoss"), engine=engine)
            kinds.append([each["kind"] for each in process.ask("describe")["groups"]])
            answers.append(process.generate(asked)[0])
            process.ask("store_all")
            process.ask("stop")
    hybrid = ["FullAttentionSpec", "SlidingWindowSpec"]
    assert [sorted(each) for each in kinds] == [hybrid, ["FullAttentionSpec"], hybrid]
    assert [each["params"]["neve"]["reused_tokens"] for each in answers] == [0, 0, 256]
    assert [each["tokens"] for each in answers] == [answers[0]["tokens"]] * 3


def test_models_without_kv_are_served_and_said_to_have_none(platform, fresh_process, models):
    neve = {"endpoint": platform.url, "api_key": platform.node_key}
    with fresh_process("without-kv") as process:
        process.start(
            neve, model=str(models / "bert"), engine={"runner": "pooling", "max_model_len": 512}
        )
        assert len(process.ask("embed", tokens=LONG[:300])["vector"]) == 64
        process.ask("stop")
        for shape in ("mamba", "qwen3next"):  # whose states vLLM offers with its prefix cache on
            off = {"dtype": "bfloat16", "enable_prefix_caching": False}
            process.start(neve, model=str(models / shape), engine=off)
            assert len(process.generate(SHORT)[0]["tokens"]) == 12
            process.ask("stop")
        said = process.log.read_text()
    assert "the model keeps no KV" in said
    assert "layers keep a running state in place of KV" in said
    assert "start it with --enable-prefix-caching" in said
    assert "--disable" not in said
