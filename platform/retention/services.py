"""Changes of a tenant's retention policy and its rules.

New blocks get the new terms at once, stored blocks within seconds by the task `workers.retain`.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import F
from django.forms.models import model_to_dict

from base.preconditions import require_unchanged
from events.services import Subject, emit
from retention.models import RetentionPolicy, RetentionRule
from retention.provisioning import provision_on_commit
from tenants.audit import Actor, record
from tenants.models import Tenant
from tenants.scope import tenant_scope

FIELDS = (
    *("flush_mode", "flush_after_s", "hot_idle_s", "cold_ttl_s", "max_age_s", "priority"),
    *("pin_budget_bytes", "eviction", "promote_window_s", "cold_full"),
    *("cold_codec", "lossy_codecs"),
)
RULE_FIELDS = ("space", "label", "context", "order", "overrides")
MOST_RULES = 100  # per tenant; resolving a context's terms matches all of them


def create_policy(*, tenant_id: int, **_: object) -> None:
    """Receives `tenants.announcements.tenant_created`."""
    with tenant_scope(tenant_id):
        RetentionPolicy.objects.create()


@transaction.atomic
def set_policy(*, tenant: Tenant, actor: Actor, **fields: int | str | None) -> RetentionPolicy:
    """`fields`: names in FIELDS; absent ones stay unchanged. Raises ValidationError."""
    with tenant_scope(tenant.pk):
        policy: RetentionPolicy = RetentionPolicy.objects.select_for_update().get()
        require_unchanged(policy)
        before = model_to_dict(policy, FIELDS)
        put(policy, fields)
        policy.full_clean(validate_unique=False, validate_constraints=True)
        policy.save(update_fields=FIELDS)
    after = model_to_dict(policy, FIELDS)
    record(
        actor=actor,
        tenant_id=tenant.pk,
        action="retention.set",
        obj=policy,
        before=before,
        after=after,
    )
    _tell(tenant.pk, "policy", tenant.slug, _differing(before, after))
    _renew(tenant.pk)
    policy.generation += 1
    return policy


def put(policy: RetentionPolicy, fields: dict[str, Any]) -> None:
    """Set the given fields. A flush mode other than "after" clears `flush_after_s` unless given."""
    if fields.get("flush_mode", "after") != "after":
        fields = {"flush_after_s": None, **fields}
    for name in FIELDS:
        if name in fields:
            setattr(policy, name, fields[name])


@transaction.atomic
def add_rule(*, tenant: Tenant, actor: Actor, **fields: Any) -> RetentionRule:
    """`fields`: names in RULE_FIELDS. Raises ValidationError."""
    with tenant_scope(tenant.pk):
        if RetentionRule.objects.count() >= MOST_RULES:
            raise ValidationError(f"a tenant has at most {MOST_RULES} rules")
        rule = RetentionRule(tenant=tenant)
        _save_rule(rule, fields)
    _audit(rule, "retention.rule.add", actor, after=rule)
    _renew(tenant.pk)
    return rule


@transaction.atomic
def change_rule(*, rule: RetentionRule, actor: Actor, **fields: Any) -> RetentionRule:
    """`fields`: names in RULE_FIELDS; absent ones stay unchanged. Raises ValidationError."""
    with tenant_scope(rule.tenant_id):
        row: RetentionRule = RetentionRule.objects.select_for_update().get(pk=rule.pk)
        require_unchanged(row)
        before = model_to_dict(row, RULE_FIELDS)
        _save_rule(row, fields)
    _audit(row, "retention.rule.change", actor, before=before, after=row)
    _renew(row.tenant_id)
    return row


@transaction.atomic
def remove_rule(*, rule: RetentionRule, actor: Actor) -> None:
    require_unchanged(rule)
    _audit(rule, "retention.rule.remove", actor, before=model_to_dict(rule, RULE_FIELDS))
    with tenant_scope(rule.tenant_id):
        RetentionRule.objects.filter(pk=rule.pk).delete()
    _renew(rule.tenant_id)


def _save_rule(rule: RetentionRule, fields: dict[str, Any]) -> None:
    for name in RULE_FIELDS:
        if name in fields:
            setattr(rule, name, fields[name])
    rule.full_clean(validate_unique=False, validate_constraints=True)
    rule.save()


def _tell(tenant_id: int, what: str, id_: object, changed: Iterable[str]) -> None:
    subject: Subject = {"type": "policy", "id": str(id_), "name": what}
    if names := sorted(changed):
        data = {"what": what, "changed": names}
        emit("policy.changed", tenant_id=tenant_id, subject=subject, data=data)


def _differing(before: Mapping[str, Any], after: Mapping[str, Any]) -> set[str]:
    return {name for name in {*before, *after} if before.get(name) != after.get(name)}


def _renew(tenant_id: int) -> None:
    """On commit, new blocks get the new terms; the next walk updates stored blocks."""
    with tenant_scope(tenant_id):
        RetentionPolicy.objects.update(generation=F("generation") + 1)
    provision_on_commit(tenant_id)


def _audit(
    rule: RetentionRule,
    action: str,
    actor: Actor,
    *,
    before: dict[str, Any] | None = None,
    after: RetentionRule | None = None,
) -> None:
    values = None if after is None else model_to_dict(after, RULE_FIELDS)
    record(
        actor=actor,
        tenant_id=rule.tenant_id,
        action=action,
        obj=rule,
        before=before,
        after=values,
    )
    _tell(rule.tenant_id, "rule", rule.pk, _differing(before or {}, values or {}))
