"""Hints over the bus: they name the tenants, and hold up no heartbeat."""

import asyncio
import queue

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from channels.layers import get_channel_layer
from redis.exceptions import RedisError

from base import live
from catalog import jobs
from contexts import services
from support.rows import make_context, make_key, make_space, make_tenant
from support.servers import wait_until
from tenants.audit import SYSTEM

pytestmark = [pytest.mark.integration, pytest.mark.django_db(transaction=True)]


def test_web_processes_are_told_which_tenants_changed(valkey_bus):
    @async_to_sync
    async def listen():
        layer = get_channel_layer()
        channel = await layer.new_channel()
        await layer.group_add(live.CHANGES, channel)
        await sync_to_async(live.hint_on_commit)(7)
        return await layer.receive(channel)

    message = listen()
    assert message["type"] == "rows.changed"
    assert 7 in message["tenants"]  # beside those that earlier tests of the process touched
    assert message["seq"] > 0


@pytest.fixture
def announcer(monkeypatch):
    """Another process's: it starts without a thread, and waits a little after a failure."""
    announcer = live._Announcer()
    monkeypatch.setattr(live, "_ANNOUNCER", announcer)
    return announcer


@pytest.fixture
def sent(monkeypatch):
    """Tenants of each turn, in a queue."""
    sent = queue.Queue()

    async def send(changed):
        sent.put(set(changed))

    monkeypatch.setattr(live, "_send", send)
    return sent


def test_many_heartbeats_are_one_hint(announcer, sent, monkeypatch):
    monkeypatch.setattr(live, "EVERY_S", 0.3)
    live.hint_on_commit(7)
    assert sent.get(timeout=30) == {7}
    for _ in range(50):  # while the thread pauses
        live.hint_on_commit(7)
        live.hint_on_commit(8)
    hints = [sent.get(timeout=30)]
    while set().union(*hints) != {7, 8}:  # on a busy machine the pause may end amid the loop
        hints.append(sent.get(timeout=30))
    assert len(hints) <= 10


def test_a_heartbeat_among_changes_is_no_mere_heartbeat(announcer, sent, monkeypatch):
    monkeypatch.setattr(live, "EVERY_S", 3600)
    live.hint_on_commit(7)
    assert sent.get(timeout=30)  # the thread pauses now
    for hint in (live.hint_heartbeat_on_commit, live.hint_on_commit):
        hint(7)
        live.hint_heartbeat_on_commit(8)
    assert announcer._waiting == {7: False, 8: True}


def test_a_bus_that_is_down_holds_up_no_heartbeat_and_is_told_later(announcer, monkeypatch, caplog):
    tries = queue.Queue()

    async def send(hints):
        tries.put(hints)
        if tries.qsize() < 2:
            raise RedisError

    monkeypatch.setattr(live, "_send", send)
    monkeypatch.setattr(live, "QUIET_S", 0.1)
    live.hint_on_commit(7)
    wait_until(lambda: "hint_failed" in caplog.text, what="the log's line")
    live.hint_on_commit(8)
    wait_until(lambda: tries.qsize() == 2, what="the next hint")


def test_a_forked_process_announces_with_a_thread_of_its_own(announcer, sent):
    live.hint_on_commit(7)
    assert sent.get(timeout=30) == {7}
    announcer.begin()  # as after a fork
    live.hint_on_commit(8)
    assert sent.get(timeout=30) == {8}


async def test_a_bus_that_stands_still_is_tried_twice_not_eleven_times(settings):
    tries = 0

    async def accept(reader, writer):
        nonlocal tries
        tries += 1
        await reader.read()  # never answers
        writer.close()

    config = settings.CHANNEL_LAYERS["default"]["CONFIG"]
    async with await asyncio.start_server(accept, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        host = config["hosts"][0] | {"address": f"redis://127.0.0.1:{port}/0"}
        layer = type(get_channel_layer())(**config | {"hosts": [host | {"socket_timeout": 0.1}]})
        with pytest.raises(RedisError):
            await layer.send("a-channel", {"type": "rows.changed"})
        await layer.close_pools()
    assert tries == 2


def test_what_waits_is_sent_before_the_process_ends(announcer, sent):
    live.hint_on_commit(7)
    announcer.end()
    assert not announcer._thread.is_alive()
    assert sent.get_nowait() == {7}


def test_changes_of_keys_jobs_and_contexts_are_hints_too(announcer, sent, monkeypatch):
    monkeypatch.setattr(jobs, "_send", lambda job: None)
    tenant = make_tenant("acme")
    context = make_context(make_space(tenant))
    changes = (
        (lambda: make_key(tenant, "team"), tenant.pk),
        (lambda: jobs.enqueue("reconcile"), None),  # of the platform
        (lambda: services.change(context=context, actor=SYSTEM, name="b"), tenant.pk),
    )
    for change, whose in changes:
        announcer.begin()
        while not sent.empty():
            sent.get_nowait()
        change()
        seen = sent.get(timeout=30)
        while whose not in seen:
            seen = sent.get(timeout=30)
