"""One poller for all event streams of a web process.

Streams hold neither a thread nor a database connection while they wait. The poller numbers and
reads new events once a second, and at once after a hint over the channel layer; it keeps the last
RING of them, from which streams take what their callers see. A stream that is further behind reads
pages from the database, one at a time: a slow reader costs a query now and then, and no memory.

All methods belong to the event loop, unless they say otherwise.
"""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import islice
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from channels.layers import get_channel_layer
from django.conf import settings
from django.db import Error as DatabaseError
from django.db import connections

from base import log_events
from base.problems import Problem
from events import order
from events.access import Reader, lost_access
from events.models import Event
from events.reading import Interest, page

Result = TypeVar("Result")

POLL_S = 1.0
CHECK_S = 5.0  # after a key's end its streams go on for at most so long
HEARTBEAT_S = 15.0
RING = 2000
PAGE = 200
MOST_OF_READER = 10  # streams of one key or person in this process
SHARE = 4  # of NEVE_STREAMS, one tenant has at most a fourth
HINTS_ANEW_S = 3600.0  # channels_redis forgets members of a group after a day

# The poller's thread keeps its connection; pages are read by others, which do not.
_poller = ThreadPoolExecutor(1, thread_name_prefix="neve-events")
_pages = ThreadPoolExecutor(4, thread_name_prefix="neve-events-page")
_open: Counter[str] = Counter()  # reader's id → its streams, in all loops
# Tenants that readers see → their streams: a tenant may have many keys.
_of_tenants: Counter[frozenset[int] | None] = Counter()


def require_room(reader: Reader) -> None:
    """From any thread, before a stream begins. Raises Problem (too-many-streams)."""
    most = settings.ENV.streams
    of_tenant = max(MOST_OF_READER, most // SHARE)
    if _open[reader.id] >= MOST_OF_READER:
        raise Problem(
            "too-many-streams", f"You have {MOST_OF_READER} open streams of this web process."
        )
    if reader.tenant_ids is not None and _of_tenants[reader.tenant_ids] >= of_tenant:
        raise Problem(
            "too-many-streams", f"Your tenant has {of_tenant} open streams of this web process."
        )
    if _open.total() >= most:
        raise Problem("too-many-streams", f"This web process has {most} open streams.")


@contextmanager
def counted(reader: Reader) -> Iterator[None]:
    """Inside, the reader has one more stream. Raises Problem (too-many-streams)."""
    require_room(reader)
    counts: list[tuple[Counter[Any], Any]] = [
        (_open, reader.id),
        (_of_tenants, reader.tenant_ids),
    ]
    for count, name in counts:
        count[name] += 1
    try:
        yield
    finally:
        for count, name in counts:
            count[name] -= 1
            if not count[name]:
                del count[name]


class Ended(Exception):
    """A stream ends from the platform's side. `kind`: as the client is told."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind, self.detail = kind, detail


class Watched:
    """A stream of a reader, whose access the poller checks."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.end: Ended | None = None  # once it must end
        self.news = asyncio.Event()  # its end, or perhaps events


class Stream(Watched):
    """A reader's place in the feed."""

    def __init__(self, reader: Reader, interest: Interest, after: int) -> None:
        super().__init__(reader)
        self.interest, self.after = interest, after


class Feed:
    """The poller of one event loop. It runs while there are streams."""

    def __init__(self) -> None:
        self._streams: set[Watched] = set()
        self._ring: deque[Event] = deque(maxlen=RING)
        self._from = self._until = 0  # the ring has every event behind `_from`, up to `_until`
        self._hint = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def follow(
        self, reader: Reader, interest: Interest, after: int
    ) -> AsyncGenerator[tuple[list[Event], int]]:
        """New events behind number `after`, and the number up to which the reader has all of
        theirs. An empty list at least every HEARTBEAT_S.

        Raises Ended, and Problem (too-many-streams, events-gone).
        """
        stream = Stream(reader, interest, after)
        with self.watching(stream):
            while True:
                yield await self._next(stream)

    @contextmanager
    def watching(self, stream: Watched) -> Iterator[None]:
        """Inside, the stream counts, and gets an `end` at most CHECK_S after its reader's access
        ended. For streams of other things than events, too. Raises Problem (too-many-streams).
        """
        with counted(stream.reader):
            self._streams.add(stream)
            if self._task is None or self._task.done():
                self._task = asyncio.create_task(self._run(), name="neve-events")
            try:
                yield
            finally:
                self._streams.discard(stream)

    async def _next(self, stream: Stream) -> tuple[list[Event], int]:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + HEARTBEAT_S
        while True:
            stream.news.clear()
            if stream.end:
                raise stream.end
            found, stream.after = await self._behind(stream)
            if found:
                return found, stream.after
            try:
                async with asyncio.timeout_at(deadline):
                    await stream.news.wait()
            except TimeoutError:
                return [], stream.after

    async def _behind(self, stream: Stream) -> tuple[list[Event], int]:
        after = stream.after
        if after < self._from:
            return await _in(_pages, _page, stream.interest, after, PAGE)
        recent = (event for event in self._ring if (event.sequence or 0) > after)
        found = list(islice(filter(stream.interest.takes, recent), PAGE))
        if len(found) == PAGE:
            return found, found[-1].sequence or 0
        return found, max(self._until, after)

    async def _run(self) -> None:
        """Until the last stream has gone."""
        hints = asyncio.create_task(self._listen(), name="neve-events-hints")
        loop = asyncio.get_running_loop()
        checked_at = loop.time()
        try:
            self._ring.clear()
            self._from = self._until = await self._surely(order.last)
            self._wake()
            while self._streams:
                self._hint.clear()
                self._add(await self._surely(_new, self._until))
                if loop.time() - checked_at >= CHECK_S:
                    checked_at = loop.time()
                    await self._end_lost()
                with suppress(TimeoutError):
                    async with asyncio.timeout(POLL_S):
                        await self._hint.wait()
        finally:
            hints.cancel()
            for stream in self._streams:  # the poller failed: clients connect again
                stream.end = stream.end or Ended("internal", "The platform has a fault.")
            self._wake()
            await _in(_poller, connections.close_all)

    def _wake(self) -> None:
        for stream in self._streams:
            stream.news.set()

    def _add(self, found: list[Event]) -> None:
        if not found:
            return
        self._ring.extend(found)
        self._until = found[-1].sequence or 0
        if len(self._ring) == RING:
            self._from = (self._ring[0].sequence or 0) - 1
        self._wake()

    async def _end_lost(self) -> None:
        readers = {stream.reader for stream in self._streams}
        lost = await self._surely(lost_access, readers)
        for stream in self._streams:
            if stream.reader in lost:
                stream.end = Ended("unauthorized", "The key, session or membership has ended.")
                stream.news.set()

    async def _listen(self) -> None:
        layer = get_channel_layer()
        while layer is not None:
            try:
                channel = await layer.new_channel()
                await layer.group_add("events", channel)
                async with asyncio.timeout(HINTS_ANEW_S):
                    while True:
                        await layer.receive(channel)
                        self._hint.set()
            except TimeoutError:
                continue
            except Exception as error:  # the poller goes on without hints
                log_events.EVENT_HINTS_LOST.log(error=type(error).__name__)
                await asyncio.sleep(5.0)

    async def _surely(self, call: Callable[..., Result], *arguments: Any) -> Result:
        """On the poller's thread, again until the database answers. Streams wait meanwhile."""
        pause_s = POLL_S
        while True:
            try:
                return await _in(_poller, call, *arguments)
            except DatabaseError as error:
                log_events.EVENT_POLL_FAILED.log(error=error)
                await _in(_poller, connections.close_all)
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, 15.0)


_feeds: WeakKeyDictionary[asyncio.AbstractEventLoop, Feed] = WeakKeyDictionary()


def feed() -> Feed:
    """The feed of the running event loop."""
    loop = asyncio.get_running_loop()
    if loop not in _feeds:
        _feeds[loop] = Feed()
    return _feeds[loop]


async def _in(pool: ThreadPoolExecutor, call: Callable[..., Result], *arguments: Any) -> Result:
    return await asyncio.get_running_loop().run_in_executor(pool, call, *arguments)


def _new(after: int) -> list[Event]:
    order.number_all()
    rows = Event.unscoped.select_related("tenant").filter(sequence__gt=after)
    return list(rows.order_by("sequence")[:RING])


def _page(interest: Interest, after: int, most: int) -> tuple[list[Event], int]:
    try:
        return page(interest, after, most)
    finally:
        connections.close_all()
