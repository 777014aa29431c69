"""Admin pages of tenants. Creating a tenant goes through the service, as everywhere."""

from typing import Any

from django.contrib import admin
from django.forms import ModelForm
from django.http import HttpRequest

from tenants import services
from tenants.admin_site import ReadOnlyAdmin, TenantOwnedAdmin
from tenants.audit import actor_of
from tenants.models import ApiKey, AuditEvent, Membership, Quota, Tenant


class MembershipInline(admin.TabularInline):
    model = Membership
    extra = 0
    autocomplete_fields = ("user",)


@admin.register(Tenant)
class TenantAdmin(admin.ModelAdmin):
    list_display = ("slug", "name", "node_limit", "is_active", "created_at")
    search_fields = ("slug", "name")
    inlines = (MembershipInline,)

    def get_readonly_fields(self, request: HttpRequest, obj: Tenant | None = None) -> Any:
        return ("slug", "created_at") if obj else ("created_at",)

    def has_delete_permission(self, request: HttpRequest, obj: Tenant | None = None) -> bool:
        return False

    def save_model(self, request: HttpRequest, obj: Tenant, form: ModelForm, change: bool) -> None:
        if change:
            services.change_tenant(
                tenant=obj,
                name=obj.name,
                node_limit=obj.node_limit,
                is_active=obj.is_active,
                actor=actor_of(request),
            )
            return
        made = services.create_tenant(
            slug=obj.slug,
            name=obj.name,
            node_limit=obj.node_limit,
            is_active=obj.is_active,
            actor=actor_of(request),
        )
        obj.pk, obj.created_at = made.pk, made.created_at
        obj._state.adding = False


@admin.register(Quota)
class QuotaAdmin(TenantOwnedAdmin):
    list_display = ("tenant", "hot_bytes", "cold_bytes")
    list_select_related = ("tenant",)

    def save_model(self, request: HttpRequest, obj: Quota, form: ModelForm, change: bool) -> None:
        services.set_quota(
            tenant=obj.tenant,
            hot_bytes=obj.hot_bytes,
            cold_bytes=obj.cold_bytes,
            actor=actor_of(request),
        )


@admin.register(ApiKey)
class ApiKeyAdmin(ReadOnlyAdmin):
    list_display = ("name", "prefix", "role", "tenant", "last_used_at", "expires_at", "revoked_at")
    list_filter = ("role",)
    list_select_related = ("tenant",)
    search_fields = ("name", "prefix")
    exclude = ("secret_hmac",)
    actions = ("revoke",)

    @admin.action(description="Revoke the chosen keys", permissions=["view"])
    def revoke(self, request: HttpRequest, queryset: Any) -> None:
        for key in queryset:
            services.revoke_key(key=key, actor=actor_of(request))


@admin.register(AuditEvent)
class AuditEventAdmin(ReadOnlyAdmin):
    list_display = ("at", "actor_name", "action", "object_type", "object_id", "tenant")
    list_filter = ("action",)
    list_select_related = ("tenant",)
    search_fields = ("actor_name", "object_id", "request_id")
