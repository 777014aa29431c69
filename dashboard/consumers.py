"""Live hints that something changed; the page then fetches the numbers over HTTP.

A hint is `{"seq": n}` and nothing else: a lost one delays the page, and none can leak a number of
another tenant.
"""

from contextlib import suppress
from typing import Any

from channels.db import database_sync_to_async
from channels.generic.websocket import AsyncJsonWebsocketConsumer
from redis.exceptions import RedisError

from base import log_events
from tenants.principal import principal_of_person

ALL_TENANTS = "usage"
SIGNED_OUT = 4401  # close code; the page then goes to the login
TRY_AGAIN = 1013  # close code (RFC 6455's registry); the page reconnects by itself


def group_of(tenant_id: int) -> str:
    return f"{ALL_TENANTS}.t{tenant_id}"


class UsageConsumer(AsyncJsonWebsocketConsumer):
    """Joins the groups of the tenants that the signed-in person sees."""

    joined: tuple[str, ...] = ()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """A bus that stops answering ends the socket with one line in the log; pages come back."""
        try:
            await super().__call__(scope, receive, send)
        except RedisError as error:
            log_events.LIVE_SOCKET_CLOSED.log(error=type(error).__name__)
            await self.close(TRY_AGAIN)

    async def connect(self) -> None:
        # Accepted before refused: a browser shows a page only the close code of an open socket.
        await self.accept()
        user: Any = self.scope.get("user")  # Channels wraps it lazily
        if user is None or not user.is_authenticated:
            await self.close(SIGNED_OUT)
            return
        person = await database_sync_to_async(principal_of_person)(user)
        ids = person.tenant_ids
        self.joined = (ALL_TENANTS,) if ids is None else tuple(map(group_of, ids))
        for group in self.joined:
            await self.channel_layer.group_add(group, self.channel_name)
        await self.send_json({"hello": True})

    async def disconnect(self, code: int) -> None:
        with suppress(RedisError):  # memberships end by themselves
            for group in self.joined:
                await self.channel_layer.group_discard(group, self.channel_name)

    async def receive_json(self, content: Any, **_: Any) -> None:
        """Pages only listen."""

    async def usage_changed(self, event: dict[str, Any]) -> None:
        await self.send_json({"seq": event["seq"]})
