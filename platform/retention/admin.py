from django.contrib import admin
from django.forms import ModelForm
from django.http import HttpRequest

from retention.models import RetentionPolicy
from retention.services import FIELDS, set_policy
from tenants.admin_site import TenantOwnedAdmin
from tenants.audit import actor_of


@admin.register(RetentionPolicy)
class RetentionPolicyAdmin(TenantOwnedAdmin):
    list_display = ("tenant", "flush_mode", "flush_after_s", "hot_idle_s", "cold_ttl_s")
    list_select_related = ("tenant",)

    def save_model(
        self, request: HttpRequest, obj: RetentionPolicy, form: ModelForm, change: bool
    ) -> None:
        chosen = {name: getattr(obj, name) for name in FIELDS}
        set_policy(tenant=obj.tenant, actor=actor_of(request), **chosen)
