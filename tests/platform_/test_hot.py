"""Provisioning of the hot Valkey, and what a tenant's ACL user can not do."""

import os
import re
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import valkey
from django.core.exceptions import ImproperlyConfigured
from django.core.management import CommandError, call_command
from valkey.exceptions import AuthenticationError, NoPermissionError, ResponseError

from catalog import hot_access
from neve.errors import MissReason
from neve.formats.keys import BucketKeys
from neve.index.library import taken
from neve.index.tier import BlockTerms, CommitOutcome, HotTier, Location, RestoredBlock, Tier
from retention import provisioning
from retention.services import set_policy
from storage import hot, hot_setup
from storage.hot_users import NODE_FUNCTIONS
from support.rows import make_session, make_space, make_tenant
from support.servers import ValkeyServer
from tenants import services
from tenants.audit import SYSTEM
from tenants.keys import usable_node_keys
from tenants.models import ApiKey, Quota, Tenant
from tenants.scope import tenant_scope

pytestmark = [pytest.mark.integration, pytest.mark.django_db(transaction=True)]

SIZE = 1000


@pytest.fixture
def node(clean_hot):
    """Makes a tenant and connects as one of its nodes."""
    made = []

    def connect(tenant: Tenant, key: ApiKey | None = None):
        key = key or key_of(tenant)
        client = clean_hot.client(**hot_access.user_of(key).login)
        made.append(client)
        return client

    yield connect
    for client in made:
        client.close()


def key_of(tenant: Tenant) -> ApiKey:
    """The tenant's first node key, which has its Valkey user once it is issued."""
    key = usable_node_keys().filter(tenant=tenant).order_by("pk").first()
    if key is None:
        key, _ = services.issue_key(tenant=tenant, role="node", name="node")
        hot_access.provision_user(key)
        with tenant_scope(tenant.pk):
            make_session(make_space(tenant, f"of {key.pk}"), key=key)
    return key


def store(client, tenant: Tenant) -> bytes:
    id_ = os.urandom(16)
    client.set(BucketKeys(tenant.pk, 0).block(1, id_), bytes(SIZE), nx=True, px=60_000)
    outcome = HotTier(client.execute_command, tenant.pk).commit(1, [(id_, SIZE, 256)])
    assert outcome == [CommitOutcome.STORED]
    return id_


def test_a_new_tenants_node_can_store_and_find_at_once(node):
    tenant = make_tenant()
    client = node(tenant)
    id_ = store(client, tenant)
    assert isinstance(HotTier(client.execute_command, tenant.pk).match([id_])[0], Location)
    assert len(client.get(BucketKeys(tenant.pk, 0).block(1, id_))) == SIZE


def test_the_data_path_calls_of_a_node_are_allowed(node):
    tenant = make_tenant()
    tier = HotTier(node(tenant).execute_command, tenant.pk)
    id_ = store(node(tenant), tenant)
    tier.touch([id_])
    assert tier.usage().hot_blocks == 1
    assert tier.forget(Tier.HOT, [id_]) == 1
    client = node(tenant)
    client.ping()
    client.execute_command("HELLO", "2", "SETNAME", "node-1")


@pytest.mark.parametrize("name", NODE_FUNCTIONS)
def test_each_function_of_a_node_is_charged_to_its_tenant(node, clean_hot, name):
    tenant = make_tenant()
    client = node(tenant)
    keys = BucketKeys(tenant.pk, 0).arguments
    with clean_hot.client() as admin:
        for n in range(1, 3):
            for _ in range(100):  # even a refused call costs
                with suppress(ResponseError):
                    client.execute_command("FCALL", f"neve_{name}", len(keys), *keys)
            assert taken(admin)[tenant.pk].spent_s >= n * 1e-3


def test_what_the_platform_decides_a_node_cannot_call(node):
    """Pins would pass the budget, restored blocks the quota, leases would stop the flush."""
    tenant = make_tenant()
    tier = HotTier(node(tenant).execute_command, tenant.pk)
    id_ = store(node(tenant), tenant)
    terms = BlockTerms(max_age_s=1)
    for call in (
        lambda: tier.pin([id_], 2_000_000_000),
        lambda: tier.unpin([id_]),
        lambda: tier.expire([id_]),
        lambda: tier.expire_due(),
        lambda: tier.evict(1),
        lambda: tier.retain([id_], terms, held=False, join=False, flush=True),
        lambda: tier.lease_dirty(lease_s=60, most_blocks=1, most_bytes=1),
        lambda: tier.flushed(1, [(id_, 64)]),
        lambda: tier.restore(1, 1, [RestoredBlock(id_, SIZE, 256, 64)]),
        lambda: tier.set_policy(hot_bytes=1 << 40, cold_bytes=0, terms=terms),
    ):
        with pytest.raises(NoPermissionError):
            call()
    assert hot.hot_tier(tenant.pk).usage().hot_blocks == 1


def test_another_tenants_keys_are_out_of_reach(node):
    a, b = make_tenant(), make_tenant()
    id_ = store(node(b), b)
    intruder, keys = node(a), BucketKeys(b.pk, 0)
    for command in (
        ("GET", keys.block(1, id_)),
        ("SET", keys.block(1, id_), "x"),
        ("DEL", keys.block(1, id_)),
        ("HGETALL", keys.bookkeeping[0]),
        ("HGETALL", keys.quota),
        ("FCALL", "neve_locate", 7, *keys.bookkeeping, "1", id_),
        ("FCALL", "neve_match", 7, *keys.bookkeeping, "1", id_),
        ("FCALL_RO", "neve_usage", 7, *keys.bookkeeping),
    ):
        with pytest.raises(NoPermissionError):
            intruder.execute_command(*command)


def test_tenant_1_does_not_reach_tenant_12(node):
    for n in range(12):
        Tenant.objects.create(slug=f"x{n}", name="x")
    low, high = make_tenant(), make_tenant()
    Tenant.objects.filter(pk=high.pk).update(slug="high")
    assert not any(
        not re.match(rf"[^~]*~{{t{low.pk}\.[^~]*$", pattern)
        for rule in hot_access.user_of(key_of(low)).rules()
        for pattern in re.findall(r"~\S+", rule)
    )
    with pytest.raises(NoPermissionError):
        node(low).get(f"{{t{low.pk}0.00}}:i")


def test_a_node_reads_its_quota_and_cannot_write_it_by_any_way(node):
    tenant = make_tenant(hot_bytes=5000, cold_bytes=7000)
    client, keys = node(tenant), BucketKeys(tenant.pk, 0)
    assert client.hget(keys.quota, "hot_bytes") == b"5000"
    for command in (
        ("HSET", keys.quota, "hot_bytes", 1 << 40),
        ("DEL", keys.quota),
        ("HINCRBY", keys.quota, "hot_bytes", 1),
        ("UNLINK", keys.quota),
        ("PERSIST", keys.quota),
        ("RENAME", keys.bookkeeping[3], keys.quota),
    ):
        with pytest.raises(NoPermissionError):
            client.execute_command(*command)
    # A function that is handed `:q` in place of the usage hash runs with the caller's rights.
    index, lru, dirty, _, quota, gone, expiry = keys.bookkeeping
    block = keys.block(1, b"i" * 16)
    client.set(block, bytes(SIZE), px=60_000)
    with pytest.raises(ResponseError):
        client.execute_command(
            "FCALL", "neve_commit", 8, index, lru, dirty, quota, quota, gone, expiry, block,
            1, b"i" * 16, SIZE, 256,
        )  # fmt: skip
    assert client.hgetall(keys.quota)[b"hot_bytes"] == b"5000"


def test_a_node_cannot_name_its_own_books(node):
    """It has the right to write them, since the functions that it calls do."""
    tenant = make_tenant()
    client, keys = node(tenant), BucketKeys(tenant.pk, 0)
    id_ = store(client, tenant)
    assert not set(keys.arguments) & set(keys.bookkeeping)
    index, ranks, *_ = keys.arguments
    for command in (
        ("HSET", index, "junk", "x" * 1000),
        ("HDEL", index, id_),
        ("HGETALL", index),
        ("HINCRBY", keys.arguments[3], "hot_bytes", -1000),
        ("ZADD", ranks, 1, id_),
        ("ZRANGE", ranks, 0, -1),
        ("SET", index, "x"),
        ("HSET", keys.block(1, id_), "junk", "x"),
        ("ZADD", keys.tag + b":b:junk", 1, "x"),
        ("UNLINK", *[keys.block(1, id_)] * 1000),
        ("DEL", keys.block(1, id_)),
        ("FUNCTION", "DUMP"),
        ("FUNCTION", "LIST", "WITHCODE"),
        ("ACL", "GETUSER", hot_access.user_of(key_of(tenant)).name),
        ("ACL", "LOG"),
        ("SLOWLOG", "GET"),
    ):
        with pytest.raises(NoPermissionError):
            client.execute_command(*command)
    assert hot.hot_tier(tenant.pk).usage().hot_bytes == SIZE


@pytest.mark.parametrize("buckets", [1, 32])
def test_a_name_of_a_key_is_as_long_as_a_block_s(node, settings, buckets):
    """Names take memory, and the platform reads them a thousand at a time."""
    settings.ENV = replace(settings.ENV, hot_buckets=buckets)
    tenant = make_tenant()
    client = node(tenant)
    for bucket in range(buckets):
        keys = BucketKeys(tenant.pk, bucket)
        for space in (1, 12, 4_294_967_295):
            key = keys.block(space, b"*\r\n \0?" + os.urandom(10))
            assert client.set(key, b"x", px=60_000)
            assert client.get(key) == b"x"
        client.execute_command("FCALL", "neve_usage", 7, *keys.arguments)
        for key in (
            keys.tag + b":b:1:" + b"k" * 1000,
            keys.tag[:-1] + b"0" * 99 + b"}:b:1:" + b"k" * 16,
        ):
            with pytest.raises(NoPermissionError):
                client.set(key, b"x", px=60_000)


def test_what_a_server_notes_of_commands_takes_nobodys_memory(node):
    admin = hot.admin()
    for option in ("acllog-max-len", "slowlog-max-len"):
        admin.config_set(option, 128)  # as a server of one's own has it
    provisioning.provision()
    client = node(make_tenant())
    before = admin.info("memory")["used_memory"]
    for n in range(16):
        with pytest.raises(NoPermissionError):
            client.get(b"%d" % n + bytes(4 << 20))
        with pytest.raises(AuthenticationError):
            client.execute_command("AUTH", b"%d" % n + bytes(4 << 20), "x")
    client.close()
    assert admin.info("memory")["used_memory"] < before + (16 << 20)


def test_nothing_but_the_data_path_is_allowed(node):
    tenant = make_tenant()
    client = node(tenant)
    for command in (
        ("CONFIG", "GET", "*"),
        ("CONFIG", "SET", "maxmemory", "1"),
        ("FLUSHALL",),
        ("FLUSHDB",),
        ("KEYS", "*"),
        ("SCAN", "0"),
        ("RANDOMKEY",),
        ("EVAL", "return 1", "0"),
        ("FUNCTION", "LIST"),
        ("FUNCTION", "FLUSH"),
        ("ACL", "LIST"),
        ("ACL", "SETUSER", "t1", "allkeys"),
        ("CLIENT", "LIST"),
        ("MONITOR",),
        ("SHUTDOWN",),
        ("INFO",),
        ("PUBLISH", "x", "y"),
        ("SELECT", "1"),
        ("EXPIRE", BucketKeys(tenant.pk, 0).bookkeeping[0], "1"),
    ):
        with pytest.raises(NoPermissionError):
            client.execute_command(*command)


def test_provisioning_repeats_and_repairs_a_restarted_valkey(node, clean_hot):
    tenant = make_tenant()
    key_of(tenant)
    assert provisioning.provision() == 1
    assert provisioning.provision() == 1
    clean_hot.wipe()
    with pytest.raises(AuthenticationError):
        node(tenant).ping()
    provisioning.provision()
    store(node(tenant), tenant)


def test_provisioning_again_leaves_connected_nodes_alone(node):
    tenant = make_tenant()
    connection = node(tenant).connection_pool.get_connection("PING")
    for _ in range(3):
        connection.send_command("STRLEN", BucketKeys(tenant.pk, 0).block(1, b"i" * 16))
        assert connection.read_response() == 0
        provisioning.provision()


def test_a_quota_change_holds_for_the_next_commit(node):
    tenant = make_tenant()
    services.set_quota(tenant=tenant, hot_bytes=SIZE - 1, cold_bytes=0, actor=SYSTEM)
    client, id_ = node(tenant), os.urandom(16)
    client.set(BucketKeys(tenant.pk, 0).block(1, id_), bytes(SIZE), px=60_000)
    tier = HotTier(client.execute_command, tenant.pk)
    assert tier.commit(1, [(id_, SIZE, 256)]) == [CommitOutcome.REFUSED]


def test_a_policy_change_reaches_the_hot_tier(clean_hot):
    tenant = make_tenant()
    set_policy(tenant=tenant, actor=SYSTEM, flush_mode="never", cold_ttl_s=60)
    numbers = hot.admin().hgetall(BucketKeys(tenant.pk, 0).quota)
    assert (numbers[b"flush_after_s"], numbers[b"ttl_s"]) == (b"-1", b"60")


def test_an_inactive_tenants_nodes_are_cut_off(node):
    tenant = make_tenant()
    client = node(tenant)
    client.ping()
    services.change_tenant(tenant=tenant, name="x", node_limit=1, is_active=False, actor=SYSTEM)
    with pytest.raises((valkey.exceptions.ConnectionError, AuthenticationError)):
        client.ping()


def test_a_valkey_that_is_down_does_not_stop_people(settings):
    settings.ENV = replace(settings.ENV, hot_url="valkey://127.0.0.1:1/0")
    tenant = make_tenant()
    assert Quota.unscoped.filter(tenant=tenant).exists()


def test_a_valkey_that_evicts_is_refused_with_the_command_that_fixes_it(settings, tmp_path):
    with ValkeyServer(Path(tmp_path), policy="allkeys-lru") as server:
        settings.ENV = replace(settings.ENV, hot_url=server.url)
        fix = (
            rf"valkey-cli -h 127.0.0.1 -p {server.port} --askpass "
            "CONFIG SET maxmemory-policy noeviction"
        )
        with pytest.raises(ImproperlyConfigured, match=fix):
            provisioning.provision()
        with pytest.raises(CommandError, match="allkeys-lru"):
            call_command("provision")
        with server.client() as client:
            client.config_set("maxmemory-policy", "noeviction")
        provisioning.provision()


def test_a_valkey_whose_clients_may_take_all_is_warned_of_with_the_commands(clean_hot, caplog):
    with clean_hot.client() as client:
        hot_setup.warn_if_unbounded()
        assert not caplog.records
        before = client.config_get("*")
        unbound = {
            "maxmemory-clients": "0",
            "proto-max-bulk-len": "512mb",
            "client-query-buffer-limit": "1gb",
            "client-output-buffer-limit": "normal 0 0 0",
            "timeout": "0",
            "tcp-keepalive": "0",
        }
        try:
            for name, value in unbound.items():
                client.config_set(name, value)
            hot_setup.warn_if_unbounded()
            said = caplog.text
            for name in unbound:
                fix = re.search(rf"--askpass CONFIG SET {name} \"?([^\"'\n]+)", said)
                client.config_set(name, fix[1])
            caplog.clear()
            hot_setup.warn_if_unbounded()
            assert not caplog.records
        finally:
            for name in unbound:
                client.config_set(name, before[name])


def test_quotas_that_promise_more_than_the_server_has_are_warned_of(clean_hot, caplog):
    with clean_hot.client() as client:
        limit = client.info("memory")["maxmemory"]
        hot_setup.warn_if_short(int(limit / 1.4))
        assert not caplog.records
        hot_setup.warn_if_short(limit)
    assert "raise maxmemory" in caplog.text


def test_a_tenant_at_its_quota_evicts_its_own_blocks_and_nobody_elses(node, clean_hot):
    greedy, quiet = (make_tenant(hot_bytes=5 * SIZE) for _ in range(2))
    for tenant in (greedy, quiet):
        set_policy(tenant=tenant, actor=SYSTEM, flush_mode="never")
    theirs = [store(node(quiet), quiet) for _ in range(5)]
    before = clean_hot.client().dbsize()
    own = [store(node(greedy), greedy) for _ in range(30)]
    tier = hot.hot_tier(quiet.pk)
    assert all(isinstance(found, Location) for found in tier.match(theirs))
    for id_ in theirs:
        assert node(quiet).get(BucketKeys(quiet.pk, 0).block(1, id_)) == bytes(SIZE)
    assert tier.usage().evicted_blocks == 0
    used = hot.hot_tier(greedy.pk).usage()
    assert (used.hot_bytes, used.evicted_blocks) == (5 * SIZE, 25)
    assert hot.hot_tier(greedy.pk).match(own[:25]) == [MissReason.EVICTED] * 25
    assert clean_hot.client().dbsize() - before < 15  # its five blocks and its bookkeeping


def test_a_tenant_whose_room_is_pinned_is_refused_with_the_reason(node):
    full, other = (make_tenant(hot_bytes=2 * SIZE) for _ in range(2))
    for tenant in (full, other):
        set_policy(tenant=tenant, actor=SYSTEM, flush_mode="never")
    pinned, theirs = [store(node(full), full) for _ in range(2)], store(node(other), other)
    hot.hot_tier(full.pk).pin(pinned, 4_000_000_000)
    client, id_ = node(full), os.urandom(16)
    client.set(BucketKeys(full.pk, 0).block(1, id_), bytes(SIZE), px=60_000)
    tier = HotTier(client.execute_command, full.pk)
    assert tier.commit(1, [(id_, SIZE, 256)]) == [CommitOutcome.REFUSED]
    assert tier.match([id_]) == [MissReason.QUOTA]
    assert tier.usage().refused_bytes == SIZE
    assert isinstance(hot.hot_tier(other.pk).match([theirs])[0], Location)
