"""Django's ASGI handler, with middleware and sync views in one thread of a pool.

Django's own starts a thread for each request, which connects to the database anew, and leaves and
enters it five times: more CPU time than the view of a heartbeat. Async views work as before.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from typing import Any
from weakref import WeakValueDictionary

from asgiref.sync import sync_to_async
from django.conf import settings
from django.core.handlers.asgi import ASGIHandler
from django.db import close_old_connections
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.urls import Resolver404, resolve

from controlplane.page_process import PageProcess

# Requests at a time; others wait. Each has a connection to the database, kept for CONN_MAX_AGE.
THREADS = 64
_POOL = ThreadPoolExecutor(THREADS, thread_name_prefix="neve-web")
# Whole pages at a time, beside one live answer. Those of a tenant's people wait for each other, in
# however many sessions; so do those of one session of an operator, and those of strangers.
PAGES = 2

# By name, since nothing in `platform/` imports what stands above it.
shared = import_module("dashboard.shared")


class PooledHandler(ASGIHandler):
    """Live requests of pages wait without a thread, for answers that they share."""

    def __init__(self) -> None:
        super().__init__()
        self.pages = [PageProcess(PAGES + 1) for _ in range(settings.ENV.page_processes)]
        self.answers = shared.Answers(_in_pool, at_once=max(1, len(self.pages)))
        self.turns = asyncio.Semaphore(PAGES)
        self.lanes: WeakValueDictionary[Any, asyncio.Lock] = WeakValueDictionary()

    def load_middleware(self, is_async: bool = False) -> None:
        super().load_middleware(is_async=False)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        # Without a ThreadSensitiveContext, which would start a thread for Django's signals.
        await self.handle(scope, receive, send)

    async def get_response_async(self, request: HttpRequest) -> HttpResponseBase:
        if not _is_page(request):
            return await self._here(request)
        answer: HttpResponseBase = await self.answers.answer(request, self._whole, self._in_turn)
        return answer

    async def _in_turn(self, request: HttpRequest) -> HttpResponseBase:
        session = request.COOKIES.get(settings.SESSION_COOKIE_NAME, "")
        viewer = await self.answers.viewer(session) if session else None
        name = session if viewer is not None and shared.is_operators(viewer) else viewer
        lane = self.lanes.setdefault(name, asyncio.Lock())
        async with lane, self.turns:
            return await self._whole(request)

    async def _whole(self, request: HttpRequest) -> HttpResponseBase:
        """Also for a browser that leaves: its turn is over when the work is. Otherwise somebody who
        asks and leaves, again and again, takes every thread."""
        work = asyncio.ensure_future(self._page(request))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            await asyncio.wait([work])
            raise

    async def _page(self, request: HttpRequest) -> HttpResponseBase:
        """Of the page process with the fewest requests, if there is one."""
        process = max(self.pages, key=lambda each: each.free, default=None)
        rendered = process and await _in_pool(process.render, vars(request)["scope"])
        if not rendered:
            return await self._here(request)
        answer = HttpResponse(rendered.body, status=rendered.status, headers=rendered.headers)
        answer.cookies = rendered.cookies
        if rendered.viewer is not None:
            answer.neve_viewer = rendered.viewer  # type: ignore[attr-defined]
        return answer

    async def _here(self, request: HttpRequest) -> HttpResponseBase:
        response: HttpResponseBase = await _in_pool(self.get_response, request)
        return response


def _is_page(request: HttpRequest) -> bool:
    """Whether it asks for a page of the dashboard: not for a file, which may be a long stream."""
    if request.method not in ("GET", "HEAD") or "format" in request.GET:
        return False
    try:
        return hasattr(resolve(request.path_info).func, "is_page")
    except Resolver404:
        return False


async def _in_pool(work: Callable[..., Any], *arguments: Any) -> Any:
    return await sync_to_async(_run, thread_sensitive=False, executor=_POOL)(work, *arguments)


def _run(work: Callable[..., Any], *arguments: Any) -> Any:
    close_old_connections()  # Django's signals are sent in another thread
    try:
        return work(*arguments)
    finally:
        close_old_connections()
