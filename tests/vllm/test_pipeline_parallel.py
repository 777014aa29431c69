"""One model in two stages: each has a space of its own, and a chunk is found when both have it."""

import random

import pytest

from support.servers import wait_until

pytestmark = pytest.mark.vllm

_random = random.Random(21)
PROMPT = [_random.randrange(256) for _ in range(280)]
ASKED = {"tokens": PROMPT, "max_tokens": 12, "params": {"neve": {}}}
# vLLM's CPU worker makes a stage's buffers only where it compiles.
COMPILED = {"TORCHDYNAMO_DISABLE": "0"}
STAGES = {
    "pipeline_parallel_size": 2,
    "distributed_executor_backend": "mp",
    "enforce_eager": False,
    "enable_prefix_caching": False,
}


def block_keys(platform):
    with platform.hot.client() as client:
        return {key for key in client.scan_iter(count=1000) if b":b:" in key}


def test_both_stages_save_and_load_their_layers(platform, fresh_process):
    before = block_keys(platform)
    options = {
        "endpoint": platform.url,
        "api_key": platform.node_key,
        "load": "always",
        "canary": 0,
        "revision": "in stages",
        "max_chunk_tokens": 64,
        "match_deadline_s": 5,
        "load_deadline_s": 20,
    }
    with fresh_process("whole") as process:
        process.start(None)
        expected = process.generate(ASKED)[0]["tokens"]
        process.ask("stop")
    with fresh_process("stages", **COMPILED) as process:
        process.start(options, engine=STAGES)
        first = process.generate(ASKED)[0]
        assert (first["tokens"], first["params"]["neve"]["reused_tokens"]) == (expected, 0)
        wait_until(lambda: len(block_keys(platform) - before) == 8, what="4 chunks, twice")
        again = process.generate(ASKED)[0]
        assert (again["tokens"], again["params"]["neve"]["reused_tokens"]) == (expected, 256)
        # One stage's part of a chunk is gone: the other stage's part is not used either.
        with platform.hot.client() as client:
            client.delete(min(block_keys(platform) - before))
        lost = process.generate(ASKED)[0]
        assert lost["tokens"] == expected
        assert lost["params"]["neve"]["reused_tokens"] < 256
        process.ask("stop")
