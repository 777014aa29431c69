"""/api/v1/audit: who changed what, and who signed in."""

from django.db.models import Case, CharField, F, QuerySet, Value, When
from rest_framework import serializers

from cacheapi.base.access import caller
from cacheapi.base.exports import Exported
from cacheapi.base.filters import RowFilter, TenantFilter, TextFilter
from cacheapi.base.moments import MomentFilter
from cacheapi.base.viewsets import ReadOnlyView, TenantOwnedSerializer
from tenants.models import AuditEvent


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
