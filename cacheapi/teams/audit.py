"""/api/v1/audit: who changed what, and who signed in."""

from typing import Any

from django.db import transaction
from django.db.models import Case, CharField, F, QuerySet, Value, When
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from cacheapi.base.access import caller
from cacheapi.base.exports import Exported
from cacheapi.base.filters import RowFilter, TenantFilter, TextFilter
from cacheapi.base.moments import MomentFilter
from cacheapi.base.viewsets import ReadOnlyView, TenantOwnedSerializer, no_body
from retention.undo import undo
from tenants.models import AuditEvent
from tenants.principal import actor_of


class AuditSerializer(TenantOwnedSerializer):
    address = serializers.CharField(
        source="shown_address",
        read_only=True,
        help_text="of the caller; empty: a task or command, or an operator, whose address teams do "
        "not see",
    )

    class Meta:
        model = AuditEvent
        fields = (
            *("id", "tenant", "at", "actor_name", "key_id", "address", "request_id", "action"),
            *("object_type", "object_id", "before", "after"),
        )
        read_only_fields = fields


class AuditFilter(TenantFilter):
    action = TextFilter(help_text="such as key.issue, context.pin, login, login.fail")
    actor = TextFilter(field_name="actor_name")
    key_id = RowFilter(help_text="number of the caller's key")
    address = TextFilter(field_name="shown_address")
    object_type = TextFilter()
    object_id = TextFilter()
    locals()["from"] = MomentFilter(field_name="at", lookup_expr="gte", help_text="at or after")
    to = MomentFilter(field_name="at", lookup_expr="lt", help_text="before")


class AuditView(Exported, ReadOnlyView):
    """Who changed what, and when. Operators also see who signed in, and wrong passwords."""

    model = AuditEvent
    orderings = ("-at",)
    operators_only = ("undo",)
    unconditional = ("undo",)  # an event never changes
    serializer_class = AuditSerializer
    filterset_class = AuditFilter

    def visible(self) -> QuerySet[AuditEvent]:
        rows = caller(self.request).rows(AuditEvent)
        if caller(self.request).is_operator:
            return rows.annotate(shown_address=F("address"))
        shown = Case(
            When(is_by_operator=True, then=Value("")),
            default=F("address"),
            output_field=CharField(),
        )
        return rows.annotate(shown_address=shown)

    @extend_schema(request=None, responses=AuditSerializer)
    @action(methods=["post"], detail=True)
    def undo(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Sets the values before a change of a tenant, its quota, policy or rules again. Blocks
        that left meanwhile stay away. Refused if a value was changed again since."""
        event = self.get_object()
        no_body(request)
        with transaction.atomic():
            undo(event=event, actor=actor_of(request))
            made = self.visible().filter(tenant_id=event.tenant_id).latest("pk")
        return Response(AuditSerializer(made).data)
