"""LMCache over the whole platform: S3, restarts, what people see of it, access that ends."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import urllib3

from neve.datapath.client import Client
from neve.index.tier import HotTier, Usage
from support.chains import ENGINE, IDENTITY
from support.lmcache_process import LAYOUT, OBJECT_BYTES, LmcacheProcess, keys, plugin
from support.servers import ControlPlane, wait_until

pytestmark = pytest.mark.lmcache

PATIENCE = {"match_deadline_s": 30, "load_deadline_s": 30}
ISSUE_KEYS = """
from tenants.models import Tenant
from tenants.services import issue_key
node, secret = issue_key(tenant=Tenant.objects.get(slug="demo"), role="node", name="lmcache")
print(issue_key(tenant=None, role="operator", name="ops-lmcache")[1], node.pk, secret)
"""
# 5 MiB: three blocks.
LARGE = [[[5 << 20], "uint8"]]


@pytest.fixture(scope="module")
def issued(control_plane: ControlPlane) -> list[str]:
    """An operator's key, the number of a node's key, and the node's key."""
    return control_plane.manage("shell", "-v", "0", "-c", ISSUE_KEYS).split()


@pytest.fixture
def hot(control_plane: ControlPlane) -> Iterator[HotTier]:
    with (
        Client.connect(
            control_plane.url, control_plane.node_key, IDENTITY, node="watch", engine=ENGINE
        ) as client,
        control_plane.hot.client() as admin,
    ):
        session = client.session
        yield HotTier(admin.execute_command, session.tenant_id, session.buckets)


def api(control_plane: ControlPlane, key: str, path: str, method: str = "GET") -> dict:
    headers = {"Authorization": f"Bearer {key}"}
    answer = urllib3.request(method, f"{control_plane.url}/api/v1/{path}", headers=headers)
    assert answer.status == 200, answer.data
    return answer.json()


def test_objects_come_back_from_s3_in_another_process(
    lmcache, control_plane, hot, issued, tmp_path: Path
):
    config = plugin(control_plane.url, control_plane.node_key, **PATIENCE)
    lmcache.ask("start", configs=[config])
    before: Usage = hot.usage()
    lmcache.ask("write", keys=keys(6), layout=LAYOUT)
    lmcache.ask("write", keys=keys(1, first=6), layout=LARGE)
    fresh = hot.usage().hot_blocks - before.hot_blocks
    assert fresh == 6 + 3
    with control_plane.workers():
        wait_until(lambda: hot.usage().dirty_blocks == 0, timeout_s=120, what="flushed")
    hot.evict(1 << 40)
    assert hot.usage().hot_blocks == 0
    lmcache.ask("stop")

    with LmcacheProcess(tmp_path / "second.log") as second:
        second.ask("start", configs=[config])
        fetched = second.ask("fetch", keys=keys(6), layout=LAYOUT)
        assert fetched == {"hits": 6, "l2": 6, "equal": [True] * 6}
        fetched = second.ask("fetch", keys=keys(1, first=6), layout=LARGE)
        assert fetched == {"hits": 1, "l2": 1, "equal": [True]}
        assert second.ask("healthy")

        def session() -> dict:
            found = api(control_plane, issued[0], "nodes?node=lmcache-1&live=true")["results"]
            return found[0] if len(found) == 1 else {"totals": {}}

        read_bytes = 6 * OBJECT_BYTES + (5 << 20)
        wait_until(
            lambda: session()["totals"].get("cold_read_bytes", 0) >= read_bytes, what="its counts"
        )
        assert session()["engine"]["name"] == "lmcache"
        assert session()["totals"]["hit_cold_blocks"] == 6 + 3
        spaces = api(control_plane, issued[0], "spaces")["results"]
        assert "test/model" in {space["identity"]["model"] for space in spaces}
        second.ask("stop")


def test_its_usage_is_the_tenants(lmcache, control_plane, hot):
    lmcache.ask("open", config=plugin(control_plane.url, control_plane.node_key, **PATIENCE))
    lmcache.ask("store", keys=keys(2, first=20), layout=LAYOUT)
    wait_until(lambda: lmcache.ask("usage") >= 2 * OBJECT_BYTES, what="usage")
    used = hot.usage()
    assert lmcache.ask("usage") == used.hot_bytes + used.cold_bytes
    lmcache.ask("close")


def test_a_revoked_key_ends_its_access_and_nothing_else(lmcache, control_plane, issued):
    operator, number, secret = issued
    lmcache.ask("open", config=plugin(control_plane.url, secret, **PATIENCE))
    one = {"keys": keys(2, first=40), "layout": LAYOUT}
    assert lmcache.ask("store", **one)["ok"]
    assert all(lmcache.ask("load", **one)["equal"])
    api(control_plane, operator, f"keys/{number}/revoke", "POST")
    wait_until(lambda: not any(lmcache.ask("find", **one)["bits"]), what="cut off")
    assert lmcache.ask("load", **one)["bits"] == [False] * 2
    assert not lmcache.ask("store", keys=keys(2, first=50), layout=LAYOUT)["ok"]
    status = lmcache.ask("status")
    assert status["models"]["test/model"]["misses"]["breaker"] >= 2
    assert status["is_healthy"]
    lmcache.ask("close")
