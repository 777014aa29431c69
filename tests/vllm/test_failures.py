"""Storage that stops, dies or crawls while an engine loads from it: the answers stay the same.

Valkey and S3 stand behind proxies, so that trouble begins after a chosen number of bytes.
"""

import random
import re
import time
from pathlib import Path

import pytest

from support.proxy import Proxy
from support.servers import ControlPlane, S3Server

pytestmark = pytest.mark.vllm

_random = random.Random(5)
PROMPT = [_random.randrange(256) for _ in range(900)]
ASKED = {"tokens": PROMPT, "max_tokens": 6, "params": {"neve": {}}}
BLOCK_BYTES = 64 * 2048  # tokens of a block, bytes of a token
BLOCKS = 900 // 64
DEADLINE_S = 1.5


@pytest.fixture(scope="module")
def behind(s3: S3Server, tmp_path_factory):
    """A platform whose nodes reach Valkey and S3 through proxies: (platform, hot, cold)."""
    platform = ControlPlane(tmp_path_factory.mktemp("behind"), s3)
    with Proxy(platform.hot.port) as hot, Proxy(s3.port) as cold:
        platform.settings = {
            "HOT_SEEDS": f"127.0.0.1:{hot.port}",
            "S3_ENDPOINT": f"http://127.0.0.1:{cold.port}",
        }
        with platform:
            yield platform, hot, cold


@pytest.fixture(scope="module")
def engine(behind, fresh_process):
    with fresh_process("failures") as process:
        yield process


@pytest.fixture(scope="module")
def expected(engine):
    engine.start(None)
    output = engine.generate(ASKED)[0]
    engine.ask("stop")
    return output


def options(platform: ControlPlane) -> dict[str, object]:
    return {
        "endpoint": platform.url,
        "api_key": platform.node_key,
        "load": "always",
        "canary": 0,
        "max_chunk_tokens": 64,
        "match_deadline_s": 1,
        "load_deadline_s": DEADLINE_S,
    }


@pytest.fixture
def running(behind, engine, expected):
    """An engine with closed breakers, and a store with all blocks of the prompt."""
    platform, hot, cold = behind
    engine.start(options(platform), engine={"enable_prefix_caching": False})
    until_reused(engine, BLOCKS * 64)
    yield engine
    hot.release()
    cold.release()
    engine.ask("stop")


def ask(engine, expected, *, aborted=0):
    """Asks; asserts that the answer is right, and that Neve was waited for once: a look-up, a load.

    How long each may take is in test_bound.py. Loads of `aborted` requests may end meanwhile.
    Returns the tokens that were reused.
    """
    before = engine.ask("counters")
    output = engine.generate(ASKED)[0]
    after = engine.ask("counters")
    assert output["tokens"] == expected["tokens"]
    # vLLM's usage counts what arrived, not what was promised.
    assert output["cached_tokens"] == output["params"]["neve"]["reused_tokens"]
    assert after["neve_match_seconds"] - before["neve_match_seconds"] <= 1
    assert after["neve_load_seconds"] - before["neve_load_seconds"] <= 1 + aborted
    return output["params"]["neve"]["reused_tokens"]


def until_reused(engine, tokens):
    """Waits until the prompt is saved and breakers closed: both happen in the background."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if engine.generate(ASKED)[0]["params"]["neve"]["reused_tokens"] == tokens:
            return
        time.sleep(0.2)
    raise AssertionError("Neve never came back")


def test_valkey_that_stops_in_the_middle_of_a_load(behind, running, expected):
    platform, hot, _ = behind
    hot.when_passed(3 * BLOCK_BYTES, platform.hot.freeze)
    assert ask(running, expected) < BLOCKS * 64
    assert hot.fired
    for _ in range(3):  # it is still stopped: no look-up, no load, no wait of a save
        assert ask(running, expected) == 0
    platform.hot.thaw()
    hot.release()
    until_reused(running, BLOCKS * 64)
    assert ask(running, expected) == BLOCKS * 64


def test_valkey_that_dies_in_the_middle_of_a_load(behind, running, expected):
    platform, hot, _ = behind
    hot.when_passed(3 * BLOCK_BYTES, platform.hot.kill)
    assert ask(running, expected) < BLOCKS * 64
    assert hot.fired
    assert ask(running, expected) == 0
    platform.hot.restart()
    platform.manage("provision")
    hot.release()
    until_reused(running, BLOCKS * 64)


def test_a_network_that_crawls_costs_the_deadline_and_changes_no_answer(behind, running, expected):
    _, hot, _ = behind
    hot.bytes_per_s = 200_000  # a block takes 0.66 s
    for _ in range(3):
        assert ask(running, expected) < BLOCKS * 64
    hot.release()
    until_reused(running, BLOCKS * 64)


def test_a_request_that_is_aborted_while_it_loads_gives_its_memory_back(behind, running, expected):
    """The engine has memory for one such prompt: the next must get what the aborted one held."""
    platform, hot, _ = behind
    running.ask("stop")
    tight = {"kv_cache_memory_bytes": 31 * 32 * 2048, "max_model_len": 928}
    running.start(
        options(platform) | {"load_deadline_s": 4},
        engine={"enable_prefix_caching": False} | tight,
    )
    until_reused(running, BLOCKS * 64)
    for _ in range(2):
        hot.bytes_per_s = 200_000
        assert running.ask("abort", request=ASKED) == {"waited": True}
        hot.release()
        assert ask(running, expected, aborted=1) in (0, BLOCKS * 64)
    assert running.ask("counters")["num_preemptions"] == 0
    until_reused(running, BLOCKS * 64)


def make_cold(platform):
    """All blocks only in S3."""
    platform.manage("flush_blocks")
    platform.hot.wipe()
    platform.manage("rebuild_index")


@pytest.mark.parametrize("trouble", ["freeze", "kill"])
def test_s3_that_goes_away_in_the_middle_of_a_load(behind, running, expected, s3, trouble):
    platform, _, cold = behind
    make_cold(platform)
    cold.when_passed(3 * BLOCK_BYTES, getattr(s3, trouble))
    try:
        assert ask(running, expected) < BLOCKS * 64
        assert cold.fired
        ask(running, expected)
    finally:
        s3.thaw() if trouble == "freeze" else s3.restart()
    cold.release()
    until_reused(running, BLOCKS * 64)


def test_with_measured_speeds_a_crawling_store_is_left_alone(behind, engine, expected):
    """`auto`: after loads that were slower than computing, found chunks are computed."""
    platform, hot, _ = behind
    measuring = options(platform) | {"load": "auto", "load_deadline_s": 2}
    engine.start(measuring, engine={"enable_prefix_caching": False})
    hot.bytes_per_s = 200_000
    fresh = [
        {"tokens": [n, *PROMPT[:700]], "max_tokens": 1, "params": {"neve": {}}} for n in range(6)
    ]
    for request in fresh:  # teaches how fast computing is
        engine.generate(request)
    deadline = time.monotonic() + 60
    while not engine.ask("counters").get("neve_decisions.recompute"):
        assert time.monotonic() < deadline
        assert ask(engine, expected) < BLOCKS * 64
    assert ask(engine, expected) == 0
    hot.release()
    engine.ask("stop")


def test_the_log_names_the_breaker(engine):
    """One line when it opens, however many requests meet it; it says why."""
    causes = re.findall(r"neve.hot.breaker_open detail=(.*)", Path(engine.log).read_text())
    assert 1 <= len(causes) <= 20
    assert all(causes)
