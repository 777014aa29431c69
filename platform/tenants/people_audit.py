"""The audit of accounts, groups and memberships, by Django's signals.

Django's own admin, `createsuperuser`, `changepassword` and shells change these rows, too: only a
signal sees all of them. Only the audit may stand here, nothing that acts.
Bulk updates of a queryset send no signal; the platform makes none on these models.
"""

from typing import Any

from django.contrib.auth import get_user_model
from django.contrib.auth.models import Group
from django.db.models import Model, QuerySet
from django.db.models.signals import m2m_changed, post_delete, post_save, pre_save

from tenants.audit import record
from tenants.models import Membership, Tenant
from tenants.principal import current_actor

PASSWORD = "password"  # noqa: S105  the name of the field
FIELDS = {
    "user": (
        *("username", "email", "first_name", "last_name", PASSWORD),
        *("is_active", "is_staff", "is_superuser"),
    ),
    "group": ("name",),
    "membership": ("user", "tenant", "role"),
}
_RELATIONS: dict[Any, str] = {}  # the table between two models → the relation's name


def connect() -> None:
    """Once, when the apps are ready."""
    user = get_user_model()
    for model in (user, Group, Membership):
        pre_save.connect(_remember, sender=model)
        post_save.connect(_saved, sender=model)
        post_delete.connect(_deleted, sender=model)
    for owner, name in ((user, "groups"), (user, "user_permissions"), (Group, "permissions")):
        through = getattr(owner, name).through
        _RELATIONS[through] = name
        m2m_changed.connect(_related, sender=through)


def _remember(
    sender: type[Model], instance: Any, raw: bool, update_fields: Any = None, **_: Any
) -> None:
    """Keeps the row as it was, when one of FIELDS may change."""
    instance._audit_before = None
    names = FIELDS[sender._meta.model_name or ""]
    if (
        raw
        or instance.pk is None
        or (update_fields is not None and not {*update_fields} & {*names})
    ):
        return
    found = sender._default_manager.filter(pk=instance.pk).first()
    instance._audit_before = found and _values(found)


def _saved(
    sender: type[Model],
    instance: Any,
    created: bool,
    raw: bool,
    update_fields: Any = None,
    **_: Any,
) -> None:
    before, after = getattr(instance, "_audit_before", None), _values(instance)
    if raw or (before is None and not created):
        return
    if before is None:
        after.pop(PASSWORD, None)
        _record(instance, "create", None, {k: v for k, v in after.items() if v != ""})
        return
    changed = {name for name in after if before[name] != after[name]}
    if update_fields is not None:
        changed &= {*update_fields}
    if PASSWORD in changed:  # never its hash
        # Django hashes a correct password again at a login if its algorithm has changed.
        is_new = getattr(instance, "_password", None) is not None
        before[PASSWORD], after[PASSWORD] = None, "changed" if is_new else "hashed anew"
    if changed:
        _record(
            instance,
            "change",
            {name: before[name] for name in sorted(changed)},
            {name: after[name] for name in sorted(changed)},
        )


def _deleted(sender: type[Model], instance: Any, origin: Any = None, **_: Any) -> None:
    values = _values(instance)
    values.pop(PASSWORD, None)
    source = origin.model if isinstance(origin, QuerySet) else type(origin)
    _record(instance, "remove", values, None, is_with_tenant=source is Tenant)


def _related(
    sender: Any, instance: Any, action: str, reverse: bool, model: Any, pk_set: Any, **_: Any
) -> None:
    """`reverse`: changed from the other side, as by `group.user_set.add(user)`."""
    name = _RELATIONS[sender]
    if action == "pre_clear":
        _record(instance, "change", {name: "all"}, {})
    elif action in ("post_add", "post_remove"):
        for other in model._default_manager.filter(pk__in=pk_set):
            owner, value = (other, instance) if reverse else (instance, other)
            words: dict[str, Any] = {name: str(value)}
            before, after = ({}, words) if action == "post_add" else (words, {})
            _record(owner, "change", before, after)


def _values(instance: Any) -> dict[str, Any]:
    names = FIELDS[instance._meta.model_name]
    return {
        name: str(value) if isinstance(value := getattr(instance, name), Model) else value
        for name in names
    }


def _record(
    instance: Any,
    verb: str,
    before: dict[str, Any] | None,
    after: dict[str, Any] | None,
    *,
    is_with_tenant: bool = False,
) -> None:
    """`is_with_tenant`: the tenant is deleted too, so the event must not refer to it."""
    record(
        actor=current_actor(),
        tenant_id=None if is_with_tenant else getattr(instance, "tenant_id", None),
        action=f"{instance._meta.model_name}.{verb}",
        obj=instance,
        before=before,
        after=after,
    )
