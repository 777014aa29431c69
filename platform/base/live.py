"""Change hints over the channel layer: a page that gets one fetches the data over HTTP.

Hints may be lost. While valkey-bus is down, one heartbeat in QUIET_S waits for it, up to WAIT_S.
"""

import asyncio
import time

from asgiref.sync import async_to_sync
from channels.layers import get_channel_layer
from django.db import transaction

from base import log_events

WAIT_S = 1.0
QUIET_S = 5.0
EVENTS_EVERY_S = 0.1

_quiet_until = 0.0
_hinted_at = 0.0


def announce_usage_on_commit(tenant_id: int) -> None:
    """On commit, hint to groups "usage" (operators) and "usage.t<id>" that usage changed."""
    transaction.on_commit(lambda: _announce("usage.changed", "usage", f"usage.t{tenant_id}"))


def hint_events_on_commit() -> None:
    """On commit, hint to the group "events" that there are some, at most ten times a second."""
    transaction.on_commit(_hint_events)


def _hint_events() -> None:
    global _hinted_at
    now = time.monotonic()
    if now - _hinted_at >= EVENTS_EVERY_S:
        _hinted_at = now
        _announce("events.emitted", "events")


def _announce(kind: str, *groups: str) -> None:
    global _quiet_until
    layer = get_channel_layer()
    if layer is None or time.monotonic() < _quiet_until:
        return
    message = {"type": kind, "seq": time.time_ns() // 1_000_000}

    async def send() -> None:
        async with asyncio.timeout(WAIT_S):
            for group in groups:
                await layer.group_send(group, message)

    try:
        async_to_sync(send)()
    except Exception as error:  # a failed hint must not fail a heartbeat
        _quiet_until = time.monotonic() + QUIET_S
        log_events.HINT_FAILED.log(error=type(error).__name__)
