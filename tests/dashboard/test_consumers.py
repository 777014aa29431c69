"""Hints reach those who may see the tenant, over the real bus."""

import logging
from typing import Any

import pytest
from channels.db import database_sync_to_async
from django.contrib.auth.models import AnonymousUser

from base import live
from catalog.sessions import Heartbeat, record_heartbeat
from dashboard.consumers import SIGNED_OUT, TRY_AGAIN
from support.rows import make_person, make_session, make_space, make_tenant
from support.sockets import Socket
from tenants.scope import tenant_scope

pytestmark = [pytest.mark.integration, pytest.mark.django_db(transaction=True)]


@database_sync_to_async
def beat(tenant, session) -> None:
    with tenant_scope(tenant.pk):
        heartbeat = Heartbeat(1, {"requested_tokens": 1}, {}, {}, "closed")
        record_heartbeat(session_id=session.pk, heartbeat=heartbeat)


@database_sync_to_async
def stage() -> tuple[Any, Any, dict[str, Any]]:
    acme, _ = make_tenant("acme"), make_tenant("globex")
    people = {
        "operator": make_person("operator", staff=True),
        "member": make_person("member", acme="viewer"),
        "other": make_person("other", globex="team"),
    }
    return acme, make_session(make_space(acme)), people


async def settle(socket: Socket) -> None:
    """Greeted, and past the hints of what `stage` made."""
    assert await socket.hear() == {"hello": True}
    while not await socket.receive_nothing(1.5):
        await socket.hear()


async def test_nobody_is_told_to_sign_in():
    socket = await Socket.open(AnonymousUser())
    closed = await socket.receive_output(5)
    assert (closed["type"], closed["code"]) == ("websocket.close", SIGNED_OUT)


async def test_a_heartbeat_is_a_hint_to_those_who_see_the_tenant(valkey_bus):
    acme, session, people = await stage()
    sockets = {name: await Socket.open(person) for name, person in people.items()}
    for socket in sockets.values():
        await settle(socket)
    await beat(acme, session)
    for name in ("operator", "member"):
        assert set(await sockets[name].hear()) == {"seq"}
    assert await sockets["other"].receive_nothing(0.5)
    for socket in sockets.values():
        await socket.leave()


async def test_a_page_without_figures_of_nodes_hears_of_changes_only(valkey_bus):
    acme, session, people = await stage()
    usage, quiet = [
        await Socket.open(people["member"], path) for path in ("ws/usage", "ws/changes")
    ]
    for socket in (usage, quiet):
        await settle(socket)
    await beat(acme, session)
    assert set(await usage.hear()) == {"seq"}
    assert await quiet.receive_nothing(0.5)
    await database_sync_to_async(live.hint_on_commit)(acme.pk)
    for socket in (usage, quiet):
        assert set(await socket.hear()) == {"seq"}
        await socket.leave()


async def test_an_idle_socket_stays_open(valkey_bus):
    """Longer than a blocking read of the bus and redis-py's own timeout, 5 s each."""
    acme, session, people = await stage()
    socket = await Socket.open(people["operator"])
    await settle(socket)
    assert await socket.receive_nothing(6.5, 0.1)
    await beat(acme, session)
    assert set(await socket.hear()) == {"seq"}
    await socket.leave()


async def test_a_bus_that_stops_asks_the_page_to_come_back(valkey_bus, caplog):
    _, _, people = await stage()
    socket = await Socket.open(people["operator"])
    assert await socket.hear() == {"hello": True}
    with caplog.at_level(logging.WARNING, "neve.live"):
        valkey_bus.kill()
        try:
            closed = await socket.receive_output(60)
            again = await Socket.open(people["operator"])
            assert (await again.receive_output(60))["code"] == TRY_AGAIN
        finally:
            valkey_bus.restart()
    assert (closed["type"], closed["code"]) == ("websocket.close", TRY_AGAIN)
    assert "live_socket_closed" in caplog.text
    await socket.wait(30)
