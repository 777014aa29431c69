"""Changes of incidents by people and keys, each one transaction with its audit event."""

from datetime import datetime, timedelta
from typing import Any

from django.contrib.auth import get_user_model
from django.db import transaction
from django.db.models import Q
from django.utils import timezone

from base.preconditions import require_unchanged
from base.problems import Problem
from events.services import emit
from incidents.evaluate import data_of, subject_of
from incidents.models import Incident, MailWish
from tenants.audit import Actor, record

MOST_MUTE = timedelta(days=30)
MOST_OWNER = 200


@transaction.atomic
def acknowledge(*, incident: Incident, actor: Actor) -> Incident:
    """Says that somebody looks after it. Raises Problem (conflict) if it ended."""
    row = _locked(incident)
    if row.ended_at is not None:
        raise Problem("conflict", "This incident has ended: nothing is left to acknowledge.")
    if row.acknowledged_at is not None:
        return row
    row.acknowledged_at, row.acknowledged_by = timezone.now(), actor.name[:200]
    row.owner = row.owner or actor.name[:MOST_OWNER]
    row.save(update_fields=["acknowledged_at", "acknowledged_by", "owner"])
    _audit(row, actor, "incident.acknowledge", None, {"owner": row.owner})
    slug = row.tenant.slug if row.tenant else ""
    emit(
        "incident.acknowledged",
        tenant_id=row.tenant_id,
        subject=subject_of(row, slug),
        data=data_of(row) | {"by": actor.name},
    )
    return row


@transaction.atomic
def mute(*, incident: Incident, until: datetime | None, actor: Actor) -> Incident:
    """Hides it from attention and mail until then, also if it opens again. None: not any more.

    Of the actor's side only: a tenant's people do not hide it from operators, nor these from them.
    Raises Problem (malformed).
    """
    now = timezone.now()
    if until is not None and not now < until <= now + MOST_MUTE:
        raise Problem("malformed", "for: need more than 0 and at most 30 days.", field="for")
    row = _locked(incident)
    name = "operators_muted_until" if actor.is_operator else "muted_until"
    was: datetime | None = getattr(row, name)
    before = {name: was.isoformat() if was else None}
    setattr(row, name, until)
    row.save(update_fields=[name])
    after = {name: until.isoformat() if until else None}
    _audit(row, actor, "incident.mute", before, after)
    return row


@transaction.atomic
def set_owner(*, incident: Incident, owner: str, actor: Actor) -> Incident:
    """A person, by user name; "": nobody. Operators choose among those who see the incident, others
    among the tenant's people: whether there is an operator of a name is told to operators only.

    Raises Problem (malformed).
    """
    row = _locked(incident)
    is_known = not owner or owner in (actor.name, row.owner)
    if not is_known and not _may_own(owner, row.tenant_id, among_operators=actor.is_operator):
        words = f"owner: nobody named {owner[:60]!r} sees this incident."
        raise Problem("malformed", words, field="owner")
    before, row.owner = {"owner": row.owner}, owner[:MOST_OWNER]
    row.save(update_fields=["owner"])
    _audit(row, actor, "incident.owner", before, {"owner": row.owner})
    return row


@transaction.atomic
def wish_mail(*, user_id: int, wants: bool, actor: Actor) -> None:
    """Whether a person gets incidents by mail."""
    found = MailWish.objects.filter(user_id=user_id).first()
    if wants and found is None:
        made, _ = MailWish.objects.get_or_create(user_id=user_id)
        record(actor=actor, tenant_id=None, action="incident_mail.on", obj=made, after={})
    elif not wants and found is not None:
        record(actor=actor, tenant_id=None, action="incident_mail.off", obj=found, after={})
        found.delete()


def wants_mail(user_id: int) -> bool:
    return MailWish.objects.filter(user_id=user_id).exists()


def _may_own(owner: str, tenant_id: int | None, *, among_operators: bool) -> bool:
    allowed = Q(is_staff=True) if among_operators else Q(pk=None)
    if tenant_id is not None:
        allowed |= Q(memberships__tenant_id=tenant_id)
    people = get_user_model().objects.filter(allowed, username=owner, is_active=True)
    return people.exists()


def _locked(incident: Incident) -> Incident:
    row = Incident.unscoped.select_for_update(of=("self",)).get(pk=incident.pk)
    require_unchanged(row)
    return row


def _audit(
    row: Incident, actor: Actor, action: str, before: dict[str, Any] | None, after: dict[str, Any]
) -> None:
    record(actor=actor, tenant_id=row.tenant_id, action=action, obj=row, before=before, after=after)
