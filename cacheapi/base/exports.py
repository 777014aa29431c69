"""`GET …/export`: a list as CSV or JSON Lines, with the list's filters and order.

Rows are read in steps of `STEP` and sent as they come (`base.exports`), so memory is bounded. A row
that changes meanwhile may be missed or sent twice, as in a walk over pages.
"""

from collections.abc import Iterator
from typing import Any, cast

from django.db.models import QuerySet
from django.http import HttpResponseBase
from drf_spectacular.utils import OpenApiParameter, OpenApiResponse, extend_schema
from rest_framework.decorators import action
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request

from base.exports import CSV, cell, csv_lines, streamed
from cacheapi.base.access import caller
from cacheapi.base.pages import Order, order_of
from cacheapi.base.queries import malformed
from cacheapi.base.viewsets import RowsView

STEP = 500
JSONL = "application/jsonl"
FORMATS = {"csv": CSV, "jsonl": JSONL}


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
    name = request.path.rsplit("/", 2)[-2]
    return streamed(
        request._request,
        steps,
        tenant_ids=caller(request).tenant_ids,
        file_name=f"{name}.{form}",
        content_type=FORMATS[form],
    )
