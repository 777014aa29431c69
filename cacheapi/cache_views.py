"""The cache endpoint (/cache/v1): what nodes call. Block bytes never pass here."""

from typing import Any
from uuid import UUID

from django.conf import settings
from django.db import transaction
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from cacheapi import topology
from cacheapi.access import KeyAuthentication, Nodes, actor
from cacheapi.cache_serializers import (
    ContextRef,
    ContextReportSerializer,
    HandshakeSerializer,
    HeartbeatAnswerSerializer,
    HeartbeatSerializer,
    SegmentsSerializer,
    SessionSerializer,
)
from cacheapi.queries import StrictQuery
from cacheapi.throttles import NodeThrottle, SlowDown
from cacheapi.viewsets import checked, no_body
from catalog import contexts, sessions
from catalog.models import NodeSession, Segment
from controlplane import hot, s3
from controlplane.problems import Problem
from tenants.models import ApiKey, Tenant
from tenants.scope import tenant_scope

MOST_SEGMENTS = 1000


class NodeView(SlowDown, StrictQuery, APIView):
    """Node keys only; each handler runs in the scope of the key's tenant."""

    authentication_classes = (KeyAuthentication,)
    permission_classes = (Nodes,)
    throttle_classes = (NodeThrottle,)

    @property
    def tenant(self) -> Tenant:
        return self.request.user.tenant

    @property
    def key(self) -> ApiKey:
        return self.request.auth

    def dispatch(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        # The scope is entered in `initial`, once the key is known, and left here.
        self.scope: Any = None
        try:
            return super().dispatch(request, *args, **kwargs)
        finally:
            if self.scope is not None:
                self.scope.__exit__(None, None, None)

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        super().initial(request, *args, **kwargs)
        self.scope = tenant_scope(self.tenant.pk)
        self.scope.__enter__()


class SessionsView(NodeView):
    @extend_schema(request=HandshakeSerializer, responses={201: SessionSerializer}, tags=["cache"])
    def post(self, request: Request) -> Response:
        """Handshake: which space this node's KV belongs to, and where its blocks live."""
        body = checked(HandshakeSerializer, request)
        with hot.required():
            hot.provision_tenant(self.tenant)
        # The session holds the tenant's lock until its user is there: whoever revokes the key
        # meanwhile removes the user afterwards.
        with transaction.atomic():
            session = sessions.open_session(
                tenant=self.tenant,
                key=self.key,
                node=body["node"],
                instance=body["instance"],
                engine=body["engine"],
                identity=body["identity"],
                space_name=body["space"],
                max_chunk_tokens=body["max_chunk_tokens"],
                actor=actor(request),
            )
            with hot.required():
                hot.provision_user(self.key)
        answer = {
            "session": session.pk,
            "tenant": self.tenant,
            "space": session.space,
            "buckets": settings.ENV.hot_buckets,
            "valkey": topology.valkey_address(self.key),
            "s3": topology.s3_location(self.tenant.pk) | {"probe": s3.presign_get(s3.PROBE_KEY)},
            **topology.current_numbers(self.key),
        }
        return Response(SessionSerializer(answer).data, status=201)


class SessionView(NodeView):
    @extend_schema(responses={204: None}, tags=["cache"])
    def delete(self, request: Request, session_id: UUID) -> Response:
        """Ends a session: the node is leaving."""
        no_body(request)
        sessions.end_session(session_id=session_id)
        return Response(status=204)


class HeartbeatView(NodeView):
    @extend_schema(
        request=HeartbeatSerializer, responses={200: HeartbeatAnswerSerializer}, tags=["cache"]
    )
    def post(self, request: Request, session_id: UUID) -> Response:
        """Counts since the last heartbeat; the answer holds what may have changed."""
        body = checked(HeartbeatSerializer, request)
        sessions.record_heartbeat(session_id=session_id, heartbeat=sessions.Heartbeat(**body))
        return Response(topology.current_numbers(self.key))


class SegmentsView(NodeView):
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
        """Presigned URLs of this tenant's segments; unknown ones are absent from the answer.

        A segment that waits for its deletion is there: who found blocks in it before they were
        copied elsewhere still reads them.
        """
        numbers = _segment_numbers(request.query_params.get("ids", ""))
        _open_session(session_id)
        rows = Segment.objects.filter(pk__in=numbers, state__in=Segment.READABLE)
        urls = {str(row.pk): s3.presign_get(row.object_key) for row in rows}
        return Response({"segments": urls, "expires_s": s3.PRESIGNED_S})


class ContextsView(NodeView):
    @extend_schema(
        request=ContextReportSerializer,
        responses={200: ContextRef, 201: ContextRef},
        tags=["cache"],
    )
    def post(self, request: Request) -> Response:
        """A finished request's chain, under the name that the request carried."""
        body = checked(ContextReportSerializer, request)
        context, created = contexts.record(
            session=_open_session(body["session"]),
            name=body["name"],
            ids=body["block_ids"],
            tokens=body["tokens"],
            label=body["label"],
            pin_s=body["pin_s"],
            actor=actor(request),
        )
        return Response(ContextRef(context).data, status=201 if created else 200)


def _open_session(session_id: UUID) -> NodeSession:
    session = NodeSession.objects.filter(pk=session_id, ended_at=None).first()
    if session is None:
        raise Problem("not-found", "This session is unknown or has ended: open a new one.")
    return session


def _segment_numbers(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.isascii() and part.isdigit() and len(part) < 19 for part in parts):
        raise Problem("malformed", f"ids: need numbers like 1,2,3, got {text[:60]!r}.", field="ids")
    if len(parts) > MOST_SEGMENTS:
        raise Problem(
            "malformed", f"ids: need at most {MOST_SEGMENTS}, got {len(parts)}.", field="ids"
        )
    return [int(part) for part in parts]
