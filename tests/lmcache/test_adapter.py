"""`neve.lmcache` as LMCache loads and drives it, over a real Valkey and a small cache endpoint."""

import json
import subprocess
from collections.abc import Iterator

import pytest

from neve.index.tier import HotTier
from support.cache_endpoint import API_KEY, CacheEndpoint
from support.chains import provision
from support.lmcache_process import (
    LAYOUT,
    LMCACHE_ENV,
    LMCACHE_PYTHON,
    OBJECT_BYTES,
    LmcacheProcess,
    keys,
    plugin,
)
from support.servers import ValkeyServer, wait_until
from support.vllm_engine import engine_environment

pytestmark = pytest.mark.lmcache

PATIENCE = {"match_deadline_s": 30, "load_deadline_s": 30}
FAR_S = 8.0  # a deadline that no answer of a stopped server comes before


@pytest.fixture
def hot(clean_hot: ValkeyServer) -> HotTier:
    return provision(clean_hot)


@pytest.fixture
def endpoint(clean_hot: ValkeyServer) -> Iterator[CacheEndpoint]:
    with CacheEndpoint(f"127.0.0.1:{clean_hot.port}") as endpoint:
        yield endpoint


@pytest.fixture
def adapter(
    lmcache: LmcacheProcess, hot: HotTier, endpoint: CacheEndpoint
) -> Iterator[LmcacheProcess]:
    lmcache.ask("open", config=plugin(endpoint.url, API_KEY, **PATIENCE))
    yield lmcache
    lmcache.ask("close")


def counted(adapter: LmcacheProcess, model: str = "test/model") -> dict:
    return adapter.ask("status")["models"][model]


class TestRoundTrip:
    def test_what_was_stored_is_found_and_loaded_with_equal_bytes(self, adapter, endpoint):
        stored = adapter.ask("store", keys=keys(8), layout=LAYOUT)
        assert stored["ok"]
        assert stored["bytes"] == 8 * OBJECT_BYTES
        found = adapter.ask("find", keys=keys(10), layout=LAYOUT)
        assert found["bits"] == [True] * 8 + [False] * 2
        assert adapter.ask("status")["leases"] == 8
        loaded = adapter.ask("load", keys=keys(8), layout=LAYOUT)
        assert loaded["bits"] == loaded["equal"] == [True] * 8
        adapter.ask("unlock", keys=keys(8))
        adapter.ask("unlock", keys=keys(10))  # also of what nobody holds
        assert adapter.ask("status")["leases"] == 0
        (opened,) = endpoint.opened
        assert opened["engine"]["name"] == "lmcache"
        assert opened["node"] == "lmcache-1"
        assert opened["identity"]["model"] == "test/model"
        counts = counted(adapter)
        assert counts["counters"]["requested_blocks"] == 10
        assert counts["counters"]["hit_hot_blocks"] == 8
        assert counts["counters"]["hit_hot_tokens"] == 8 * 256
        assert counts["misses"] == {"never_stored": 2}

    def test_each_event_has_a_file_descriptor_of_its_own(self, lmcache, hot, endpoint):
        numbers = lmcache.ask("open", config=plugin(endpoint.url, API_KEY))
        assert len(set(numbers)) == 3
        lmcache.ask("close")

    def test_a_load_without_a_look_up_asks_first(self, adapter):
        adapter.ask("store", keys=keys(4), layout=LAYOUT)
        loaded = adapter.ask("load", keys=keys(6), layout=LAYOUT)
        assert loaded["bits"] == loaded["equal"] == [True] * 4 + [False] * 2

    def test_a_lease_of_what_has_left_is_a_miss(self, adapter, hot, clean_hot):
        adapter.ask("store", keys=keys(4), layout=LAYOUT)
        assert all(adapter.ask("find", keys=keys(4), layout=LAYOUT)["bits"])
        hot.evict(1 << 30)
        loaded = adapter.ask("load", keys=keys(4), layout=LAYOUT)
        assert loaded["bits"] == [False] * 4
        assert counted(adapter)["misses"] == {"evicted": 4}

    def test_objects_of_any_size_are_cut_into_stripes(self, adapter):
        """5 MiB are three blocks; one byte is one."""
        for number, size in enumerate((1, 65, (2 << 20) + 1, 5 << 20)):
            layout, one = [[[size], "uint8"]], keys(1, first=number)
            assert adapter.ask("store", keys=one, layout=layout)["bytes"] == size
            assert adapter.ask("find", keys=one, layout=layout)["bits"] == [True]
            loaded = adapter.ask("load", keys=one, layout=layout)
            assert loaded["bits"] == loaded["equal"] == [True]
        assert counted(adapter)["counters"]["put_blocks"] == 1 + 1 + 2 + 3

    def test_an_object_that_lost_a_stripe_is_missed(self, adapter, hot, clean_hot):
        layout = [[[5 << 20], "uint8"]]
        adapter.ask("store", keys=keys(1), layout=layout)
        with clean_hot.client() as client:
            blocks = client.keys("*:b:*")
            assert len(blocks) == 3
            client.delete(blocks[0])
        loaded = adapter.ask("load", keys=keys(1), layout=layout)
        assert loaded["bits"] == [False]
        assert adapter.ask("find", keys=keys(1), layout=layout)["bits"] == [False]

    def test_a_damaged_object_is_missed_and_forgotten(self, adapter, clean_hot):
        adapter.ask("store", keys=keys(2), layout=LAYOUT)
        with clean_hot.client() as client:
            one, _ = client.keys("*:b:*")
            client.setrange(one, 64 + 100, b"\xff\x00\xff")
        loaded = adapter.ask("load", keys=keys(2), layout=LAYOUT)
        assert sorted(loaded["bits"]) == [False, True]
        assert loaded["bits"] == loaded["equal"]
        assert sum(adapter.ask("find", keys=keys(2), layout=LAYOUT)["bits"]) == 1
        assert counted(adapter)["misses"]["corrupt"] == 2

    def test_several_buckets_share_the_objects(self, lmcache, clean_hot, endpoint):
        provision(clean_hot, buckets=4)
        endpoint.buckets = 4
        lmcache.ask("open", config=plugin(endpoint.url, API_KEY, **PATIENCE))
        assert lmcache.ask("store", keys=keys(40), layout=LAYOUT)["ok"]
        assert all(lmcache.ask("find", keys=keys(40), layout=LAYOUT)["bits"])
        assert all(lmcache.ask("load", keys=keys(40), layout=LAYOUT)["equal"])
        lmcache.ask("close")


OTHERS = {
    "model": keys(2, model="other/model"),
    "world size": keys(2, world=2),
    "rank": keys(2, world=2, rank=1),
    "group": keys(2, group=1),
    "salt": keys(2, salt="ann"),
    "tokens": keys(2, first=2),
}


class TestKeys:
    def test_whatever_a_key_carries_tells_objects_apart(self, adapter):
        adapter.ask("store", keys=keys(2), layout=LAYOUT, seed=0)
        for seed, other in enumerate(OTHERS.values(), 1):
            assert adapter.ask("find", keys=other, layout=LAYOUT)["bits"] == [False] * 2
            assert adapter.ask("store", keys=other, layout=LAYOUT, seed=seed)["ok"]
        assert all(adapter.ask("load", keys=keys(2), layout=LAYOUT, seed=0)["equal"])
        for seed, other in enumerate(OTHERS.values(), 1):
            assert all(adapter.ask("load", keys=other, layout=LAYOUT, seed=seed)["equal"])

    def test_so_does_the_layout_which_no_key_carries(self, adapter):
        """As bytes, both layouts have one length."""
        halves = [[shape, "float16"] for shape, _ in LAYOUT]
        adapter.ask("store", keys=keys(2), layout=LAYOUT)
        assert adapter.ask("find", keys=keys(2), layout=halves)["bits"] == [False] * 2
        assert adapter.ask("load", keys=keys(2), layout=halves)["bits"] == [False] * 2
        assert adapter.ask("store", keys=keys(2), layout=halves, seed=1)["ok"]
        assert all(adapter.ask("load", keys=keys(2), layout=LAYOUT)["equal"])
        assert all(adapter.ask("load", keys=keys(2), layout=halves, seed=1)["equal"])

    def test_a_lease_of_one_layout_serves_no_other(self, adapter):
        halves = [[shape, "float16"] for shape, _ in LAYOUT]
        adapter.ask("store", keys=keys(1), layout=LAYOUT)
        adapter.ask("find", keys=keys(1), layout=LAYOUT)
        assert adapter.ask("load", keys=keys(1), layout=halves)["bits"] == [False]

    def test_a_revision_has_objects_of_its_own(self, adapter, lmcache, endpoint):
        adapter.ask("store", keys=keys(1), layout=LAYOUT)
        adapter.ask("close")
        lmcache.ask("open", config=plugin(endpoint.url, API_KEY, revision="r2", **PATIENCE))
        assert lmcache.ask("find", keys=keys(1), layout=LAYOUT)["bits"] == [False]
        assert endpoint.opened[-1]["identity"]["revision"] == "set:r2"

    def test_another_process_finds_them(self, adapter, lmcache, endpoint):
        adapter.ask("store", keys=keys(3), layout=LAYOUT)
        adapter.ask("close")
        lmcache.ask("open", config=plugin(endpoint.url, API_KEY, **PATIENCE))
        assert lmcache.ask("find", keys=keys(3), layout=LAYOUT)["bits"] == [True] * 3
        assert all(lmcache.ask("load", keys=keys(3), layout=LAYOUT)["equal"])

    def test_a_look_up_that_describes_nothing_goes_by_what_was_stored(self, adapter):
        """As `lmcache bench l2` asks."""
        assert adapter.ask("find", keys=keys(1), layout=[])["bits"] == [False]
        assert adapter.ask("status")["refused_objects"] == {"layout": 1}
        adapter.ask("store", keys=keys(1), layout=LAYOUT)
        assert adapter.ask("find", keys=keys(1), layout=[])["bits"] == [True]

    def test_serialized_objects_are_found_by_the_layout_they_had_before(self, adapter):
        """LMCache's serializers store rows of bytes, and look up by the layout of the KV."""
        row = [[[OBJECT_BYTES // 2], "uint8"]]
        adapter.ask("store", keys=keys(2), layout=row)
        assert adapter.ask("find", keys=keys(2), layout=LAYOUT)["bits"] == [True] * 2
        assert all(adapter.ask("load", keys=keys(2), layout=row)["equal"])


class TestRefusals:
    def test_a_short_hash_proves_nothing(self, adapter):
        short = keys(2, hash_bytes=8)
        assert not adapter.ask("store", keys=short, layout=LAYOUT)["ok"]
        assert adapter.ask("find", keys=short, layout=LAYOUT)["bits"] == [False] * 2
        assert adapter.ask("load", keys=short, layout=LAYOUT)["bits"] == [False] * 2
        assert adapter.ask("status")["refused_objects"] == {"hash": 6}
        counts = counted(adapter)
        assert counts["drops"] == {"unsupported": 2}
        assert counts["misses"] == {"unsupported": 4}

    def test_objects_without_a_fixed_length_are_not_stored(self, adapter):
        assert not adapter.ask("store", keys=keys(1), layout=LAYOUT, size=100)["ok"]
        assert adapter.ask("status")["refused_objects"] == {"size": 1}

    def test_neve_alone_decides_what_leaves(self, adapter):
        adapter.ask("store", keys=keys(1), layout=LAYOUT)
        adapter.ask("delete", keys=keys(1))
        assert adapter.ask("find", keys=keys(1), layout=LAYOUT)["bits"] == [True]
        assert adapter.ask("status")["refused_objects"] == {"delete": 1}

    @pytest.mark.parametrize(
        ("params", "words"),
        [
            ({"endpoint": "nowhere"}, "endpoint: need an address"),
            ({"api_key": ""}, "api_key: set it in adapter_params or as NEVE_API_KEY"),
            ({"chunk_tokens": 0}, "chunk_tokens: need a whole number"),
            ({"load": "always"}, "load: unknown option in adapter_params; known are endpoint"),
            ({"local_dir": "/tmp"}, "local_bytes"),
            ({"revision": ""}, "revision: need a name"),
            ({"revision": None}, "revision: name the weights"),
        ],
    )
    def test_a_wrong_option_stops_lmcache_at_its_start(self, lmcache, params, words):
        config = plugin("http://127.0.0.1:9", API_KEY)
        config["adapter_params"] |= params
        with pytest.raises(RuntimeError, match=words):
            lmcache.ask("open", config=config)


class TestTrouble:
    """Each kind is a miss or a failed store, never an exception, and has its reason."""

    @pytest.fixture
    def trouble(
        self, lmcache: LmcacheProcess, hot: HotTier, endpoint: CacheEndpoint
    ) -> Iterator[LmcacheProcess]:
        """With objects stored, and short deadlines."""
        deadlines = {"match_deadline_s": 30, "load_deadline_s": FAR_S}
        lmcache.ask("open", config=plugin(endpoint.url, API_KEY, **deadlines))
        assert lmcache.ask("store", keys=keys(2), layout=LAYOUT)["ok"]
        yield lmcache
        lmcache.ask("close")

    def test_valkey_down(self, trouble, clean_hot):
        clean_hot.kill()
        try:
            assert not trouble.ask("store", keys=keys(2, first=2), layout=LAYOUT)["ok"]
            assert trouble.ask("find", keys=keys(2), layout=LAYOUT)["bits"] == [False] * 2
            assert trouble.ask("load", keys=keys(2), layout=LAYOUT)["bits"] == [False] * 2
            counts = counted(trouble)
            assert counts["misses"].keys() <= {"breaker", "timeout"}
            assert sum(counts["misses"].values()) == 4
            assert counts["drops"].keys() <= {"breaker", "timeout"}
            assert trouble.ask("status")["is_healthy"]
        finally:
            clean_hot.restart()

    def test_valkey_hangs(self, lmcache, hot, endpoint, clean_hot):
        """Submissions return before there is a result: nothing waits for storage."""
        deadlines = {"match_deadline_s": 0.5, "load_deadline_s": 0.5}
        lmcache.ask("open", config=plugin(endpoint.url, API_KEY, **deadlines))
        wait_until(
            lambda: lmcache.ask("store", keys=keys(2), layout=LAYOUT)["ok"], what="a first store"
        )
        clean_hot.freeze()
        try:
            found = lmcache.ask("find", keys=keys(2), layout=LAYOUT)
            loaded = lmcache.ask("load", keys=keys(2), layout=LAYOUT)
            stored = lmcache.ask("store", keys=keys(2, first=2), layout=LAYOUT)
        finally:
            clean_hot.thaw()
        assert found["bits"] == loaded["bits"] == [False] * 2
        assert not stored["ok"]
        assert not found["peek"]
        reasons = counted(lmcache)["misses"]
        assert reasons.keys() <= {"never_stored", "timeout", "breaker"}
        assert reasons["timeout"] >= 2
        lmcache.ask("close")

    def test_the_quota_is_full(self, lmcache, clean_hot, endpoint):
        provision(clean_hot, hot_bytes=3 * OBJECT_BYTES)
        with clean_hot.client() as client:  # blocks that await their flush are not evicted
            (quota,) = client.keys("*:q")
            client.hset(quota, "flush_after_s", 3600)
        lmcache.ask("open", config=plugin(endpoint.url, API_KEY, **PATIENCE))
        stored = lmcache.ask("store", keys=keys(5), layout=LAYOUT)
        assert not stored["ok"]
        assert sum(lmcache.ask("find", keys=keys(5), layout=LAYOUT)["bits"]) == 2
        assert counted(lmcache)["counters"]["put_refused"] == 3
        wait_until(lambda: endpoint.counted("put_refused") == 3, what="the heartbeat")
        lmcache.ask("close")

    def test_a_wrong_key(self, lmcache, hot, endpoint):
        lmcache.ask("open", config=plugin(endpoint.url, "neve_test_wrong", **PATIENCE))
        assert not lmcache.ask("store", keys=keys(2), layout=LAYOUT)["ok"]
        assert lmcache.ask("find", keys=keys(2), layout=LAYOUT)["bits"] == [False] * 2
        assert lmcache.ask("load", keys=keys(2), layout=LAYOUT)["bits"] == [False] * 2
        status = lmcache.ask("status")
        assert status["models"] == {"test/model": {"connected": False}}
        assert status["unconnected_objects"] == 6
        assert status["is_healthy"]
        lmcache.ask("close")

    def test_a_revoked_key(self, trouble, endpoint):
        endpoint.fail = (401, {"title": "Unauthorized", "status": 401, "detail": "unknown key"})
        find = {"keys": keys(2), "layout": LAYOUT}
        wait_until(lambda: not any(trouble.ask("find", **find)["bits"]), what="the session's end")
        assert not trouble.ask("store", keys=keys(2, first=4), layout=LAYOUT)["ok"]
        assert trouble.ask("load", keys=keys(2), layout=LAYOUT)["bits"] == [False] * 2
        assert counted(trouble)["misses"]["breaker"] >= 4

    def test_no_platform_at_the_start_and_one_later(self, lmcache, hot, endpoint):
        endpoint.fail = (503, {"title": "Unavailable", "status": 503, "detail": "starting"})
        lmcache.ask("open", config=plugin(endpoint.url, API_KEY, **PATIENCE))
        assert not lmcache.ask("store", keys=keys(2), layout=LAYOUT)["ok"]
        endpoint.fail = None
        store = {"keys": keys(2), "layout": LAYOUT}
        wait_until(lambda: lmcache.ask("store", **store)["ok"], what="a store")
        lmcache.ask("close")

    def test_the_heartbeat_tells_all_of_it(self, trouble, endpoint):
        trouble.ask("find", keys=keys(4), layout=LAYOUT)
        trouble.ask("load", keys=keys(2), layout=LAYOUT)
        wait_until(lambda: endpoint.counted("hit_hot_blocks") == 2, what="the heartbeat")
        misses = [beat["misses"] for beat in endpoint.heartbeats if beat["misses"]]
        assert misses == [{"never_stored": 2}]


class TestLmcachesOwn:
    def test_its_fault_injection_drops_what_it_says(self, lmcache, hot, endpoint):
        inner = plugin(endpoint.url, API_KEY, **PATIENCE)
        config = {"type": "fault_inject", "inner": inner, "gap_indices": [1, 3]}
        lmcache.ask("open", config=config)
        lmcache.ask("store", keys=keys(5), layout=LAYOUT)
        assert all(lmcache.ask("find", keys=keys(5), layout=LAYOUT)["bits"])
        loaded = lmcache.ask("load", keys=keys(5), layout=LAYOUT)
        assert loaded["bits"] == [True, False, True, False, True]
        assert all(loaded["equal"])
        status = lmcache.ask("status")
        assert status["fault_inject"]["gap_indices"] == [1, 3]
        lmcache.ask("close")

    def test_the_storage_manager_gets_back_what_left_its_l1(self, lmcache, hot, endpoint):
        """Also from another manager, as after a restart."""
        lmcache.ask("start", configs=[plugin(endpoint.url, API_KEY, **PATIENCE)])
        assert lmcache.ask("write", keys=keys(6), layout=LAYOUT) == {"written": 6}
        lmcache.ask("drop", keys=keys(6))
        fetched = lmcache.ask("fetch", keys=keys(8), layout=LAYOUT)
        assert fetched == {"hits": 6, "l2": 6, "equal": [True] * 6}
        assert lmcache.ask("healthy")
        lmcache.ask("stop")
        lmcache.ask("start", configs=[plugin(endpoint.url, API_KEY, **PATIENCE)])
        fetched = lmcache.ask("fetch", keys=keys(6), layout=LAYOUT)
        assert fetched == {"hits": 6, "l2": 6, "equal": [True] * 6}
        lmcache.ask("stop")

    def test_a_gap_ends_the_prefix(self, lmcache, hot, endpoint):
        inner = plugin(endpoint.url, API_KEY, **PATIENCE)
        config = {"type": "fault_inject", "inner": inner, "gap_indices": [2]}
        lmcache.ask("start", configs=[config])
        lmcache.ask("write", keys=keys(6), layout=LAYOUT)
        lmcache.ask("drop", keys=keys(6))
        fetched = lmcache.ask("fetch", keys=keys(6), layout=LAYOUT)
        assert fetched["hits"] == 2
        assert fetched["equal"] == [True] * 2
        lmcache.ask("stop")

    def test_its_serializers_work(self, lmcache, hot, endpoint):
        """fp8 halves what is stored. Its objects have one tensor."""
        config = plugin(endpoint.url, API_KEY, **PATIENCE) | {"serde": {"type": "fp8"}}
        lmcache.ask("start", configs=[config])
        lmcache.ask("write", keys=keys(4), layout=LAYOUT[:1])
        lmcache.ask("drop", keys=keys(4))
        assert lmcache.ask("fetch", keys=keys(4), layout=LAYOUT[:1])["l2"] == 4
        lmcache.ask("stop")
        wait_until(lambda: endpoint.counted("put_blocks") == 4, what="the last heartbeat")
        assert endpoint.counted("hot_write_bytes") == 4 * (64 + 4096)

    def test_its_benchmark_verifies_what_neve_stores(self, lmcache_python, hot, endpoint):
        command = [
            *(str(LMCACHE_PYTHON.parent / "lmcache"), "bench", "l2", "--no-skip-verify"),
            *("--l2-adapter", json.dumps(plugin(endpoint.url, API_KEY, **PATIENCE))),
            *("--data-size-kb", "64", "--num-keys", "16", "--in-flight", "2"),
            *("--lookup-max-hit-rate", "0.5"),
        ]
        environment = engine_environment(**LMCACHE_ENV)
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        assert "All 32 keys data verified OK." in done.stdout
        assert "found=16/32" in done.stdout
