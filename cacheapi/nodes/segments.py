"""Where a session reads segments: presigned addresses of the nearest copies."""

from typing import Any
from uuid import UUID

from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from base.problems import Problem
from cacheapi.nodes.view import NodeView, open_session
from catalog import heat
from catalog.models import Segment
from catalog.stores import Stores, objects_of
from storage import s3

MOST_SEGMENTS = 1000


class SegmentsSerializer(serializers.Serializer[Any]):
    segments = serializers.DictField(child=serializers.CharField(), help_text="number → URL")
    away = serializers.ListField(
        child=serializers.IntegerField(), help_text="segments whose stores do not answer"
    )
    expires_s = serializers.IntegerField()


class SegmentsView(NodeView):
    verbs = {"get": "locate_segments"}
    takes = {"get": ("ids",)}

    @extend_schema(
        parameters=[
            OpenApiParameter(
                "ids",
                {"type": "string", "pattern": "^[0-9]{1,18}(,[0-9]{1,18})*$"},
                required=True,
                description="1,2,3",
            )
        ],
        responses={200: SegmentsSerializer},
        tags=["cache"],
    )
    def get(self, request: Request, session_id: UUID) -> Response:
        """Presigned URLs of this tenant's segments; unknown ones are absent from the answer, and
        `away` names those that no store has that answers.

        Segments that wait for deletion are there: a node that looked blocks up before they moved
        can still read them.
        """
        numbers = _segment_numbers(request.query_params.get("ids", ""))
        session = open_session(session_id)
        rows = list(Segment.objects.filter(pk__in=numbers, state__in=Segment.READABLE))
        stores = Stores()
        # An address that nobody answers would open the node's breaker for all stores.
        objects = objects_of(rows, stores, near=session.near_stores, only_well=True)
        urls = {str(number): object_.presign_get() for number, object_ in objects.items()}
        if stores.are_several:  # else nothing moves by it
            heat.note_read(rows)
        away = sorted({row.pk for row in rows} - objects.keys())
        return Response({"segments": urls, "away": away, "expires_s": s3.PRESIGNED_S})


def _segment_numbers(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.isascii() and part.isdigit() and len(part) < 19 for part in parts):
        raise Problem("malformed", f"ids: need numbers like 1,2,3, got {text[:60]!r}.", field="ids")
    if len(parts) > MOST_SEGMENTS:
        raise Problem(
            "malformed", f"ids: need at most {MOST_SEGMENTS}, got {len(parts)}.", field="ids"
        )
    return [int(part) for part in parts]
