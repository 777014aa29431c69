"""/api/v1/events: what happened, as a list of pages or as a stream of server-sent events.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

import json
import re
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import django_filters
from django.db.models import QuerySet
from django.http import StreamingHttpResponse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import serializers
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request

from base.problems import Problem
from cacheapi.base.access import caller
from cacheapi.base.filters import TenantFilter, TextFilter
from cacheapi.base.queries import malformed
from cacheapi.base.viewsets import UUID, ReadOnlyView
from events import order
from events.access import Reader, reader_of
from events.feed import Ended, feed, require_room
from events.kinds import KINDS
from events.models import Event
from events.reading import Interest, envelope, kinds_of, require_kept

LAST_EVENT_ID = "Last-Event-ID"
RETRY_MS = 2000
NUMBER = re.compile(r"[0-9]{1,18}")


class SubjectSerializer(serializers.Serializer[Any]):
    type = serializers.CharField()
    id = serializers.CharField()
    name = serializers.CharField()


class EventSerializer(serializers.Serializer[Any]):
    """One thing that happened."""

    id = serializers.UUIDField(help_text="the same in lists, streams and webhooks")
    sequence = serializers.IntegerField(help_text="grows; the id of a line of a stream")
    type = serializers.CharField(help_text="such as context.stored; more may come")
    at = serializers.DateTimeField()
    tenant = serializers.CharField(allow_null=True, help_text="slug; null: of the platform")
    subject = SubjectSerializer()
    data = serializers.DictField(  # type: ignore[assignment]  # no field of the class itself
        help_text="facts of this type; members may be added"
    )

    def to_representation(self, event: Event) -> dict[str, Any]:
        return envelope(event)


class AfterFilter(django_filters.CharFilter):
    schema = {"type": "integer", "minimum": 0, "maximum": 10**18 - 1}


class EventFilter(TenantFilter):
    types = TextFilter(method="by_types", help_text="types or patterns: node.down,context.*")
    subject = TextFilter(field_name="subject_id", help_text="id of the object")
    after = AfterFilter(method="by_after", help_text="sequence: only events behind this one")

    def by_types(self, rows: QuerySet[Event], name: str, text: str) -> QuerySet[Event]:
        return rows.filter(kind__in=kinds_from(text))

    def by_after(self, rows: QuerySet[Event], name: str, text: str) -> QuerySet[Event]:
        return rows.filter(sequence__gt=number_from("after", text))


class EventStreamRenderer(JSONRenderer):
    """Its name for content negotiation; renders refusals, which are JSON."""

    media_type = "text/event-stream"
    format = "event-stream"
    charset = None


class EventsView(ReadOnlyView):
    """What happened to contexts, nodes, jobs, quotas and policies, in one order for all readers."""

    model = Event
    lookup_field = "uuid"
    lookup_value_regex = UUID
    orderings = ("-sequence",)
    never_null = ("sequence",)
    refusals = {"list": (404, 410)}  # 404: a stream of a tenant that the caller does not see
    serializer_class = EventSerializer
    filterset_class = EventFilter
    renderer_classes = (JSONRenderer, EventStreamRenderer)

    def get_renderers(self) -> list[Any]:
        return super().get_renderers()[: None if self.action == "list" else 1]

    def visible(self) -> QuerySet[Event]:
        return super().visible().filter(sequence__isnull=False)

    @extend_schema(
        parameters=[
            OpenApiParameter("format", exclude=True),
            OpenApiParameter(
                LAST_EVENT_ID,
                AfterFilter.schema,
                OpenApiParameter.HEADER,
                description="of a stream: `id` of the last line received; goes before `after`",
            ),
        ],
        responses={
            (200, "application/json"): EventSerializer(many=True),
            (200, "text/event-stream"): OpenApiTypes.STR,
        },
    )
    def list(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        """A page of events, newest first; with `Accept: text/event-stream` a stream of new ones.

        A stream without `after` and Last-Event-ID begins now. Answers 410 if events behind the
        given number are not kept any more.
        """
        if getattr(request.accepted_renderer, "format", "") == "event-stream":
            return self._stream(request)
        answer = super().list(request, *args, **kwargs)
        if (after := request.query_params.get("after")) is not None:
            require_kept(caller(request).tenant_ids, number_from("after", after))
        return answer

    def _stream(self, request: Request) -> StreamingHttpResponse:
        given = request.query_params
        for name in (*self.pagination_class.names,):
            if name in given:
                raise malformed(name, "a stream has no pages, leave it out")
        who = caller(request)
        interest = Interest(
            tenant_ids=(
                frozenset({who.tenant(given["tenant"]).pk}) if "tenant" in given else who.tenant_ids
            ),
            kinds=kinds_from(given["types"]) if "types" in given else None,
            subject=given.get("subject"),
        )
        if LAST_EVENT_ID in request.headers:
            after = number_from(LAST_EVENT_ID, request.headers[LAST_EVENT_ID])
        elif "after" in given:
            after = number_from("after", given["after"])
        else:
            after = order.last()
        require_kept(interest.tenant_ids, after)
        reader = reader_of(who, request.session.session_key if request.session else None)
        require_room(reader)
        return StreamingHttpResponse(
            _lines(reader, interest, after),
            content_type="text/event-stream",
            # Proxies that buffer would hold lines back.
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )


async def _lines(reader: Reader, interest: Interest, after: int) -> AsyncIterator[str]:
    """Every piece carries an `id`, so that whoever connects again goes on from there."""
    yield f"retry: {RETRY_MS}\nid: {after}\n\n"
    try:
        async with aclosing(feed().follow(reader, interest, after)) as found:
            async for events, until in found:
                for event in events:
                    body = json.dumps(envelope(event), separators=(",", ":"))
                    yield f"id: {event.sequence}\nevent: {event.kind}\ndata: {body}\n\n"
                if not events:
                    yield f": still here\nid: {until}\n\n"
    except (Ended, Problem) as end:
        body = json.dumps({"type": f"/problems/{end.kind}", "detail": str(end)})
        yield f"event: end\ndata: {body}\n\n"


def kinds_from(text: str) -> frozenset[str]:
    """Raises Problem (malformed) for a type or pattern that matches no kind."""
    kinds: set[str] = set()
    for word in text.split(","):
        if not (found := kinds_of([word.strip()]) if word.strip() else frozenset()):
            raise malformed("types", f"{word[:60]!r} matches none of {', '.join(sorted(KINDS))}")
        kinds |= found
    return frozenset(kinds)


def number_from(name: str, text: str) -> int:
    if not NUMBER.fullmatch(text):
        raise malformed(name, f"need the sequence of an event, got {text[:60]!r}")
    return int(text)
