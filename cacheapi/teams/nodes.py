"""/api/v1/nodes: node sessions."""

from django.db.models import Q, QuerySet
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from cacheapi.base.filters import FlagFilter, RowFilter, TenantFilter, TextFilter
from cacheapi.base.viewsets import UUID, ReadOnlyView, TenantOwnedSerializer, no_body
from catalog.models import NodeSession
from catalog.sessions import cut_session, live_since
from tenants.principal import actor_of


class NodeSerializer(TenantOwnedSerializer):
    id = serializers.UUIDField(source="pk", read_only=True)

    class Meta:
        model = NodeSession
        fields = (
            *("id", "tenant", "space", "node", "engine", "opened_at", "last_heartbeat_at"),
            *("ended_at", "breaker", "totals"),
        )
        read_only_fields = fields


class NodeFilter(TenantFilter):
    node = TextFilter()
    space = RowFilter(field_name="space_id")
    live = FlagFilter(method="filter_live", help_text="with young heartbeats")

    def filter_live(
        self, rows: QuerySet[NodeSession], name: str, value: bool
    ) -> QuerySet[NodeSession]:
        live = Q(ended_at=None, last_heartbeat_at__gt=live_since())
        return rows.filter(live) if value else rows.exclude(live)


class NodesView(ReadOnlyView):
    """Node sessions, present and past."""

    model = NodeSession
    lookup_field = "uuid"
    lookup_value_regex = UUID
    operators_only = ("end",)
    orderings = ("-opened_at", "last_heartbeat_at")
    serializer_class = NodeSerializer
    moving = ("last_heartbeat_at", "breaker", "totals")
    filterset_class = NodeFilter

    @extend_schema(request=None, responses=NodeSerializer)
    @action(methods=["post"], detail=True)
    def end(self, request: Request, uuid: str) -> Response:
        """Ends the session and its Valkey access at once; revoke the key to keep the node out."""
        session = self.get_object()
        no_body(request)
        cut_session(session=session, actor=actor_of(request))
        return Response(NodeSerializer(self.get_object()).data)
