"""Admin pages of the catalog, read-only: machines write these rows."""

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest

from catalog.models import (
    Context,
    Job,
    NodeSession,
    Pin,
    Round,
    Segment,
    Space,
    Stray,
    UsageRollup,
)
from catalog.sessions import cut_session
from tenants.admin_site import ReadOnlyAdmin
from tenants.principal import actor_of


@admin.register(Space)
class SpaceAdmin(ReadOnlyAdmin):
    list_display = ("name", "tenant", "chunk_tokens", "created_at")
    list_select_related = ("tenant",)
    search_fields = ("name", "fingerprint")


@admin.register(NodeSession)
class NodeSessionAdmin(ReadOnlyAdmin):
    list_display = ("node", "tenant", "space", "key", "last_heartbeat_at", "ended_at", "breaker")
    list_filter = ("breaker",)
    list_select_related = ("tenant", "space", "key")
    search_fields = ("node",)
    actions = ("end",)

    @admin.action(description="End the chosen sessions", permissions=["view"])
    def end(self, request: HttpRequest, queryset: QuerySet[NodeSession]) -> None:
        for session in queryset:
            cut_session(session=session, actor=actor_of(request))


@admin.register(Context)
class ContextAdmin(ReadOnlyAdmin):
    list_display = ("name", "label", "tenant", "space", "blocks", "tokens", "pinned_until")
    list_select_related = ("tenant", "space")
    search_fields = ("name", "label")
    exclude = ("chain",)


@admin.register(Pin)
class PinAdmin(ReadOnlyAdmin):
    list_display = ("context", "tenant", "owner_name", "reason", "until", "created_at")
    list_select_related = ("tenant", "context")
    search_fields = ("owner_name", "reason")


@admin.register(Segment)
class SegmentAdmin(ReadOnlyAdmin):
    list_display = (
        *("pk", "tenant", "space", "state", "generation", "blocks", "runs"),
        *("size_bytes", "live_bytes", "unreferenced_at", "checked_at", "readable_bytes"),
    )
    list_filter = ("state", "generation")
    list_select_related = ("tenant", "space")
    search_fields = ("object_key",)


@admin.register(Round)
class RoundAdmin(ReadOnlyAdmin):
    list_display = ("side", "tenant", "begun_at", "looked_at", "ended_at", "leased_until")
    list_filter = ("side",)
    list_select_related = ("tenant",)


@admin.register(Stray)
class StrayAdmin(ReadOnlyAdmin):
    list_display = ("object_key", "size_bytes", "found_at", "due_at", "is_unclaimed")
    list_filter = ("is_unclaimed",)
    search_fields = ("object_key",)
    readonly_fields = ()

    def get_queryset(self, request: HttpRequest) -> QuerySet[Stray]:
        return Stray.objects.all()


@admin.register(UsageRollup)
class UsageRollupAdmin(ReadOnlyAdmin):
    list_display = (
        *("tenant", "resolution_s", "bucket_ts", "requested_tokens", "hit_hot_tokens"),
        *("dirty_bytes", "dirty_oldest_s"),
    )
    list_filter = ("resolution_s",)
    list_select_related = ("tenant",)


@admin.register(Job)
class JobAdmin(ReadOnlyAdmin):
    list_display = (
        *("kind", "state", "tenant", "progress", "blocks", "bytes", "attempts"),
        *("created_at", "duration_s", "retry_at", "error"),
    )
    list_filter = ("kind", "state")
    list_select_related = ("tenant",)
