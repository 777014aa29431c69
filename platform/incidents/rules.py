"""Rules in force: a tenant's own, else those of all tenants, else defaults of `incidents.kinds`."""

from collections import defaultdict
from collections.abc import Collection
from typing import Any

from django.db import transaction
from django.utils import timezone

from base.problems import Problem
from incidents.assess import Threshold
from incidents.kinds import KINDS, MOST_FOR_S, RuleKind
from incidents.models import AlertRule
from tenants.audit import Actor, record
from tenants.models import Tenant

Rules = dict[str, Threshold]


def in_force(tenant_ids: Collection[int | None]) -> dict[int | None, Rules]:
    """By tenant id (None: of the platform), each kind's rule. One statement."""
    own: defaultdict[int | None, Rules] = defaultdict(dict)
    for row in AlertRule.unscoped.all():
        source = "all" if row.tenant_id is None else "tenant"
        own[row.tenant_id][row.kind] = Threshold(row.threshold, row.for_s, row.is_on, source)
    common = {
        kind.name: own[None].get(kind.name, Threshold(kind.threshold, kind.for_s))
        for kind in KINDS.values()
    }
    return {id_: common if id_ is None else common | own.get(id_, {}) for id_ in tenant_ids}


def kind_named(name: str) -> RuleKind:
    """Raises Problem (not-found) that lists them."""
    if name not in KINDS:
        raise Problem("not-found", f"There is no rule {name!r}: {', '.join(KINDS)}.")
    return KINDS[name]


@transaction.atomic
def change(
    *,
    kind: RuleKind,
    tenant: Tenant | None,
    actor: Actor,
    threshold: float | None = None,
    for_s: int | None = None,
    is_on: bool | None = None,
) -> Threshold:
    """Sets a rule of a tenant, or (None) of all that have none of their own. None keeps a value.

    Raises Problem (malformed) with the field.
    """
    tenant_id = None if tenant is None else tenant.pk
    if tenant is not None:
        Tenant.objects.select_for_update().get(pk=tenant.pk)  # two changes, one after the other
        if not kind.of_tenant:
            raise Problem("malformed", f"tenant: {kind.name} is of the platform.", field="tenant")
    if threshold is not None and not kind.least <= threshold <= kind.most:
        words = f"threshold: need {kind.least:g} to {kind.most:g} {kind.unit}."
        raise Problem("malformed", words, field="threshold")
    if for_s is not None and not 0 <= for_s <= MOST_FOR_S:
        raise Problem("malformed", f"for_s: need 0 to {MOST_FOR_S}.", field="for_s")
    was = in_force([tenant_id])[tenant_id][kind.name]
    now = Threshold(
        was.threshold if threshold is None else float(threshold),
        was.for_s if for_s is None else for_s,
        was.is_on if is_on is None else is_on,
        "all" if tenant is None else "tenant",
    )
    values = {"threshold": now.threshold, "for_s": now.for_s, "is_on": now.is_on}
    row, _ = AlertRule.unscoped.update_or_create(
        tenant=tenant, kind=kind.name, defaults=values | {"updated_at": timezone.now()}
    )
    before = {"threshold": was.threshold, "for_s": was.for_s, "is_on": was.is_on}
    if before != values:
        _audit(row, actor, {"kind": kind.name, **before}, {"kind": kind.name, **values})
    return now


@transaction.atomic
def reset(*, kind: RuleKind, tenant: Tenant | None, actor: Actor) -> Threshold:
    """Removes a tenant's own rule, or that of all: what stands behind it is in force again."""
    row = AlertRule.unscoped.select_for_update().filter(tenant=tenant, kind=kind.name).first()
    if row is not None:
        before = {"threshold": row.threshold, "for_s": row.for_s, "is_on": row.is_on}
        _audit(row, actor, {"kind": kind.name, **before}, {"kind": kind.name, "is_reset": True})
        row.delete()
    id_ = None if tenant is None else tenant.pk
    return in_force([id_])[id_][kind.name]


def _audit(row: AlertRule, actor: Actor, before: dict[str, Any], after: dict[str, Any]) -> None:
    record(
        actor=actor,
        tenant_id=row.tenant_id,
        action="alert_rule.change",
        obj=row,
        before=before,
        after=after,
    )
