"""/api/v1/audit: who changed what."""

from cacheapi.base.filters import TenantFilter, TextFilter
from cacheapi.base.viewsets import ReadOnlyView, TenantOwnedSerializer
from tenants.models import AuditEvent


class AuditSerializer(TenantOwnedSerializer):
    class Meta:
        model = AuditEvent
        fields = (
            *("id", "tenant", "at", "actor_name", "request_id", "action", "object_type"),
            *("object_id", "before", "after"),
        )
        read_only_fields = fields


class AuditFilter(TenantFilter):
    action = TextFilter()
    actor = TextFilter(field_name="actor_name")
    object_id = TextFilter()


class AuditView(ReadOnlyView):
    """Who changed what."""

    model = AuditEvent
    orderings = ("-at",)
    serializer_class = AuditSerializer
    filterset_class = AuditFilter
