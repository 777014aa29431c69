"""Reads removals for the streams of a web process, so that no tenant waits for another's streams.

A tenant has one request to Valkey under way, however many streams it has; streams of one space at
the same cursor share its answer. So a tenant takes at most one of the threads, and they know no
database. Access is checked by the feed's poller (`events.feed`), which does not wait for Valkey.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from weakref import WeakKeyDictionary, WeakValueDictionary

from storage.hot_removals import Removals, removals_behind

_threads = ThreadPoolExecutor(8, thread_name_prefix="neve-removals")


class RemovalsReading:
    """Of one event loop, to which all methods belong."""

    def __init__(self) -> None:
        self._turns: WeakValueDictionary[int, asyncio.Lock] = WeakValueDictionary()  # by tenant
        self._under_way: dict[tuple[int, str | None], asyncio.Task[Removals]] = {}

    def ask(self, tenant_id: int, space_id: int, cursor: str | None) -> asyncio.Task[Removals]:
        """As `removals_behind`. The task is others', too: don't cancel it."""
        asked = (space_id, cursor)
        if (task := self._under_way.get(asked)) is None:
            task = asyncio.create_task(self._read(tenant_id, *asked), name="neve-removals")
            self._under_way[asked] = task
            task.add_done_callback(partial(self._end, asked))
        return task

    def _end(self, asked: tuple[int, str | None], task: asyncio.Task[Removals]) -> None:
        del self._under_way[asked]
        if not task.cancelled():
            task.exception()  # those who asked may have gone

    async def _read(self, tenant_id: int, space_id: int, cursor: str | None) -> Removals:
        turn = self._turns.setdefault(tenant_id, asyncio.Lock())
        async with turn:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(
                _threads, removals_behind, tenant_id, space_id, cursor
            )


_of_loops: WeakKeyDictionary[asyncio.AbstractEventLoop, RemovalsReading] = WeakKeyDictionary()


def removals_reading() -> RemovalsReading:
    """That of the running event loop."""
    return _of_loops.setdefault(asyncio.get_running_loop(), RemovalsReading())
