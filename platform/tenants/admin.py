"""Admin pages of tenants. Creating a tenant goes through the service, as everywhere."""

from typing import Any

from django import forms
from django.contrib import admin
from django.db import transaction
from django.forms import ModelForm
from django.http import HttpRequest

from base.problems import Problem
from neve.replay.report import format_bytes
from tenants import issuing, services
from tenants.admin_site import ReadOnlyAdmin, TenantOwnedAdmin
from tenants.models import ApiKey, AuditEvent, Membership, Quota, Tenant
from tenants.principal import actor_of, principal_of_person
from tenants.room import require_room

# Second factors, identities and sessions: pages and services change them.
for _model in list(admin.site._registry):
    if _model._meta.app_config.name.startswith("allauth."):
        admin.site.unregister(_model)


class PromiseForm(forms.ModelForm):
    """Refuses quotas that promise more hot memory than there is, before anything is saved."""

    overcommit = forms.BooleanField(
        required=False,
        label="Promise more than there is",
        help_text="Hot quotas may then exceed the memory of the hot tier: one tenant's blocks can "
        "take the room of another's.",
    )

    def clean(self) -> dict[str, Any]:
        found: dict[str, Any] = super().clean() or self.cleaned_data
        if not self.errors:
            try:
                with transaction.atomic():
                    self.check_room(overcommit=found["overcommit"])
            except Problem as refusal:
                raise forms.ValidationError(refusal.detail) from refusal
        return found

    def check_room(self, *, overcommit: bool) -> None:
        """Raises Problem (hot-overcommit)."""
        raise NotImplementedError


class TenantForm(PromiseForm):
    def check_room(self, *, overcommit: bool) -> None:
        tenant = self.instance
        if not self.cleaned_data["is_active"]:
            return
        if tenant.pk is None:
            services.default_hot_bytes(overcommit=overcommit)
        elif "is_active" in self.changed_data:
            require_room(
                tenant.quota.hot_bytes, tenant_id=tenant.pk, present_bytes=0, overcommit=overcommit
            )


class QuotaForm(PromiseForm):
    def check_room(self, *, overcommit: bool) -> None:
        tenant = self.instance.tenant
        if tenant.is_active:
            require_room(
                self.cleaned_data["hot_bytes"],
                tenant_id=tenant.pk,
                present_bytes=self.initial["hot_bytes"],
                overcommit=overcommit,
            )


class MembershipInline(admin.TabularInline):
    model = Membership
    extra = 0
    autocomplete_fields = ("user",)


@admin.register(Tenant)
class TenantAdmin(admin.ModelAdmin):
    form = TenantForm
    list_display = ("slug", "name", "node_limit", "is_active", "cut_off_at", "created_at")
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
                overcommit=form.cleaned_data["overcommit"],
                actor=actor_of(request),
            )
            return
        made = services.create_tenant(
            slug=obj.slug,
            name=obj.name,
            node_limit=obj.node_limit,
            is_active=obj.is_active,
            overcommit=form.cleaned_data["overcommit"],
            actor=actor_of(request),
        )
        obj.pk, obj.created_at = made.pk, made.created_at
        obj._state.adding = False


@admin.register(Quota)
class QuotaAdmin(TenantOwnedAdmin):
    form = QuotaForm
    list_display = ("tenant", "hot", "cold", *Quota.ROW_LIMITS)
    list_select_related = ("tenant",)
    hints = {
        "hot_bytes": "of blocks in Valkey; 1 GiB is 1073741824",
        "cold_bytes": "of live blocks in S3, which may take 1.5 times as much; 1 GiB is 1073741824",
        "space_limit": "most spaces; empty: as the setting NEVE_SPACE_LIMIT says",
        "context_limit": "most contexts; empty: as the setting NEVE_CONTEXT_LIMIT says",
        "context_block_limit": "most blocks of one context; empty: as the setting "
        "NEVE_CONTEXT_BLOCK_LIMIT says",
    }

    @admin.display(description="hot", ordering="hot_bytes")
    def hot(self, obj: Quota) -> str:
        return format_bytes(obj.hot_bytes)

    @admin.display(description="cold", ordering="cold_bytes")
    def cold(self, obj: Quota) -> str:
        return format_bytes(obj.cold_bytes)

    def save_model(self, request: HttpRequest, obj: Quota, form: ModelForm, change: bool) -> None:
        services.set_quota(
            tenant=obj.tenant,
            hot_bytes=obj.hot_bytes,
            cold_bytes=obj.cold_bytes,
            overcommit=form.cleaned_data["overcommit"],
            actor=actor_of(request),
            **{name: getattr(obj, name) for name in Quota.ROW_LIMITS},
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
            issuing.revoke_key(
                caller=principal_of_person(request.user), key=key, actor=actor_of(request)
            )


@admin.register(AuditEvent)
class AuditEventAdmin(ReadOnlyAdmin):
    list_display = ("at", "actor_name", "action", "object_type", "object_id", "tenant")
    list_filter = ("action",)
    list_select_related = ("tenant",)
    search_fields = ("actor_name", "object_id", "request_id")
