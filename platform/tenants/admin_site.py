"""How the Django admin shows rows of tenants: to operators, of all tenants.

Rows are read through the Principal, as everywhere, and changed by services.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from django.contrib import admin
from django.db.models import Field, Model, QuerySet
from django.http import HttpRequest

from tenants.principal import principal_of_person


class TenantOwnedAdmin(admin.ModelAdmin):
    """Changes existing rows, in `save_model` of the subclass; their tenant is fixed."""

    readonly_fields: ClassVar[tuple[str, ...]] = ("tenant",)
    hints: ClassVar[Mapping[str, str]] = {}  # help text by field

    def formfield_for_dbfield(self, db_field: Field, request: HttpRequest, **kwargs: Any) -> Any:
        if (hint := self.hints.get(db_field.name)) is not None:
            kwargs["help_text"] = hint
        return super().formfield_for_dbfield(db_field, request, **kwargs)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        rows: QuerySet[Any] = principal_of_person(request.user).rows(self.model)
        return rows.order_by(*self.model._meta.ordering)

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        raise NotImplementedError(f"{type(self).__name__} names the service that saves")


class ReadOnlyAdmin(TenantOwnedAdmin):
    """Shows rows that machines wrote."""

    def get_readonly_fields(self, request: HttpRequest, obj: Model | None = None) -> list[str]:
        # A field that is not read-only gets a form field, and that of a relation reads `objects`.
        names = [field.name for field in self.model._meta.fields]
        return [name for name in names if name not in (self.exclude or ())]

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False
