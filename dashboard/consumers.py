"""Live hints that something changed; the page then fetches the numbers over HTTP.

A hint is `{"seq": n}` and nothing else: a lost one delays the page, and none can leak a number of
another tenant. A process has one place in the group of changes, whatever the number of its sockets.
"""

import asyncio
from contextlib import suppress
from time import monotonic
from typing import Any
from weakref import WeakKeyDictionary

from channels.db import database_sync_to_async
from channels.generic.websocket import AsyncJsonWebsocketConsumer
from channels.layers import get_channel_layer
from redis.exceptions import RedisError

from base import live, log_events
from tenants import sign_ins
from tenants.principal import principal_of_person
from tenants.second_factor import may_enter

SIGNED_OUT = 4401  # close code; the page then goes to the login
TRY_AGAIN = 1013  # close code (RFC 6455's registry); the page reconnects by itself
LEAST_BETWEEN_S = 1.0  # hints to one socket: its page fetches no more often
RECHECK_S = 60.0  # between looks at a socket's session
REJOIN_S = 3600.0  # Channels forgets a member of a group after a day


class LiveConsumer(AsyncJsonWebsocketConsumer):
    """Hears of changes of the tenants that the signed-in person sees."""

    channel_layer_alias = ""  # the hub listens for all sockets
    hears_heartbeats = True
    tenant_ids: frozenset[int] | None = frozenset()
    told_at = 0.0
    is_due = False
    user_id = 0
    checked_at = 0.0

    async def connect(self) -> None:
        # Accepted before refused: a browser shows a page only the close code of an open socket.
        await self.accept()
        user: Any = self.scope.get("user")  # Channels wraps it lazily
        if user is None or not user.is_authenticated:
            await self.close(SIGNED_OUT)
            return
        if not await self.may_stay(user):
            await self.close(SIGNED_OUT)
            return
        person = await database_sync_to_async(principal_of_person)(user)
        self.tenant_ids, self.user_id = person.tenant_ids, user.pk
        try:
            await hub().join(self)
        except (RedisError, OSError, TimeoutError) as error:
            log_events.LIVE_SOCKET_CLOSED.log(error=type(error).__name__)
            await self.close(TRY_AGAIN)
            return
        await self.send_json({"hello": True})

    async def disconnect(self, code: int) -> None:
        await hub().leave(self)

    async def receive_json(self, content: Any, **_: Any) -> None:
        """Pages only listen."""

    async def may_stay(self, user: Any = None) -> bool:
        """Whether the session still is signed in, with the second factor if it must have one."""
        session, self.checked_at = self.scope.get("session"), monotonic()
        if session is None:  # of a test
            return True
        if user is not None and not await database_sync_to_async(may_enter)(user, session):
            return False
        is_alive = database_sync_to_async(sign_ins.is_alive)
        return await is_alive(session.session_key, self.user_id or user.pk)

    async def recheck(self) -> None:
        if not await self.may_stay():
            with suppress(Exception):  # it closed meanwhile
                await self.close(SIGNED_OUT)

    def sees(self, tenants: list[int | None]) -> bool:
        return self.tenant_ids is None or not self.tenant_ids.isdisjoint(tenants)

    def note(self, seq: int) -> None:
        """Tells the page now, or as soon as LEAST_BETWEEN_S allows: then the newest `seq`."""
        self.seq = seq
        if not self.is_due:
            self.is_due = True
            wait_s = max(self.told_at + LEAST_BETWEEN_S - monotonic(), 0.0)
            loop = asyncio.get_running_loop()
            loop.call_later(wait_s, lambda: hub().start(self.tell()))

    async def tell(self) -> None:
        self.told_at, self.is_due = monotonic(), False
        if monotonic() - self.checked_at > RECHECK_S:  # the hint that it ended may be lost
            await self.recheck()
        with suppress(Exception):  # the browser left meanwhile: servers have each their own error
            await self.send_json({"seq": self.seq})


class QuietConsumer(LiveConsumer):
    """Of a page that shows nothing of what nodes report."""

    hears_heartbeats = False


class Hub:
    """The open sockets of an event loop, and the one task that listens for them."""

    def __init__(self) -> None:
        self.sockets: set[LiveConsumer] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        self.lock = asyncio.Lock()
        self.listener: asyncio.Task[None] | None = None
        self.layer: Any = None

    async def join(self, socket: LiveConsumer) -> None:
        """Returns once no hint can be missed. Raises RedisError, OSError when the bus is down."""
        async with self.lock:
            if self.listener is None or self.listener.done():
                self.layer = get_channel_layer()
                self.channel = await self.layer.new_channel()
                await self.layer.group_add(live.CHANGES, self.channel)
                self.listener = asyncio.create_task(self._listen())
            self.sockets.add(socket)

    async def leave(self, socket: LiveConsumer) -> None:
        self.sockets.discard(socket)
        async with self.lock:
            if self.sockets or self.listener is None:
                return
            listener, self.listener = self.listener, None
            listener.cancel()
            with suppress(RedisError, OSError):  # memberships end by themselves
                await self.layer.group_discard(live.CHANGES, self.channel)

    def start(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _listen(self) -> None:
        """A bus that stops answering ends the sockets with one line in the log; pages come back."""
        try:
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout(REJOIN_S):
                        while True:
                            self._hear(await self.layer.receive(self.channel))
                await self.layer.group_add(live.CHANGES, self.channel)
        except (RedisError, OSError) as error:
            log_events.LIVE_SOCKET_CLOSED.log(error=type(error).__name__)
            sockets, self.sockets = self.sockets, set()
            for socket in sockets:
                with suppress(Exception):  # it closed meanwhile
                    await socket.close(TRY_AGAIN)

    def _hear(self, message: dict[str, Any]) -> None:
        people, told = message.get("people", ()), message["tenants"]
        quiet = [each for each in told if each not in message.get("only_heartbeats", ())]
        for socket in self.sockets:
            if socket.user_id in people:
                self.start(socket.recheck())
            tenants = told if socket.hears_heartbeats else quiet
            if tenants and socket.sees(tenants):
                socket.note(message["seq"])


_HUBS: WeakKeyDictionary[asyncio.AbstractEventLoop, Hub] = WeakKeyDictionary()


def hub() -> Hub:
    """That of the running event loop: a web process has one."""
    loop = asyncio.get_running_loop()
    if loop not in _HUBS:
        _HUBS[loop] = Hub()
    return _HUBS[loop]
