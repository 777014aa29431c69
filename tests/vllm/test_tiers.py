"""Neve beneath vLLM's own DRAM tier: beside it in a `MultiConnector`, and under it as `NeveTier`.

vLLM refuses its DRAM tier on CPU; host_offloading.py stands in for the copies, and for them only.
"""

import random
from pathlib import Path

import pytest

from neve.formats.block import HEADER_BYTES, decode_header
from support.servers import ControlPlane

pytestmark = pytest.mark.vllm

HERE = Path(__file__).parent
_random = random.Random(4)
PROMPT = [_random.randrange(256) for _ in range(280)]
ASKED = {"tokens": PROMPT, "max_tokens": 8}
CHUNK = 64
HIT_TOKENS = 256
# A chunk's KV: 4 layers of K and V, 2 heads of 32 float32.
CHUNK_BYTES = CHUNK * 4 * 2 * 2 * 32 * 4
NO_PREFIX_CACHE = {"enable_prefix_caching": False}


def options(platform: ControlPlane) -> dict[str, object]:
    return {
        "endpoint": platform.url,
        "api_key": platform.node_key,
        "match_deadline_s": 5,
        "load_deadline_s": 20,
    }


def dram(**more: object) -> dict[str, object]:
    """vLLM's offloading with a DRAM tier of 8 MiB."""
    extra = {
        "spec_name": "HostTieringSpec",
        "spec_module_path": "host_offloading",
        "cpu_bytes_to_use": 8 << 20,
        "block_size": CHUNK,
    }
    return {
        "kv_connector": "OffloadingConnector",
        "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": extra | more,
    }


def beside(platform: ControlPlane) -> dict[str, object]:
    neve = {
        "kv_connector": "NeveConnector",
        "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": options(platform)
        | {"max_chunk_tokens": CHUNK, "load": "always", "canary": 0},
    }
    return {
        "kv_connector": "MultiConnector",
        "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {"connectors": [dram(), neve]},
    }


def under(platform: ControlPlane) -> dict[str, object]:
    tier = {"type": "neve", "revision": "tiny, seed 7"} | options(platform)
    return dram(secondary_tiers=[tier])


def reads(platform: ControlPlane) -> int:
    """GETs that Valkey answered."""
    with platform.hot.client() as client:
        return int(client.info("commandstats").get("cmdstat_get", {"calls": 0})["calls"])


def same(outputs, reference):
    for out, expected in zip(outputs, reference, strict=True):
        assert out["tokens"] == expected["tokens"]
        for step, wanted in zip(out["logprobs"], expected["logprobs"], strict=True):
            assert step == pytest.approx(wanted, abs=1e-5)


@pytest.fixture(scope="module")
def process_of(fresh_process):
    return lambda name: fresh_process(name, PYTHONPATH=str(HERE))


@pytest.fixture(scope="module")
def first(platform, process_of):
    """One process computes, with Neve beside the DRAM tier and with Neve under it."""
    with process_of("tiers-first") as process:
        process.start(None, engine=NO_PREFIX_CACHE)
        reference = process.generate(ASKED)
        process.ask("stop")
        for transfer in (beside(platform), under(platform)):
            process.start(None, transfer=transfer, engine=NO_PREFIX_CACHE)
            same(process.generate(ASKED), reference)
            process.ask("stop")
    return reference


@pytest.fixture(scope="module")
def second(first, process_of):
    with process_of("tiers-second") as process:
        yield process


@pytest.mark.parametrize(
    ("place", "counter"),
    [(beside, "neve_read_bytes.hot"), (under, "kv_offload_tiering_read_bytes.1:neve")],
)
def test_another_process_reads_once_and_then_hits_its_dram(platform, second, first, place, counter):
    before = reads(platform)
    second.start(None, transfer=place(platform), engine=NO_PREFIX_CACHE)
    outputs = second.generate(ASKED)
    counters = second.ask("counters")
    same(outputs, first)
    assert outputs[0]["cached_tokens"] == HIT_TOKENS
    assert reads(platform) == before + HIT_TOKENS // CHUNK
    headers_bytes = counters[counter] - HIT_TOKENS // CHUNK * CHUNK_BYTES
    assert headers_bytes in (0, HIT_TOKENS // CHUNK * 64)  # vLLM doesn't count them

    again = second.generate(ASKED)
    more = second.ask("counters")
    second.ask("stop")
    same(again, first)
    assert again[0]["cached_tokens"] == HIT_TOKENS
    assert more["external_prefix_cache_hits"] == 2 * HIT_TOKENS
    assert more[counter] == counters[counter]
    assert reads(platform) == before + HIT_TOKENS // CHUNK


def block_keys(platform: ControlPlane) -> list[bytes]:
    with platform.hot.client() as client:
        return [key for key in client.scan_iter(count=1000) if b":b:" in key]


def stored_rows(platform: ControlPlane) -> list[bytes]:
    """Keys of the DRAM tier's chunks, in the order of their chain."""
    with platform.hot.client() as client:
        keys = block_keys(platform)
        headers = {key: decode_header(client.getrange(key, 0, HEADER_BYTES - 1)) for key in keys}
    # NeveConnector's chunks are in another space, made before.
    spaces = {key: int(key.split(b":b:", 1)[1].split(b":", 1)[0]) for key in keys}
    newest = max(spaces.values())
    rows = {header.parent: key for key, header in headers.items() if spaces[key] == newest}
    ids = {headers[key].id for key in rows.values()}
    (parent,) = set(rows) - ids
    chain = []
    while parent in rows:
        chain.append(rows[parent])
        parent = headers[chain[-1]].id
    return chain


@pytest.mark.parametrize("place", ["top", "ours"])
def test_beside_another_connector_recompute_is_demanded_at_the_top_and_of_ours(
    platform, second, place
):
    """vLLM follows the outermost policy, and would answer a failed load with an empty text."""
    config = beside(platform)
    part = config if place == "top" else config["kv_connector_extra_config"]["connectors"][1]
    del part["kv_load_failure_policy"]
    with pytest.raises(RuntimeError, match=f'beside "kv_connector": "{part["kv_connector"]}"'):
        second.start(None, transfer=config, engine=NO_PREFIX_CACHE)


def test_a_damaged_chunk_is_computed_and_stored_again(platform, second, first):
    third = stored_rows(platform)[2]
    with platform.hot.client() as client:
        client.setrange(third, HEADER_BYTES + 5000, b"damaged")
    second.start(None, transfer=under(platform), engine=NO_PREFIX_CACHE)
    outputs = second.generate(ASKED)
    same(outputs, first)
    assert outputs[0]["cached_tokens"] == 2 * CHUNK
    second.ask("stop")  # waits for what is being stored
    assert len(stored_rows(platform)) == HIT_TOKENS // CHUNK


def test_after_a_reset_an_engine_finds_nothing_older(platform, second, first):
    before = len(block_keys(platform))
    second.start(None, transfer=under(platform), engine=NO_PREFIX_CACHE)
    assert second.generate(ASKED)[0]["cached_tokens"] == HIT_TOKENS
    assert second.ask("reset") is True
    outputs = [second.generate(ASKED)[0] for _ in range(2)]
    second.ask("stop")
    same(outputs, first * 2)
    assert [out["cached_tokens"] for out in outputs] == [0, HIT_TOKENS]
    assert len(block_keys(platform)) == before + HIT_TOKENS // CHUNK


def test_without_neve_the_dram_tier_works_on(platform, second, first):
    tier = {"type": "neve", "revision": "x", "endpoint": "http://127.0.0.1:9", "api_key": "k"}
    second.start(None, transfer=dram(secondary_tiers=[tier]), engine=NO_PREFIX_CACHE)
    computed, cached = second.generate(ASKED), second.generate(ASKED)
    second.ask("stop")
    same(computed + cached, first * 2)
    assert [out["cached_tokens"] for out in computed + cached] == [0, HIT_TOKENS]


def test_a_model_of_several_kv_cache_groups_is_loaded(platform, second, models):
    """Every other layer sees a window of 128 tokens, and has blocks of its own."""
    gemma = {"model": str(models / "gemma"), "engine": NO_PREFIX_CACHE}
    asked = ASKED | {"max_tokens": 4}
    second.start(None, **gemma)
    alone = second.generate(asked)
    second.ask("stop")
    cached, before = [], len(block_keys(platform))
    for _ in range(2):
        second.start(None, transfer=under(platform), **gemma)
        outputs = second.generate(asked)
        second.ask("stop")
        same(outputs, alone)
        cached.append(outputs[0]["cached_tokens"])
    assert cached == [0, HIT_TOKENS]
    # All chunks of full attention; of the window's, those inside the window.
    assert len(block_keys(platform)) > before + HIT_TOKENS // CHUNK
