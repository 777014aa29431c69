from django.contrib import admin

from retention.models import RetentionPolicy
from tenants.admin_site import TenantOwnedAdmin


@admin.register(RetentionPolicy)
class RetentionPolicyAdmin(TenantOwnedAdmin):
    list_display = ("tenant", "flush_mode", "flush_after_s", "hot_idle_s", "cold_ttl_s")
    list_select_related = ("tenant",)
