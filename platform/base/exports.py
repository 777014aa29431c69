"""CSV that is sent while its rows are read: for REST exports and for the lists of pages.

No transaction or cursor of the database stays open while a slow client reads: `steps` reads some
rows at a time. A connection that ends without its last chunk was cut: the export is not complete.
"""

import csv
import io
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

from asgiref.sync import sync_to_async
from django.core.handlers.asgi import ASGIRequest
from django.db import connections
from django.http import HttpRequest, HttpResponseBase, StreamingHttpResponse
from rest_framework.renderers import JSONRenderer

from base.turns import Turns

CSV = "text/csv"
# A spreadsheet takes a cell that begins so for a formula. Source: OWASP, CSV Injection.
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
# Rows of a step wait in memory for a client that does not read.
TURNS = Turns(8, "8 exports of your tenant are under way in this web process: read these first.")
# asgiref's own thread serves Django's signals, which every request waits for: a slow step would
# hold up all of them.
_POOL = ThreadPoolExecutor(4, thread_name_prefix="neve-export")


def streamed(
    request: HttpRequest,
    steps: Iterator[bytes],
    *,
    tenant_ids: frozenset[int] | None,
    file_name: str,
    content_type: str = CSV,
) -> HttpResponseBase:
    """The answer whose `steps` are read as they are sent. `tenant_ids`: whose turn it takes; None:
    an operator, without a limit. Raises Problem (throttled)."""
    is_async = isinstance(request, ASGIRequest)
    if tenant_ids is not None:
        TURNS.require(tenant_ids)
    return StreamingHttpResponse(
        _sent_by_asgi(steps, tenant_ids) if is_async else steps,
        content_type=f"{content_type}; charset=utf-8",
        headers={"Content-Disposition": f'attachment; filename="{file_name}"'},
    )


def csv_lines(rows: list[list[Any]]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()


def cell(value: Any) -> Any:
    """A value as CSV holds it: JSON for nested ones, and no formula."""
    if isinstance(value, (dict, list)):
        value = JSONRenderer().render(value).decode() if value else ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str) and value.startswith(FORMULA):
        return f"'{value}"
    return value


async def _sent_by_asgi(
    steps: Iterator[bytes], tenant_ids: frozenset[int] | None
) -> AsyncGenerator[bytes, None]:
    # Django would collect a plain iterator whole before it sends the first byte.
    read = sync_to_async(_next, thread_sensitive=False, executor=_POOL)
    with nullcontext() if tenant_ids is None else TURNS.turn(tenant_ids):
        while (step := await read(steps)) is not None:
            yield step


def _next(steps: Iterator[bytes]) -> bytes | None:
    try:
        return next(steps, None)
    finally:
        connections.close_all()  # the next step may have another thread
