"""Django's ASGI handler, with middleware and sync views in one thread of a pool.

Django's own starts a thread for each request, which connects to the database anew, and leaves and
enters it five times: more CPU time than the view of a heartbeat. Async views work as before.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from typing import Any

from asgiref.sync import sync_to_async
from django.core.handlers.asgi import ASGIHandler
from django.db import close_old_connections
from django.http import HttpRequest
from django.http.response import HttpResponseBase

# Requests at a time; others wait. Each has a connection to the database, kept for CONN_MAX_AGE.
THREADS = 64
_POOL = ThreadPoolExecutor(THREADS, thread_name_prefix="neve-web")


# By name, since nothing in `platform/` imports what stands above it.
shared = import_module("dashboard.shared")


class PooledHandler(ASGIHandler):
    """Live requests of pages wait without a thread, for answers that they share."""

    def __init__(self) -> None:
        super().__init__()
        self.answers = shared.Answers(_in_pool)

    def load_middleware(self, is_async: bool = False) -> None:
        super().load_middleware(is_async=False)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        # Without a ThreadSensitiveContext, which would start a thread for Django's signals.
        await self.handle(scope, receive, send)

    async def get_response_async(self, request: HttpRequest) -> HttpResponseBase:
        answer: HttpResponseBase = await self.answers.answer(request, self._respond)
        return answer

    async def _respond(self, request: HttpRequest) -> HttpResponseBase:
        response: HttpResponseBase = await _in_pool(self.get_response, request)
        return response


async def _in_pool(work: Callable[..., Any], *arguments: Any) -> Any:
    return await sync_to_async(_run, thread_sensitive=False, executor=_POOL)(work, *arguments)


def _run(work: Callable[..., Any], *arguments: Any) -> Any:
    close_old_connections()  # Django's signals are sent in another thread
    try:
        return work(*arguments)
    finally:
        close_old_connections()
