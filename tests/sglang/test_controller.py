"""SGLang's own HiCacheController and host pools over a real platform: write, forget, prefetch."""

import random
from typing import Any

import pytest

from neve._core import FAILURES_TO_OPEN
from neve.formats.block import HEADER_BYTES
from support.servers import ControlPlane, wait_until
from support.sglang import PAGE, SglangController, neve_config

pytestmark = pytest.mark.sglang

PAGES = 140  # more than one of SGLang's batches
TOKENS = PAGES * PAGE
LAYOUTS = ("page_first", "layer_first", "page_first_direct", "page_head")
SET_HOT_BYTES = """
from tenants.audit import SYSTEM
from tenants.models import Tenant
from tenants.services import set_quota
set_quota(tenant=Tenant.objects.get(slug="demo"), actor=SYSTEM, hot_bytes={hot_bytes})
"""
SHOW_NODES = """
import json
from catalog.models import NodeSession, UsageRollup
from django.db.models import Sum
sums = UsageRollup.unscoped.aggregate(hot=Sum("hit_hot_tokens"), cold=Sum("hit_cold_tokens"))
rows = NodeSession.unscoped.order_by("opened_at").values("node", "engine")
print("SHOWN", json.dumps({"nodes": list(rows), **sums}))
"""


@pytest.fixture
def start(controller: SglangController, platform: ControlPlane):
    """Starts a controller over Neve, under a `revision` that no other test uses."""
    revision = f"test-{random.getrandbits(64):x}"

    def start(config: dict[str, Any] | None = None, **options: Any) -> SglangController:
        given = neve_config(platform, **{"revision": revision} | (config or {}))
        controller.ask("start", **{"config": given, "pages": PAGES + 20} | options)
        controller.ask("wait_connected")
        return controller

    return start


def write(controller: SglangController, seed: int = 1, **more: Any) -> int:
    return controller.ask("write", **{"seed": seed, "pages": PAGES} | more)["stored"]


def read(controller: SglangController, seed: int = 1, **more: Any) -> tuple[int, int]:
    """Tokens hit and loaded; what was loaded is what `write` stored."""
    answer = controller.ask("read", **{"seed": seed, "pages": PAGES} | more)
    assert answer["equal"]
    return answer["hit"], answer["loaded"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pages_of_each_layout_come_back_byte_for_byte(start, layout):
    controller = start(layout=layout)
    assert read(controller) == (0, 0)
    assert write(controller) == TOKENS
    assert read(controller) == (TOKENS, TOKENS)
    assert read(controller, pages=70) == (70 * PAGE, 70 * PAGE)
    told = controller.ask("counters")
    assert told["counters"]["hit_hot_tokens"] == TOKENS + 70 * PAGE
    assert told["counters"]["put_blocks"] == PAGES
    assert told["pages"] == [PAGES + 70, PAGES]  # in SGLang's own metrics


@pytest.mark.parametrize(
    ("kind", "layout"),
    [("mla", "page_first"), ("mla", "layer_first"), ("mla", "page_first_direct"),
     ("wide", "page_first"), ("wide", "page_first_direct")],
)  # fmt: skip
def test_so_do_latent_kv_and_values_wider_than_keys(start, kind, layout):
    controller = start(kind=kind, layout=layout)
    assert write(controller) == TOKENS
    assert read(controller) == (TOKENS, TOKENS)


@pytest.mark.long
def test_pages_of_one_token_come_back_too(start):
    """SGLang's default."""
    controller = start(page=1, pages=1100)
    assert write(controller, pages=1050) == 1050
    assert read(controller, pages=1050) == (1050, 1050)


def test_latent_kv_is_stored_by_the_first_rank_for_all(start):
    controller = start(kind="mla", storage={"tp_size": 2, "tp_rank": 0})
    assert write(controller) == TOKENS
    start(kind="mla", storage={"tp_size": 2, "tp_rank": 1})
    assert read(controller) == (TOKENS, TOKENS)
    write(controller, seed=2)
    assert "put_blocks" not in controller.ask("counters")["counters"]


@pytest.mark.parametrize(
    "other",
    [
        {"config": {"revision": "other weights"}},
        {"layout": "page_head"},
        {"dtype": "float16"},
        {"storage": {"tp_size": 2, "tp_rank": 1}},
        {"storage": {"pp_size": 2, "pp_rank": 1}},
    ],
    ids=str,
)
def test_pages_of_another_space_are_never_found(start, other):
    """SGLang's keys are the same in all of them."""
    controller = start()
    assert write(controller) == TOKENS
    assert read(controller) == (TOKENS, TOKENS)
    start(**other)
    assert read(controller) == (0, 0)


def test_a_salt_and_an_extra_key_divide_pages(start):
    controller = start()
    named = [{}, {"salt": "a"}, {"salt": "b"}, {"extra_key": "a"}]
    for number, names in enumerate(named):
        assert read(controller, **names) == (0, 0)
        assert write(controller, **names) == TOKENS
        assert [read(controller, **each)[1] for each in named] == [
            TOKENS if n <= number else 0 for n in range(len(named))
        ]


def test_a_page_that_is_stored_is_not_sent_again(start):
    controller = start()
    assert write(controller) == write(controller) == TOKENS
    assert controller.ask("counters")["counters"]["put_blocks"] == PAGES


def test_pages_come_from_s3_when_valkey_lost_them(start, platform):
    controller = start(layout="layer_first")
    assert write(controller) == TOKENS
    platform.manage("flush_blocks")
    platform.hot.wipe()
    platform.manage("rebuild_index")
    wait_until(lambda: read(controller) == (TOKENS, TOKENS), what="pages out of S3")
    counted = controller.ask("counters")["counters"]
    assert counted["hit_cold_tokens"] == TOKENS
    assert counted["cold_requests"] > 0


def test_the_nodes_own_tier_gives_pages(start, tmp_path):
    controller = start({"local_dir": str(tmp_path / "local"), "local_bytes": 1 << 30}, pages=60)
    assert write(controller, pages=50) == 50 * PAGE

    def is_local() -> bool:
        assert read(controller, pages=50) == (50 * PAGE, 50 * PAGE)
        return "hit_local_tokens" in controller.ask("counters")["counters"]

    wait_until(is_local, what="pages in files")


def test_a_damaged_page_is_a_miss_and_is_stored_again(start, platform):
    controller = start()
    assert write(controller, pages=30) == 30 * PAGE
    with platform.hot.client() as client:
        keys = [key.partition(b":b:") for key in client.scan_iter(match="*:b:*", count=1000)]
        newest = max(int(rest.partition(b":")[0]) for _, _, rest in keys)
        ours = [b"".join(key) for key in keys if int(key[2].partition(b":")[0]) == newest]
        assert len(ours) == 30
        client.setrange(ours[0], HEADER_BYTES + 5000, b"damaged")
    assert read(controller, pages=30)[1] < 30 * PAGE
    assert controller.ask("counters")["counters"]["corrupt"] == 1
    assert write(controller, pages=30) == 30 * PAGE
    assert read(controller, pages=30) == (30 * PAGE, 30 * PAGE)


def test_many_threads_read_at_once(start):
    controller = start(pages=8 * 20)
    for seed in range(8):
        assert write(controller, seed=seed, pages=20) == 20 * PAGE
    told = controller.ask("read_in_threads", seeds=list(range(8)), pages=20)
    assert told == [[20, 20, True]] * 8


@pytest.mark.long
def test_the_built_in_file_backend_gives_the_same_answers(start, controller, tmp_path):
    told = []
    for backend in ("file", "dynamic"):
        if backend == "file":
            controller.ask(
                "start", config={"file_storage_path": str(tmp_path)}, backend="file", pages=200
            )
        else:
            start(pages=200)
        told.append([
            read(controller), write(controller), read(controller),
            read(controller, pages=PAGES + 10), read(controller, pages=3), read(controller, seed=2),
        ])  # fmt: skip
    assert told[0] == told[1]


@pytest.mark.long
def test_a_full_quota_refuses_pages_and_says_so(start, platform):
    controller = start(pages=200)
    try:
        platform.manage("shell", "-v0", "-c", SET_HOT_BYTES.format(hot_bytes=1 << 20))
        assert write(controller, pages=PAGES) < TOKENS
        counted = controller.ask("counters")["counters"]
        assert counted["put_refused"] > 0
        hit, loaded = read(controller)
        assert hit == loaded < TOKENS
    finally:
        platform.manage("shell", "-v0", "-c", SET_HOT_BYTES.format(hot_bytes=128 << 20))


def test_a_valkey_that_hangs_is_a_miss_and_then_not_asked(start, platform):
    controller = start({"match_deadline_s": 0.3, "load_deadline_s": 0.5})
    assert write(controller, pages=30) == 30 * PAGE
    platform.hot.freeze()
    try:
        for _ in range(FAILURES_TO_OPEN + 1):
            assert controller.ask("read", seed=1, pages=30)["hit"] == 0
        told = controller.ask("counters")
        assert told["breaker"] != "closed"
        assert told["misses"]["timeout"] > 0
        assert controller.ask("write", seed=2, pages=30)["stored"] == 0
    finally:
        platform.hot.thaw()
    wait_until(lambda: read(controller, pages=30)[1] == 30 * PAGE, what="the breaker to close")


@pytest.mark.long
def test_a_killed_valkey_is_a_miss_and_a_new_one_is_used(start, platform):
    controller = start()
    assert write(controller, pages=30) == 30 * PAGE
    platform.hot.kill()
    try:
        assert read(controller, pages=30) == (0, 0)
        assert write(controller, seed=2, pages=30) == 0
    finally:
        platform.hot.__enter__()
        platform.manage("provision")
    wait_until(lambda: write(controller, seed=3, pages=30) == 30 * PAGE, what="a new Valkey")
    wait_until(lambda: read(controller, seed=3, pages=30)[1] == 30 * PAGE, what="its pages")


@pytest.mark.parametrize(
    "config",
    [{"api_key": "neve_wrong"}, {"endpoint": "http://127.0.0.1:9"}],
    ids=["wrong key", "no platform"],
)
def test_without_the_platform_nothing_is_found_and_nothing_fails(controller, platform, config):
    controller.ask("start", config=neve_config(platform, revision="x", **config))
    assert write(controller, pages=20) == 0
    assert read(controller, pages=20) == (0, 0)


REFUSED = [
    ({"layout": "page_unified"}, "hicache_mem_layout: the host layout 'page_unified'"),
    ({"config": {"interface_v1": None}}, "interface_v1: set it to 1"),
    ({"config": {"revision": None}}, "revision: "),
    ({"config": {"layout": "canonical"}}, "layout: unknown option"),
    ({"config": {"api_key": ""}}, "api_key: set it in --hicache-storage-backend-extra-config"),
    ({"storage": {"attn_cp_size": 2}}, "attn_cp_size: > 1 splits pages"),
    ({"storage": {"should_split_heads": True}}, "tp_lcm_size: pages split by KV head"),
    ({"page": 16384, "pages": 4, "layers": 16}, "page_size: a page of 16384 tokens"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=[each[1] for each in REFUSED])
def test_what_cannot_be_served_is_refused_by_name(start, options, message):
    with pytest.raises(RuntimeError, match=message):
        start(**options)


@pytest.mark.parametrize("pool", ["mamba", "swa", "indexer", "draft", "deepseek_v4_c4"])
def test_a_pool_beside_the_kv_is_refused_by_name(start, pool):
    controller = start()
    with pytest.raises(RuntimeError, match=f"a pool '{pool}' beside its KV"):
        controller.ask("register", pool=pool)
    assert write(controller, pages=5) == 0  # it has left


@pytest.mark.long
def test_sglangs_own_faults_lose_pages_and_never_change_them(start):
    faults = {
        "SGLANG_TEST_HICACHE_BACKEND_RANDOM_DELAY": "0.02",
        "SGLANG_TEST_HICACHE_BACKEND_RANDOM_FAILURE": "0.3",
    }
    controller = start(environment=faults)
    told = []
    for seed in range(12):
        write(controller, seed=seed)
        told.append(read(controller, seed=seed)[1])
    assert 0 < sum(told) < 12 * TOKENS


def test_arguments_that_decide_kv_divide_servers_and_others_do_not(controller, tmp_path):
    harmless = {
        "port": 1, "log_level": "debug", "mem_fraction_static": 0.5, "schedule_policy": "lpm",
        "chunked_prefill_size": 64, "hicache_ratio": 3.0, "enable_metrics": True, "tp_size": 2,
        "page_size": 64, "disable_cuda_graph": True, "reasoning_parser": "qwen3",
        "context_length": 4096,
    }  # fmt: skip
    scales, adapter = tmp_path / "scales.json", tmp_path / "adapter"
    adapter.mkdir()
    told = []
    for content in ("one", "two"):
        scales.write_text(content)
        (adapter / "adapter_model.safetensors").write_bytes(content.encode() * 9)
        given = {
            "quantization": "fp8", "quantization_param_path": str(scales),
            "json_model_override_args": '{"rope_theta": 1}', "lora_paths": [f"a={adapter}"],
        }  # fmt: skip
        told.append(controller.ask("deciding", arguments=harmless | given))
        assert told[-1].keys() == {*(given.keys() - {"lora_paths"}), "lora a"}
    differing = [name for name in told[0] if told[0][name] != told[1][name]]
    assert sorted(differing) == ["lora a", "quantization_param_path"]
    assert controller.ask("deciding", arguments=harmless) == {}
    (adapter / "adapter_config.json").write_text('{"lora_alpha": 16}')
    for paths in ([f"a={adapter}"], {"a": str(adapter)}):
        now = controller.ask("deciding", arguments={"lora_paths": paths})
        assert now.keys() == {"lora a"}
        assert now["lora a"] != told[1]["lora a"]
    for path, starting in (("some/hub", True), (adapter, False)):
        arguments = {"lora_paths": [f"a={path}"]}
        with pytest.raises(RuntimeError, match="lora_paths: can't tell the content"):
            controller.ask("deciding", arguments=arguments, starting=starting)


def test_an_adapter_loaded_again_under_its_name_finds_nothing_of_the_one_before(start):
    """SGLang draws an id for each load while it serves; keys are of the id."""
    controller = start()
    ids = [controller.ask("load_adapter", name="a", path="/adapters/a") for _ in range(2)]
    assert write(controller, pages=5, extra_key=ids[0]) == 5 * PAGE
    assert [read(controller, pages=5, extra_key=each)[1] for each in ids] == [5 * PAGE, 0]


def test_the_context_length_counts_beside_a_draft_model(controller):
    """SGLang gives it to the draft model as its own longest context, from which RoPEs scale."""
    drafter = {"speculative_algorithm": "EAGLE", "speculative_draft_model_path": "some/drafter"}
    told = controller.ask("deciding", arguments=drafter | {"context_length": 4096})
    assert told["context_length"] == "4096"
    assert told.keys() == {*drafter, "context_length"}


@pytest.mark.long
def test_the_platform_shows_the_node_and_its_tokens_by_tier(start, platform):
    controller = start()
    write(controller)
    read(controller)

    def shown() -> bool:
        told = platform.manage("shell", "-v0", "-c", SHOW_NODES)
        return '"name": "sglang"' in told and '"hot": 0' not in told and '"hot": null' not in told

    wait_until(shown, every_s=1, what="the node's counts")


def test_a_backend_that_comes_later_needs_the_name_of_the_weights(start, platform):
    """Whatever it found at the start: their files may be others by now."""
    controller = start()
    config = neve_config(platform, revision=None)
    with pytest.raises(RuntimeError, match="revision: weights may have been changed"):
        controller.ask("attach", config=config)
    controller.ask("attach", config=config | {"revision": f"later-{random.getrandbits(64):x}"})
    controller.ask("wait_connected")
    assert write(controller, pages=5) == 5 * PAGE


@pytest.mark.parametrize("by", ["update", "reset"])
def test_after_weights_were_changed_in_place_nothing_is_found_until_they_are_named(start, by):
    controller = start()
    assert write(controller, pages=20) == 20 * PAGE
    controller.ask("change_weights", by=by)
    assert read(controller, pages=20) == (0, 0)
    assert write(controller, seed=2, pages=20) == 0
    with pytest.raises(RuntimeError, match="revision: weights may have been changed since"):
        start({"revision": None})
    with pytest.raises(RuntimeError, match=r"revision: '.*' named weights that were changed"):
        start()
    start({"revision": f"the new ones by {by}"})
    assert read(controller, pages=20) == (0, 0)
    assert write(controller, pages=20) == 20 * PAGE
