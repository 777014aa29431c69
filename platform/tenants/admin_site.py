"""How the Django admin, which only operators enter, sees rows of all tenants.

Tenant-owned rows are read through `unscoped` and saved inside their own tenant's scope.
"""

from typing import Any

from django.contrib import admin
from django.db.models import ForeignKey, Model, QuerySet
from django.forms import ModelForm
from django.http import HttpRequest

from tenants.audit import actor_of, record
from tenants.scope import TenantOwned, tenant_scope


class TenantOwnedAdmin(admin.ModelAdmin):
    """Changes existing rows; their tenant is fixed. Rows are made by services, not here."""

    readonly_fields: tuple[str, ...] = ("tenant",)

    def get_queryset(self, request: HttpRequest) -> QuerySet:
        rows: QuerySet = self.model.unscoped.order_by(*self.model._meta.ordering)
        return rows

    def formfield_for_foreignkey(
        self, db_field: ForeignKey, request: HttpRequest | None, **kwargs: Any
    ) -> Any:
        if issubclass(db_field.related_model, TenantOwned):
            kwargs.setdefault("queryset", db_field.related_model.unscoped.all())
        return super().formfield_for_foreignkey(db_field, request, **kwargs)

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def save_model(self, request: HttpRequest, obj: Any, form: ModelForm, change: bool) -> None:
        before = {name: form.initial.get(name) for name in form.changed_data}
        after = {name: form.cleaned_data[name] for name in form.changed_data}
        with tenant_scope(obj.tenant_id):
            super().save_model(request, obj, form, change)
            record(
                actor=actor_of(request),
                tenant_id=obj.tenant_id,
                action=f"{self.model._meta.model_name}.change",
                obj=obj,
                before=before,
                after=after,
            )


class ReadOnlyAdmin(TenantOwnedAdmin):
    """Shows what machines wrote."""

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False
