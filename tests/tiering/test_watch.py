"""A tenant that takes the hot tier from others is cut off; what it left in nobody's books goes."""

import os
import socket
from contextlib import ExitStack
from dataclasses import replace

import pytest
from django.core.management import CommandError, call_command
from valkey.exceptions import AuthenticationError, ResponseError
from valkey.exceptions import ConnectionError as ValkeyConnectionError

from base.problems import Problem
from catalog import hot_access
from catalog.models import Job
from neve.errors import MissReason
from neve.formats.keys import BucketKeys
from neve.index.tier import CommitOutcome, HotTier, Location
from retention import provisioning
from storage import hot
from support.rows import make_session
from support.tenant_world import World
from tenants import services
from tenants.audit import SYSTEM
from tenants.models import AuditEvent, Tenant
from tiering import recovery
from tiering.watch import run
from tiering.watch.links import Link, Share, judge

pytestmark = pytest.mark.integration

MIB = 1 << 20
NODE_LOST = (ValkeyConnectionError, AuthenticationError)


@pytest.fixture
def tight(settings):
    """A tenant of 4 MiB may hold 2 more, and have 8 connections."""
    settings.ENV = replace(settings.ENV, hot_uncommitted_mib=2, hot_connections=8)


@pytest.fixture
def pair(storage, tight):
    """Two tenants with a node each."""
    return Node(), Node()


@pytest.fixture
def memory():
    return run.Memory()


class Node(World):
    """With a key's Valkey user."""

    def __init__(self):
        super().__init__(flush_mode="never")
        self.key, _ = services.issue_key(tenant=self.tenant, role="node", name="node")
        make_session(self.space, key=self.key)
        hot_access.provision_user(self.key)
        self.keys = BucketKeys(self.tenant.pk, 0)

    def connect(self):
        where = hot.admin().connection_pool.connection_kwargs
        return type(hot.admin())(
            where["host"],
            where["port"],
            **hot_access.user_of(self.key).login,
        )

    def put(self):
        client, id_ = self.connect(), os.urandom(16)
        client.set(self.keys.block(self.space.pk, id_), bytes(1000), nx=True, px=60_000)
        tier = HotTier(client.execute_command, self.tenant.pk)
        return tier.commit(self.space.pk, [(id_, 1000, 16)])[0]

    @property
    def cut_off_reason(self):
        return Tenant.objects.get(pk=self.tenant.pk).cut_off_reason


def look(memory, times=3):
    for _ in range(times):
        run.look(memory)


def test_bytes_in_nobodys_books_are_found_and_removed(pair, memory):
    greedy, quiet = pair
    own = greedy.store(3)
    client = greedy.connect()
    for n in range(20):
        client.set(greedy.keys.block(1, b"junk%012d" % n), bytes(MIB))  # without an end
    hot.admin().set(b"{t%d.elsewhere}:b:junk" % greedy.tenant.pk, bytes(MIB))
    look(memory)
    assert "the limit is 6" in greedy.cut_off_reason
    with pytest.raises(NODE_LOST):
        client.ping()
    left = set(hot.admin().scan_iter(match=f"{{t{greedy.tenant.pk}.*"))
    blocks = {greedy.keys.block(greedy.space.pk, id_) for id_ in own}
    assert blocks <= left
    assert left - blocks <= set(greedy.keys.all_bookkeeping)
    assert all(isinstance(found, Location) for found in greedy.tier.match(own))
    assert quiet.cut_off_reason == ""
    assert quiet.put() is CommitOutcome.STORED
    event = AuditEvent.unscoped.get(action="tenant.cut_off")
    assert (event.tenant_id, event.actor_name) == (greedy.tenant.pk, "system")
    look(memory)
    assert AuditEvent.unscoped.filter(action="tenant.cut_off").count() == 1


def test_trouble_with_one_tenant_leaves_the_others_watched(pair, memory, monkeypatch):
    broken, greedy = pair
    real = services.cut_off

    def cut_off(*, tenant, reason):
        if tenant.pk == broken.tenant.pk:
            raise LookupError("broken")
        return real(tenant=tenant, reason=reason)

    monkeypatch.setattr(services, "cut_off", cut_off)
    for node in pair:
        client = node.connect()
        for n in range(20):
            client.set(node.keys.block(1, b"junk%012d" % n), bytes(MIB))
    look(memory)
    assert (broken.cut_off_reason, "the limit is 6" in greedy.cut_off_reason) == ("", True)


def test_what_is_soon_committed_is_nobodys_harm(pair, memory):
    node, _ = pair
    client = node.connect()
    for n in range(5):
        client.set(node.keys.block(node.space.pk, b"%016d" % n), bytes(MIB), px=60_000)
    look(memory, 4)
    assert node.cut_off_reason == ""
    assert client.ping()


def test_a_lower_quota_makes_nobody_guilty(pair, memory):
    node, _ = pair
    node.store(1000)
    services.set_quota(tenant=node.tenant, hot_bytes=1000, cold_bytes=0, actor=SYSTEM)
    look(memory, 4)
    assert node.cut_off_reason == ""


def test_books_that_tiny_blocks_fill_are_built_anew(pair, memory):
    greedy, _ = pair
    services.set_quota(tenant=greedy.tenant, hot_bytes=MIB, cold_bytes=0, actor=SYSTEM)
    for first in range(0, 30_000, 1000):
        ids = [n.to_bytes(16, "big") for n in range(first, first + 1000)]
        pipe = hot.admin().pipeline(transaction=False)
        for id_ in ids:
            pipe.set(greedy.keys.block(greedy.space.pk, id_), b"x", px=60_000)
        pipe.execute()
        greedy.tier.commit(greedy.space.pk, [(id_, 1, 1) for id_ in ids])
    look(memory)
    assert greedy.cut_off_reason
    assert greedy.tier.usage().hot_blocks == 0
    assert Job.unscoped.get(kind="rebuild_tenant").tenant_id == greedy.tenant.pk


def test_books_that_got_another_name_are_nobodys_and_go_with_their_blocks(pair, memory):
    """As after an update, or with a new pepper, of a Valkey that ran on."""
    node, _ = pair
    ids = node.store(5)
    hot.admin().set(recovery.INDEXED, recovery.run_id() + b" of another name")
    assert not recovery.index_is_whole()
    for n in range(20):
        hot.admin().set(node.keys.tag + b":b:old%d" % n, bytes(MIB))
    look(memory)
    assert node.cut_off_reason == ""  # nobody's fault
    recovery.rebuild_all()
    assert recovery.index_is_whole()
    assert list(hot.admin().scan_iter(match=node.keys.tag + b":b:*")) == []
    assert set(node.tier.match(ids)) == {MissReason.NEVER_STORED}
    assert node.put() is CommitOutcome.STORED


def test_a_tenant_that_is_cut_off_stays_out_until_it_is_let_in(pair, memory):
    greedy, _ = pair
    services.cut_off(tenant=greedy.tenant, reason="a test")
    provisioning.provision()
    with pytest.raises(NODE_LOST):
        greedy.connect().ping()
    with pytest.raises(Problem, match="a test"):
        greedy.open_session()
    call_command("let_in", greedy.tenant.slug)
    with pytest.raises(CommandError, match="not cut off"):
        call_command("let_in", greedy.tenant.slug)
    greedy.open_session()
    hot_access.provision_user(greedy.key)
    assert greedy.put() is CommitOutcome.STORED
    look(memory)
    assert greedy.cut_off_reason == ""


@pytest.mark.parametrize("function", ["match", "usage"])
@pytest.mark.parametrize("keys", ["own", "none"])
def test_a_call_that_holds_everybody_up_is_the_last_one(pair, memory, function, keys):
    greedy, quiet = pair
    look(memory, 1)
    brought = greedy.keys.arguments if keys == "own" else ()
    with pytest.raises(ResponseError, match="TOOMANY"):
        greedy.connect().execute_command(
            "FCALL", f"neve_{function}", len(brought), *brought, *[bytes(16)] * 100_001
        )
    look(memory, 1)
    assert "100,000 values" in greedy.cut_off_reason
    assert quiet.cut_off_reason == ""


def test_calls_that_take_the_server_s_time_from_others_cut_off(pair, memory, monkeypatch):
    greedy, quiet = pair
    clock = iter(range(1000))  # a look every 0.2 s
    monkeypatch.setattr(run, "_now_s", lambda: next(clock) / 5)
    ids, client = [os.urandom(16) for _ in range(1000)], greedy.connect()
    hogs = HotTier(client.execute_command, greedy.tenant.pk)
    monkeypatch.setattr(run, "BUSY_S", 0.7)
    for _ in range(6):
        run.look(memory)
        assert greedy.cut_off_reason == ""  # it takes the time from nobody
        for _ in range(900):
            hogs.match(ids)
    with quiet.connect() as there:
        assert there.ping()
        run.look(memory)  # sees that there is another
        run.look(memory)
        assert greedy.cut_off_reason == ""
        for _ in range(4):
            for _ in range(900):
                hogs.match(ids)
            run.look(memory)
            if greedy.cut_off_reason:
                break
    assert "of a hot server's time" in greedy.cut_off_reason
    assert quiet.cut_off_reason == ""


def test_keys_of_no_bytes_weigh_what_they_take(pair, memory):
    greedy, quiet = pair
    services.set_quota(tenant=greedy.tenant, hot_bytes=MIB, cold_bytes=0, actor=SYSTEM)
    pipe = greedy.connect().pipeline(transaction=False)
    for n in range(40_000):
        pipe.set(greedy.keys.block(1, b"%016d" % n), b"")
    pipe.execute()
    look(memory)
    assert "the limit is 3" in greedy.cut_off_reason
    assert not list(hot.admin().scan_iter(match=greedy.keys.tag + b":b:*"))
    assert quiet.cut_off_reason == ""


@pytest.mark.parametrize("count", [1, 15])
def test_a_connection_with_a_long_name_cuts_off(pair, memory, count):
    """15 of 10 MiB make a list of clients that the server sends nobody."""
    greedy, quiet = pair
    assert quiet.connect().ping()
    name = b"n" * (10 * MIB if count > 1 else 2000)
    before = hot.admin().info("memory")["used_memory"]
    with ExitStack() as stack:
        for _ in range(count):
            client = stack.enter_context(greedy.connect())
            client.execute_command("HELLO", "2", "SETNAME", name)
        look(memory, 1)
    assert "name" in greedy.cut_off_reason
    assert quiet.cut_off_reason == ""
    assert quiet.put() is CommitOutcome.STORED
    assert hot.admin().info("memory")["used_memory"] < before + 20 * MIB


def test_connections_above_the_share_end_and_far_above_it_the_tenant_is_cut_off(pair, memory):
    greedy, quiet = pair
    mine = [greedy.connect() for _ in range(10)]
    for client in mine:
        client.ping()
    look(memory)
    assert greedy.cut_off_reason == ""
    assert _count(greedy) == 8
    for client in mine:
        client.ping()  # connects again
    with ExitStack() as stack:
        for _ in range(2):
            more = [stack.enter_context(greedy.connect()) for _ in range(20)]
            for client in more:
                client.ping()
            look(memory, 1)
    assert "connections, its share is 8" in greedy.cut_off_reason
    assert _count(greedy) == 0
    assert quiet.put() is CommitOutcome.STORED


def _count(node):
    name = hot_access.user_of(node.key).name
    return sum(client["user"] == name for client in hot.admin().client_list())


def test_connections_that_nobody_logs_in_on_end(storage, tight, memory):
    where = hot.admin().connection_pool.connection_kwargs
    with socket.create_connection((where["host"], where["port"])) as silent:
        told = next(c for c in hot.admin().client_list() if c["cmd"] == "NULL")
        link = Link.of(told)
        assert link.is_stranger
        share = Share(8, 1 << 30)
        assert judge([link], share).kill == set()
        assert judge([replace(link, idle_s=10)], share).kill == {link.number}
        many = [replace(link, number=n, idle_s=n < 100) for n in range(200)]
        left = {each.number for each in many} - judge(many, share).kill
        assert left >= set(range(100, 200))  # who logs in right now
        assert len(left) == 128
        ours = [replace(each, is_platforms=True, idle_s=99) for each in many]
        assert judge(ours, share).kill == set()
        silent.close()


def test_the_largest_buffers_above_the_share_go():
    links = [Link(n, 7, False, 0, "set", n * MIB) for n in range(1, 11)]
    verdict = judge(links, Share(100, 40 * MIB))
    assert verdict.kill == {10, 9}
    assert verdict.excessive == {}
    assert judge(links, Share(100, 20 * MIB)).excessive.keys() == {7}
    assert Share.of(connections=1000, max_clients=992, max_memory=1 << 30) == Share(248, 64 * MIB)
