"""Which blocks of a session's space left: nodes withdraw what they announced to routers."""

from uuid import UUID

from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework.request import Request
from rest_framework.response import Response

from cacheapi.base.removals import CURSOR, RemovalsSerializer, page, require_cursor
from cacheapi.nodes.view import NodeView, open_session


class RemovalsView(NodeView):
    verbs = {"get": "removals"}
    takes = {"get": ("after",)}

    @extend_schema(
        parameters=[
            OpenApiParameter("after", CURSOR, description="`cursor` of the last answer; none: now")
        ],
        responses={200: RemovalsSerializer},
        tags=["cache"],
    )
    def get(self, request: Request, session_id: UUID) -> Response:
        """Which blocks of the session's space left both tiers behind a cursor. Without a cursor
        the answer is empty, and its cursor is now."""
        after = request.query_params.get("after")
        require_cursor("after", after)
        session = open_session(session_id)
        return Response(page(self.tenant.pk, session.space_id, after))
