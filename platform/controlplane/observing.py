"""Context for logs, metrics and traces of WebSockets, tasks and worker processes.

For HTTP requests see `base.requests`. Importing this module connects Celery's signals.
"""

import logging
import time
from collections.abc import Awaitable, Callable
from logging.config import dictConfig
from typing import Any
from uuid import uuid4

from celery import Task, signals
from django.conf import settings
from structlog.contextvars import (
    bind_contextvars,
    bound_contextvars,
    clear_contextvars,
    get_contextvars,
)

from base import tracing
from base.counting import PROCESS, TASK_SECONDS
from base.logs import QUIET

REQUEST_HEADER = "neve_request_id"  # Celery message header: id of the request that started the task

_began: dict[str, float] = {}  # id of a running task → time.monotonic()


class ObservedSockets:
    """ASGI: binds `socket` to a WebSocket's log lines, and counts the open ones."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        PROCESS.sockets += 1
        try:
            with bound_contextvars(socket=uuid4().hex[:12]):
                await self.app(scope, receive, send)
        finally:
            PROCESS.sockets -= 1


@signals.setup_logging.connect
def _keep_logging(loglevel: int, **_: Any) -> None:
    """Keep Django's logging: Celery skips its own setup if this signal has a receiver.

    `--loglevel DEBUG` also shows Celery's lines for periodic tasks.
    """
    dictConfig(settings.LOGGING)
    if loglevel < logging.INFO:
        for name in (None, *QUIET):
            logging.getLogger(name).setLevel(loglevel)


@signals.before_task_publish.connect
def _send_request_id(headers: dict[str, Any], **_: Any) -> None:
    if request_id := get_contextvars().get("request_id"):
        headers[REQUEST_HEADER] = request_id


@signals.task_prerun.connect
def _begin_task(task_id: str, task: "Task[..., object]", kwargs: dict[str, Any], **_: Any) -> None:
    clear_contextvars()
    bound = {
        "task_id": task_id,
        "kind": _kind(task),
        "job": kwargs.get("job_id"),
        "request_id": task.request.get(REQUEST_HEADER),
    }
    bind_contextvars(**{name: value for name, value in bound.items() if value})
    _began[task_id] = time.monotonic()


@signals.task_postrun.connect
def _end_task(task_id: str, task: "Task[..., object]", **_: Any) -> None:
    if (began := _began.pop(task_id, None)) is not None:
        TASK_SECONDS.add(time.monotonic() - began, _kind(task))
    clear_contextvars()


def _kind(task: "Task[..., object]") -> str:
    return str(task.name.removeprefix("workers."))


@signals.worker_process_init.connect  # every process of a pool, also of a solo pool
def _start_process(**_: Any) -> None:
    tracing.start("neve-worker")
    PROCESS.start()


@signals.worker_ready.connect
@signals.beat_init.connect
def _start_parent(**_: Any) -> None:
    PROCESS.start()


@signals.worker_process_shutdown.connect
def _end_process(**_: Any) -> None:
    PROCESS.send()
