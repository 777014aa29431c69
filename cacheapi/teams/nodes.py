"""/api/v1/nodes: node sessions."""

from uuid import UUID as Uuid

from django.db.models import Q, QuerySet
from django.utils.functional import cached_property
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from cacheapi.base.filters import FlagFilter, RowFilter, TenantFilter, TextFilter
from cacheapi.base.viewsets import UUID, ReadOnlyView, TenantOwnedSerializer, no_body
from catalog.models import NodeSession
from catalog.nodes import totals_of, with_others
from catalog.sessions import cut_session, live_since
from tenants.principal import actor_of, rows_of


class NodeSerializer(TenantOwnedSerializer):
    id = serializers.UUIDField(source="pk", read_only=True)
    node_totals = serializers.SerializerMethodField(
        help_text="counters of all sessions of its engine and space that live at the same time: "
        "`totals` of a scheduler in a process of its own have what is asked for, those of its "
        "ranks what they load and store"
    )

    class Meta:
        model = NodeSession
        fields = (
            *("id", "tenant", "space", "node", "engine", "opened_at", "last_heartbeat_at"),
            *("ended_at", "breaker", "totals", "node_totals"),
        )
        read_only_fields = fields

    @cached_property
    def _nodes(self) -> dict[Uuid, list[NodeSession]]:
        return {}  # of the listed rows

    def get_node_totals(self, row: NodeSession) -> dict[str, int]:
        found: dict[Uuid, list[NodeSession]] = self._nodes
        if row.pk not in found:
            listed = self.parent.instance if self.parent is not None else None
            rows = listed if isinstance(listed, list) and row in listed else [row]
            tenants = tuple({one.tenant for one in rows})
            found.update(with_others(rows, rows_of(NodeSession, tenants)))
        return totals_of(found[row.pk])


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
    moving = ("last_heartbeat_at", "breaker", "totals", "node_totals")
    filterset_class = NodeFilter

    @extend_schema(request=None, responses=NodeSerializer)
    @action(methods=["post"], detail=True)
    def end(self, request: Request, uuid: str) -> Response:
        """Ends the session and its Valkey access at once; revoke the key to keep the node out."""
        session = self.get_object()
        no_body(request)
        cut_session(session=session, actor=actor_of(request))
        return Response(NodeSerializer(self.get_object()).data)
