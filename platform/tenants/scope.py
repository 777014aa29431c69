"""The tenant scope: `Model.objects` of a tenant-owned model works only inside of one.

`objects` filters to the scope's tenant and raises outside, whatever is called on it, sync or async.
`unscoped` is the bypass; tests/platform_/test_scope.py holds the list of files that may name it.
A row of another tenant cannot be saved inside a scope.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, ClassVar, Self, TypeVar

from django.db import models

Row = TypeVar("Row", bound="TenantScoped")

_tenant_id: ContextVar[int | None] = ContextVar("neve_tenant_id", default=None)


class OutsideTenantScope(RuntimeError):
    """Rows were touched without their tenant's scope: a bug in the caller."""


@contextmanager
def tenant_scope(tenant_id: int) -> Iterator[None]:
    """Inside, `objects` sees this tenant's rows. Plain `with`, in coroutines too; scopes nest."""
    token = _tenant_id.set(tenant_id)
    try:
        yield
    finally:
        _tenant_id.reset(token)


def current_tenant_id() -> int:
    """Raises OutsideTenantScope."""
    tenant_id = _tenant_id.get()
    if tenant_id is None:
        raise OutsideTenantScope("enter `with tenant_scope(tenant_id):` before touching these rows")
    return tenant_id


class ScopedQuerySet(models.QuerySet[Row]):
    """A queryset whose new rows belong to the scope's tenant."""

    def create(self, **fields: Any) -> Row:
        return super().create(**_own(fields))

    def bulk_create(self, objs: Iterable[Row], *args: Any, **kwargs: Any) -> list[Row]:
        rows = list(objs)
        for row in rows:
            row.check_scope()
        return super().bulk_create(rows, *args, **kwargs)

    def update(self, **fields: Any) -> int:
        if "tenant" in fields or "tenant_id" in fields:
            raise OutsideTenantScope("a row does not change its tenant")
        return super().update(**fields)


class ScopedManager(models.Manager[Row]):
    def get_queryset(self) -> ScopedQuerySet[Row]:
        rows = ScopedQuerySet[Row](self.model, using=self._db)
        return rows.filter(tenant_id=current_tenant_id())


class TenantScoped(models.Model):
    """A row with a field `tenant`, which may be null: then it is the platform's own."""

    tenant_id: int | None

    objects: ClassVar[ScopedManager[Self]] = ScopedManager()
    unscoped = models.Manager()

    class Meta:
        abstract = True
        # What Django itself uses to follow foreign keys and to delete.
        base_manager_name = "unscoped"

    def save(self, *args: Any, **kwargs: Any) -> None:
        self.check_scope()
        super().save(*args, **kwargs)

    def check_scope(self) -> None:
        scope = _tenant_id.get()
        if scope is not None and self.tenant_id != scope:
            raise OutsideTenantScope(f"row of tenant {self.tenant_id} in the scope of {scope}")


class TenantOwned(TenantScoped):
    """A row that belongs to one tenant."""

    tenant = models.ForeignKey("tenants.Tenant", on_delete=models.CASCADE)

    class Meta(TenantScoped.Meta):
        abstract = True


def _own(fields: dict[str, Any]) -> dict[str, Any]:
    if "tenant" not in fields and "tenant_id" not in fields:
        fields["tenant_id"] = current_tenant_id()
    return fields
