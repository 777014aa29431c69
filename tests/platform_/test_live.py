"""Hints over the bus: they reach both groups, and a bus that is down costs next to nothing."""

import time

import pytest
from asgiref.sync import async_to_sync
from channels.layers import get_channel_layer

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


def test_a_bus_that_is_down_is_asked_once_in_a_while(settings):
    layers = {
        "default": {
            "BACKEND": "channels_redis.core.RedisChannelLayer",
            "CONFIG": {"hosts": [{"address": "redis://127.0.0.1:1/0"}]},
        }
    }
    settings.CHANNEL_LAYERS = layers
    from channels.layers import channel_layers

    channel_layers.backends.clear()
    try:
        began = time.monotonic()
        live.announce_usage_on_commit(7)
        assert time.monotonic() - began < live.WAIT_S + 1
        assert live._quiet_until > time.monotonic()
        began = time.monotonic()
        for _ in range(100):
            live.announce_usage_on_commit(7)
        assert time.monotonic() - began < 0.5
    finally:
        channel_layers.backends.clear()
