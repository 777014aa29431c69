"""`GET …/export`: a list as CSV or JSON Lines, with the list's filters and order.

Rows are read in steps of `STEP` and sent as they come, so memory is bounded and no transaction or
cursor of the database stays open while a slow client reads. A row that changes meanwhile may be
missed or sent twice, as in a walk over pages. A connection that ends without its last chunk was
cut: the export is not complete.
"""

import csv
import io
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any, cast

from asgiref.sync import sync_to_async
from django.core.handlers.asgi import ASGIRequest
from django.db import connections
from django.db.models import QuerySet
from django.http import HttpResponseBase, StreamingHttpResponse
from drf_spectacular.utils import OpenApiParameter, OpenApiResponse, extend_schema
from rest_framework.decorators import action
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request

from base.turns import Turns
from cacheapi.base.access import caller
from cacheapi.base.pages import Order, order_of
from cacheapi.base.queries import malformed
from cacheapi.base.viewsets import RowsView

STEP = 500
CSV, JSONL = "text/csv", "application/jsonl"
FORMATS = {"csv": CSV, "jsonl": JSONL}
# A spreadsheet takes a cell that begins so for a formula. Source: OWASP, CSV Injection.
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
# Rows of a step wait in memory for a client that does not read.
TURNS = Turns(8, "8 exports of your tenant are under way in this web process: read these first.")
# asgiref's own thread serves Django's signals, which every request waits for: a slow step would
# hold up all of them.
_POOL = ThreadPoolExecutor(4, thread_name_prefix="neve-export")


class Csv(JSONRenderer):  # of problem documents; the rows are rendered here
    media_type, format = CSV, "csv"


class JsonLines(JSONRenderer):
    media_type, format = JSONL, "jsonl"


class Exported(RowsView):
    """For views of lists: adds `export`. Needs `list`."""

    serializer_class: Any

    @extend_schema(
        parameters=[
            OpenApiParameter(
                "format", str, enum=list(FORMATS), description="csv unless Accept says otherwise"
            )
        ],
        responses={
            (200, media_type): OpenApiResponse(str, description="the rows; CSV has a header")
            for media_type in FORMATS.values()
        },
    )
    @action(methods=["get"], detail=False, renderer_classes=[JSONRenderer, Csv, JsonLines])
    def export(self, request: Request) -> HttpResponseBase:
        """All rows of the list as CSV or JSON Lines. Texts in CSV that a spreadsheet would take
        for formulas begin with an apostrophe."""
        accepted = cast(Any, request).accepted_renderer.format
        asked = request.query_params.get("format", accepted if accepted in FORMATS else "csv")
        if asked not in FORMATS:
            raise malformed("format", f"need one of {', '.join(FORMATS)}, got {asked[:60]!r}")
        rows = self.filter_queryset(self.get_queryset())
        order = order_of(request, rows, self)
        return sent(request, self._steps(rows, order, asked), asked)

    def _steps(self, rows: QuerySet[Any], order: Order, form: str) -> Iterator[bytes]:
        names = list(self.serializer_class().fields)
        if form == "csv":
            yield csv_lines([names])
        ahead = order.sorted(rows)
        found = list(ahead[:STEP])
        while found:
            data = self.serializer_class(found, many=True).data
            if form == "csv":
                yield csv_lines([[cell(row[name]) for name in names] for row in data])
            else:
                yield b"".join(JSONRenderer().render(row) + b"\n" for row in data)
            if len(found) < STEP:
                return
            found = list(order.after(ahead, order.place_of(found[-1]))[:STEP])


def sent(request: Request, steps: Iterator[bytes], form: str) -> HttpResponseBase:
    """The answer of `GET …/<name>/export`, whose parts are read as they are sent. `form`: of
    FORMATS."""
    is_async = isinstance(request._request, ASGIRequest)
    if (tenant_ids := caller(request).tenant_ids) is not None:
        TURNS.require(tenant_ids)
    name = request.path.rsplit("/", 2)[-2]
    return StreamingHttpResponse(
        _sent_by_asgi(steps, tenant_ids) if is_async else steps,
        content_type=f"{FORMATS[form]}; charset=utf-8",
        headers={"Content-Disposition": f'attachment; filename="{name}.{form}"'},
    )


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


def csv_lines(rows: list[list[Any]]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()


def cell(value: Any) -> Any:
    if isinstance(value, (dict, list)):
        value = JSONRenderer().render(value).decode() if value else ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str) and value.startswith(FORMULA):
        return f"'{value}"
    return value
