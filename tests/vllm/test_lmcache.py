"""vLLM, LMCache's own server and Neve behind it, all of them real, on a CPU."""

import random
from pathlib import Path

import pytest

from support.lmcache_process import LMCACHE_PYTHON, LmcacheServer, plugin
from support.servers import ControlPlane, wait_until
from support.vllm_engine import EngineProcess

pytestmark = [pytest.mark.vllm, pytest.mark.lmcache]

_random = random.Random(4)
PROMPT = [_random.randrange(256) for _ in range(280)]
ASKED = {"tokens": PROMPT, "max_tokens": 8}
CHUNK = 64
HIT_TOKENS = 256
NO_PREFIX_CACHE = {"enable_prefix_caching": False, "disable_hybrid_kv_cache_manager": True}


def connector(server: LmcacheServer) -> dict[str, object]:
    return {
        "kv_connector": "LMCacheMPConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {"lmcache.mp.port": server.port},
    }


def test_what_one_server_s_engine_computed_another_server_s_engine_loads(
    platform: ControlPlane, model: Path, tmp_path: Path
):
    """The second server's memory is empty: the tokens come from Neve."""
    if not LMCACHE_PYTHON.exists():
        pytest.skip(f"LMCache is not installed ({LMCACHE_PYTHON}): run `make lmcache`")
    patience = {"match_deadline_s": 30, "load_deadline_s": 30, "chunk_tokens": CHUNK}
    l2 = plugin(platform.url, platform.node_key, revision="tiny, seed 7", **patience)
    with (
        LmcacheServer(tmp_path / "first", l2, chunk_tokens=CHUNK) as first,
        LmcacheServer(tmp_path / "second", l2, chunk_tokens=CHUNK) as second,
    ):
        answers = []
        for n, transfer in enumerate((None, connector(first), connector(second))):
            # A process each: once numba is loaded, vLLM can't begin again in the same one.
            with EngineProcess(LMCACHE_PYTHON, model, tmp_path / f"engine-{n}.log") as engine:
                engine.start(None, transfer=transfer, engine=NO_PREFIX_CACHE)
                (answer,) = engine.generate(ASKED)
                answers.append(answer)
                if n == 1:
                    wait_until(lambda: stored(first) == HIT_TOKENS // CHUNK, what="stored")
                engine.ask("stop")
        plain, computed, loaded = answers
        assert computed["tokens"] == loaded["tokens"] == plain["tokens"]
        for step, wanted in zip(loaded["logprobs"], plain["logprobs"], strict=True):
            assert step == pytest.approx(wanted, abs=1e-5)
        assert (computed["cached_tokens"], loaded["cached_tokens"]) == (0, HIT_TOKENS)
        (counts,) = second.l2()["models"].values()
        assert counts["counters"]["hit_hot_tokens"] == HIT_TOKENS
        assert counts["counters"].get("put_blocks", 0) == 0


def stored(server: LmcacheServer) -> int:
    models = server.l2()["models"].values()
    return sum(each.get("counters", {}).get("put_blocks", 0) for each in models)
