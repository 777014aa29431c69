"""/api/v1/spaces/{id}/removals: which blocks of a space left, as a page or as a stream.

For routers that choose a node by its KV. Ids only: the platform knows no tokens.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from django.http import StreamingHttpResponse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework.decorators import action
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response
from valkey.exceptions import ValkeyError

from base.problems import Problem
from cacheapi.base.access import caller
from cacheapi.base.removals import CURSOR, RemovalsSerializer, ids_of, page, require_cursor
from cacheapi.teams.events import LAST_EVENT_ID, RETRY_MS, EventStreamRenderer
from catalog.models import Space
from events.access import Reader, reader_of
from events.feed import HEARTBEAT_S, POLL_S, Ended, Watched, feed, require_room
from events.removals import removals_reading
from storage.hot_removals import PAGE_IDS, Removals


class RemovalsAction:
    """For the view of spaces."""

    @extend_schema(
        parameters=[
            OpenApiParameter("format", exclude=True),
            OpenApiParameter("after", CURSOR, description="`cursor` of the last answer; none: now"),
            OpenApiParameter(
                LAST_EVENT_ID,
                CURSOR,
                OpenApiParameter.HEADER,
                description="of a stream: `id` of the last line received; goes before `after`",
            ),
        ],
        responses={
            (200, "application/json"): RemovalsSerializer,
            (200, "text/event-stream"): OpenApiTypes.STR,
        },
    )
    @action(
        methods=["get"],
        detail=True,
        url_path="removals",
        renderer_classes=(JSONRenderer, EventStreamRenderer),
    )
    def removals(self, request: Request, pk: str) -> Any:
        """Which blocks of the space left both tiers behind a cursor: by quota, age, deletion or
        damage. Without a cursor the answer is empty, and its cursor is now.

        With `Accept: text/event-stream` a stream: events `removals` with `{"removed": [...]}`, and
        `reset` when earlier removals are not all known any more.
        """
        space: Space = self.get_object()  # type: ignore[attr-defined]  # of the view
        is_stream = getattr(request.accepted_renderer, "format", "") == "event-stream"
        after = request.query_params.get("after")
        name = "after"
        if is_stream and LAST_EVENT_ID in request.headers:
            name, after = LAST_EVENT_ID, request.headers[LAST_EVENT_ID]
        require_cursor(name, after)
        if is_stream:
            who = caller(request)
            reader = reader_of(who, request.session.session_key if request.session else None)
            require_room(reader)
            return StreamingHttpResponse(
                _lines(reader, space.tenant_id, space.pk, after),
                content_type="text/event-stream",
                # Proxies that buffer would hold lines back.
                headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
            )
        return Response(page(space.tenant_id, space.pk, after))


async def _lines(
    reader: Reader, tenant_id: int, space_id: int, cursor: str | None
) -> AsyncIterator[str]:
    """Every piece carries an `id`, so that whoever connects again goes on from there. While Valkey
    does not answer, the stream has heartbeats only."""
    loop, stream, question = asyncio.get_running_loop(), Watched(reader), None
    told_at = loop.time()
    try:
        with feed().watching(stream):
            yield f"retry: {RETRY_MS}\n\n"
            while stream.end is None:
                question = question or removals_reading().ask(tenant_id, space_id, cursor)
                await asyncio.wait([question], timeout=POLL_S)
                found = None
                if question.done():
                    found, question = _answer(question), None
                if found is not None and (found.ids or found.is_reset or cursor is None):
                    cursor, told_at = found.cursor, loop.time()
                    yield _told(found)
                elif loop.time() - told_at >= HEARTBEAT_S:
                    told_at = loop.time()
                    yield ": still here\n\n"
                if question is None and (found is None or len(found.ids) < PAGE_IDS):
                    # All streams at the same moment: those at one cursor ask once.
                    await asyncio.sleep(POLL_S - loop.time() % POLL_S)
            raise stream.end
    except (Ended, Problem) as end:
        body = json.dumps({"type": f"/problems/{end.kind}", "detail": str(end)})
        yield f"event: end\ndata: {body}\n\n"


def _answer(question: asyncio.Task[Removals]) -> Removals | None:
    """None: Valkey does not answer."""
    try:
        return question.result()
    except ValkeyError:
        return None


def _told(found: Removals) -> str:
    if found.is_reset:
        return f"id: {found.cursor}\nevent: reset\ndata: {{}}\n\n"
    if not found.ids:
        return f": begins\nid: {found.cursor}\n\n"
    body = json.dumps({"removed": ids_of(found)}, separators=(",", ":"))
    return f"id: {found.cursor}\nevent: removals\ndata: {body}\n\n"
