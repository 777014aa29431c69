"""Hints over the bus: they reach both groups, and a bus that is down costs next to nothing."""

import asyncio

import pytest
from asgiref.sync import async_to_sync
from channels.layers import get_channel_layer
from redis.exceptions import RedisError

from base import live

pytestmark = [pytest.mark.integration, pytest.mark.django_db(transaction=True)]


@pytest.fixture(autouse=True)
def awake(monkeypatch):
    monkeypatch.setattr(live, "_quiet_until", 0.0)


def test_operators_and_the_tenants_own_people_are_told(valkey_bus):
    @async_to_sync
    async def listen():
        layer = get_channel_layer()
        channels = [await layer.new_channel() for _ in range(3)]
        for group, channel in zip(("usage", "usage.t7", "usage.t8"), channels, strict=True):
            await layer.group_add(group, channel)
        from asgiref.sync import sync_to_async

        await sync_to_async(live.announce_usage_on_commit)(7)
        return [await layer.receive(channel) for channel in channels[:2]]

    for message in listen():
        assert message["type"] == "usage.changed"
        assert message["seq"] > 0


def test_a_bus_that_is_down_is_asked_once_in_a_while(settings, monkeypatch):
    layers = {
        "default": {
            "BACKEND": "channels_redis.core.RedisChannelLayer",
            "CONFIG": {"hosts": [{"address": "redis://127.0.0.1:1/0"}]},
        }
    }
    settings.CHANNEL_LAYERS = layers
    from channels.layers import channel_layers

    channel_layers.backends.clear()
    bus = type(get_channel_layer())
    asked, send = [], bus.group_send

    async def group_send(layer, group, message):
        asked.append(group)
        await send(layer, group, message)

    monkeypatch.setattr(bus, "group_send", group_send)
    monkeypatch.setattr(live, "QUIET_S", 3600.0)
    try:
        for _ in range(100):
            live.announce_usage_on_commit(7)
        assert len(asked) == 1
        monkeypatch.setattr(live, "_quiet_until", live._quiet_until - live.QUIET_S)
        live.announce_usage_on_commit(7)
        assert len(asked) == 2
    finally:
        channel_layers.backends.clear()


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
            await layer.send("a-channel", {"type": "usage.changed"})
        await layer.close_pools()
    assert tries == 2
