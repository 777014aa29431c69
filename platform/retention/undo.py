"""Takes back a change of a tenant, its quota, policy or rules that the audit trail holds.

The values come back, not the blocks that left meanwhile. A value that was changed again since is
not overwritten.
"""

from collections.abc import Callable, Mapping
from typing import Any

from django.core.exceptions import ValidationError
from django.db import transaction
from django.forms.models import model_to_dict

from base.problems import Problem
from catalog.models import Space
from retention import services
from retention.models import RetentionPolicy, RetentionRule
from tenants import services as tenants
from tenants.audit import Actor
from tenants.models import AuditEvent, Quota, Tenant
from tenants.scope import tenant_scope

Values = dict[str, Any]


@transaction.atomic
def undo(*, event: AuditEvent, actor: Actor) -> None:
    """Sets the values before `event` again, as a change with its own audit event.

    Raises Problem: conflict (changed since, or the object is gone; `field`), hot-overcommit.
    """
    if event.action not in _UNDOES or event.tenant is None:
        raise Problem("conflict", f"A change {event.action} cannot be taken back.")
    tenant = Tenant.objects.select_for_update().get(pk=event.tenant.pk)
    try:
        _UNDOES[event.action](tenant, event, actor)
    except ValidationError as error:  # the row that a rule names is gone
        raise Problem("conflict", " ".join(error.messages)) from error


def can_undo(event: AuditEvent) -> bool:
    """Whether events of this kind can be taken back, whatever happened since."""
    return event.action in _UNDOES and event.tenant_id is not None


def changed_names(event: AuditEvent) -> list[str]:
    """Names of the values that differ, sorted."""
    before, after = event.before or {}, event.after or {}
    return sorted(name for name in {*before, *after} if before.get(name) != after.get(name))


def _quota(tenant: Tenant, event: AuditEvent, actor: Actor) -> None:
    with tenant_scope(tenant.pk):
        values = _former(event, model_to_dict(Quota.objects.select_for_update().get()))
    tenants.set_quota(tenant=tenant, actor=actor, **values)


def _tenant(tenant: Tenant, event: AuditEvent, actor: Actor) -> None:
    tenants.change_tenant(tenant=tenant, actor=actor, **_former(event, _row(tenant)))


def _policy(tenant: Tenant, event: AuditEvent, actor: Actor) -> None:
    with tenant_scope(tenant.pk):
        policy = RetentionPolicy.objects.select_for_update().get()
    services.set_policy(tenant=tenant, actor=actor, **_former(event, _row(policy)))


def _added_rule(tenant: Tenant, event: AuditEvent, actor: Actor) -> None:
    rule = _rule(tenant, event)
    _former(event, model_to_dict(rule))
    services.remove_rule(rule=rule, actor=actor)


def _changed_rule(tenant: Tenant, event: AuditEvent, actor: Actor) -> None:
    rule = _rule(tenant, event)
    services.change_rule(
        rule=rule, actor=actor, **_with_space(tenant, _former(event, model_to_dict(rule)))
    )


def _removed_rule(tenant: Tenant, event: AuditEvent, actor: Actor) -> None:
    values = {name: (event.before or {}).get(name) for name in services.RULE_FIELDS}
    services.add_rule(tenant=tenant, actor=actor, **_with_space(tenant, values))


_UNDOES: dict[str, Callable[[Tenant, AuditEvent, Actor], None]] = {
    "quota.set": _quota,
    "tenant.change": _tenant,
    "retention.set": _policy,
    "retention.rule.add": _added_rule,
    "retention.rule.change": _changed_rule,
    "retention.rule.remove": _removed_rule,
}


def _former(event: AuditEvent, present: Mapping[str, Any]) -> Values:
    """The changed values as they were. Raises Problem (conflict) if one was changed since."""
    before, after = event.before or {}, event.after or {}
    names = [name for name in changed_names(event) if name in present]
    for name in names:
        if present[name] != after.get(name):
            raise Problem(
                "conflict",
                f"{name}: was changed again since then. Take the later change back first, or set "
                "the value.",
                field=name,
            )
    return {name: before[name] for name in names if name in before}


def _row(row: Any) -> Values:
    return {each.attname: getattr(row, each.attname) for each in row._meta.concrete_fields}


def _rule(tenant: Tenant, event: AuditEvent) -> RetentionRule:
    with tenant_scope(tenant.pk):
        rule = RetentionRule.objects.select_for_update().filter(pk=event.object_id).first()
    if rule is None:
        raise Problem("conflict", "The rule is not there any more.")
    return rule


def _with_space(tenant: Tenant, values: Values) -> Values:
    """The row instead of its number."""
    if values.get("space") is None:
        return values
    with tenant_scope(tenant.pk):
        space = Space.objects.filter(pk=values["space"]).first()
    if space is None:
        raise Problem("conflict", "space: is not there any more.", field="space")
    return {**values, "space": space}
