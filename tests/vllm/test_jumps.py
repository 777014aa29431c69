"""`load: both` in a real engine: it computes the front while the rear comes, and jumps."""

import random

import pytest

pytestmark = pytest.mark.vllm

_random = random.Random(77)
PROMPT = [_random.randrange(256) for _ in range(900)]
REAR_END = 899 // 64 * 64
BESIDE = [[_random.randrange(256) for _ in range(n)] for n in (60, 50)]
ENGINE = {"max_num_batched_tokens": 128, "enable_chunked_prefill": True}


def asked(tokens, max_tokens=6):
    return {"tokens": tokens, "max_tokens": max_tokens, "params": {"neve": {}}}


# What is asked for at once; the first is stored.
ALONE = [asked(PROMPT)]
CROWD = [asked(PROMPT), *(asked(tokens, 30) for tokens in BESIDE)]
# Its own tail, so that it goes on from the rear's end with tokens that were never stored.
TAILED = [asked(PROMPT[:850] + BESIDE[0][:45])]


def start(process, platform, revision):
    """Computes and stores what is asked for later, so that speeds are known, too."""
    options = {
        "endpoint": platform.url,
        "api_key": platform.node_key,
        "revision": revision,  # a space of its own
        "max_chunk_tokens": 64,
        "match_deadline_s": 5,
        "load_deadline_s": 20,
        "load": "both",
        "canary": 0,
    }
    process.start(options, engine=ENGINE)
    process.generate(*ALONE)
    process.ask("store_all")


@pytest.fixture(scope="module")
def engine(platform, fresh_process):
    with fresh_process("jumps") as process:
        process.start(None, engine=ENGINE)
        process.expected = [process.generate(*each) for each in (ALONE, CROWD, TAILED)]
        process.ask("stop")
        start(process, platform, "jumps")
        yield process


@pytest.mark.parametrize("waves", [(1, 2), (32, 8)], ids=["slowly", "at once"])
@pytest.mark.parametrize("number", range(3), ids=["alone", "beside others", "with another tail"])
def test_a_request_that_jumps_gets_the_same_answer(engine, number, waves):
    assert_jumps(engine, number, waves, engine.expected[number])


def test_a_request_jumps_in_an_engine_that_schedules_ahead(platform, engine, fresh_process):
    """Async scheduling: a step is planned before the one before it is over."""
    with fresh_process("jumps-ahead") as process:
        process.ask("force_async")
        start(process, platform, "jumps ahead")
        for waves in ((1, 2), (32, 8)):
            for number, expected in enumerate(engine.expected):
                assert_jumps(process, number, waves, expected)
        process.ask("stop")


def assert_jumps(engine, number, waves, expected):
    engine.ask("jump", waves=waves[0], chunks=waves[1], waits=True)
    engine.ask("forget_prefixes")
    before = engine.ask("counters")
    outputs = engine.generate(*(ALONE, CROWD, TAILED)[number])
    after = engine.ask("counters")
    assert [each["tokens"] for each in outputs] == [each["tokens"] for each in expected]
    assert outputs[0]["logprobs"] == expected[0]["logprobs"]

    def more(name):
        return after.get(name, 0) - before.get(name, 0)

    assert more("neve_decisions.both") == 1
    reused = outputs[0]["params"]["neve"]["reused_tokens"]
    assert 0 < more("neve_hit_tokens.hot") == reused < REAR_END
    assert outputs[0]["cached_tokens"] == reused  # vLLM counts the rest as computed


def test_blocks_that_a_jump_filled_serve_later_requests(engine):
    engine.ask("jump", waves=1, chunks=2, waits=True)
    engine.ask("forget_prefixes")
    engine.generate(*ALONE)
    outputs = engine.generate(*TAILED)
    assert outputs[0]["tokens"] == engine.expected[2][0]["tokens"]
    assert outputs[0]["params"]["neve"]["reused_tokens"] == 0
    assert outputs[0]["cached_tokens"] >= 800


def test_a_store_that_dies_does_not_stop_the_computing(platform, engine):
    engine.ask("jump", waves=1, chunks=2, waits=True)
    engine.ask("forget_prefixes")
    platform.hot.freeze()
    try:
        # The look-up finds nothing in time; and if it had, no rear would come.
        outputs = engine.generate(*ALONE)
    finally:
        platform.hot.thaw()
    assert outputs[0]["tokens"] == engine.expected[0][0]["tokens"]
