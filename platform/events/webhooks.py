"""Changes of webhooks, each one transaction with its audit event."""

from collections.abc import Sequence
from datetime import timedelta

from django.db import transaction
from django.db.models import F
from django.utils import timezone

from base import log_events, outbound
from base.preconditions import require_unchanged
from base.problems import Problem
from events.kinds import KINDS, matches
from events.models import Delivery, Event, Webhook
from events.services import new_event
from events.signing import secret_of
from tenants.audit import SYSTEM, Actor, record
from tenants.models import Tenant
from tenants.scope import tenant_scope

MOST = 20  # of a tenant
MOST_TYPES = 20
MOST_OVERLAP_S = 7 * 86_400


def add(*, tenant: Tenant, url: str, types: Sequence[str], actor: Actor) -> tuple[Webhook, str]:
    """A new webhook and its secret, which is shown once.

    Raises Problem: malformed, address-refused, limit-reached.
    """
    _check(url, types)
    with transaction.atomic(), tenant_scope(tenant.pk):
        Tenant.objects.select_for_update().get(pk=tenant.pk)  # so that both of two count
        if Webhook.objects.count() >= MOST:
            raise Problem(
                "limit-reached",
                f"A tenant has at most {MOST} webhooks.",
                limit="webhooks",
                most=MOST,
            )
        webhook = Webhook.objects.create(url=url, types=list(types))
        record(
            actor=actor,
            tenant_id=tenant.pk,
            action="webhook.add",
            obj=webhook,
            after={"url": url, "types": list(types)},
        )
    return webhook, secret_of(webhook)


def change(
    *,
    webhook: Webhook,
    actor: Actor,
    url: str | None = None,
    types: Sequence[str] | None = None,
    is_active: bool | None = None,
) -> Webhook:
    """None: as it is. A webhook that becomes active begins anew, with what waits for it.

    Raises Problem: malformed, address-refused.
    """
    if url is not None or types is not None:
        _check(webhook.url if url is None else url, webhook.types if types is None else types)
    with transaction.atomic():
        row = Webhook.unscoped.select_for_update().get(pk=webhook.pk)
        require_unchanged(row)
        before = _values(row)
        row.url = row.url if url is None else url
        row.types = row.types if types is None else list(types)
        if is_active is not None and is_active != row.is_active:
            row.is_active = is_active
            row.inactive_reason = "" if is_active else "switched off"
        if is_active or url is not None:
            row.failures, row.failing_since, row.quiet_until = 0, None, None
        row.save()
        record(
            actor=actor,
            tenant_id=row.tenant_id,
            action="webhook.change",
            obj=row,
            before=before,
            after=_values(row),
        )
    return row


def deactivate(webhook: Webhook, reason: str) -> None:
    """By the platform: its receiver is gone. Inside a transaction that holds its row."""
    Webhook.unscoped.filter(pk=webhook.pk).update(is_active=False, inactive_reason=reason[:200])
    record(
        actor=SYSTEM,
        tenant_id=webhook.tenant_id,
        action="webhook.deactivate",
        obj=webhook,
        before={"is_active": True},
        after={"is_active": False, "reason": reason},
    )
    log_events.WEBHOOK_DEACTIVATED.log(
        webhook=webhook.pk, tenant_id=webhook.tenant_id, reason=reason
    )


@transaction.atomic
def remove(*, webhook: Webhook, actor: Actor) -> None:
    """With its deliveries."""
    require_unchanged(webhook)
    record(
        actor=actor,
        tenant_id=webhook.tenant_id,
        action="webhook.remove",
        obj=webhook,
        before={"url": webhook.url},
    )
    Webhook.unscoped.filter(pk=webhook.pk).delete()


@transaction.atomic
def rotate(*, webhook: Webhook, overlap_s: int, actor: Actor) -> tuple[Webhook, str]:
    """A new secret, shown once. For `overlap_s` seconds the one before signs, too."""
    require_unchanged(webhook)
    until = timezone.now() + timedelta(seconds=overlap_s)
    Webhook.unscoped.filter(pk=webhook.pk).update(
        generation=F("generation") + 1, previous_until=until
    )
    row: Webhook = Webhook.unscoped.select_related("tenant").get(pk=webhook.pk)
    record(
        actor=actor,
        tenant_id=row.tenant_id,
        action="webhook.rotate_secret",
        obj=row,
        before={"generation": row.generation - 1},
        after={"generation": row.generation, "previous_until": until.isoformat()},
    )
    return row, secret_of(row)


@transaction.atomic
def test(webhook: Webhook) -> Delivery:
    """Sends `webhook.test` to this webhook only. Raises Problem (conflict) if it is inactive."""
    _require_active(webhook)
    event = new_event(
        "webhook.test",
        tenant_id=webhook.tenant_id,
        subject={"type": "webhook", "id": str(webhook.pk), "name": webhook.url},
    )
    with tenant_scope(webhook.tenant_id):
        return Delivery.objects.create(webhook=webhook, event=event)


def retry(delivery: Delivery) -> Delivery:
    """Delivers again, from the first attempt. Raises Problem (conflict) if it is inactive."""
    _require_active(delivery.webhook)
    Delivery.unscoped.filter(pk=delivery.pk).update(
        state=Delivery.State.WAITING, attempts=0, next_attempt_at=timezone.now(), finished_at=None
    )
    Webhook.unscoped.filter(pk=delivery.webhook_id).update(quiet_until=None)
    delivery.refresh_from_db()
    return delivery


def plan(events: Sequence[Event]) -> None:
    """A delivery for each active webhook that wants an event. Follows `events.order`."""
    tenants = {event.tenant_id for event in events if event.tenant_id is not None}
    webhooks = Webhook.unscoped.filter(tenant_id__in=tenants, is_active=True) if tenants else ()
    Delivery.unscoped.bulk_create(
        [
            Delivery(tenant_id=webhook.tenant_id, webhook=webhook, event=event)
            for webhook in webhooks
            for event in events
            if event.tenant_id == webhook.tenant_id
            and event.kind != "webhook.test"
            and matches(event.kind, webhook.types)
        ],
        batch_size=500,
    )


def _require_active(webhook: Webhook) -> None:
    if not webhook.is_active:
        raise Problem("conflict", f"This webhook is inactive: {webhook.inactive_reason}.")


def _check(url: str, types: Sequence[str]) -> None:
    outbound.check(url, field="url")
    if len(types) > MOST_TYPES:
        raise Problem("malformed", f"types: at most {MOST_TYPES}.", field="types")
    for pattern in types:
        if not any(matches(kind, [pattern]) for kind in KINDS):
            known = ", ".join(sorted(KINDS))
            raise Problem(
                "malformed", f"types: {pattern[:60]!r} matches none of {known}.", field="types"
            )


def _values(webhook: Webhook) -> dict[str, object]:
    return {"url": webhook.url, "types": webhook.types, "is_active": webhook.is_active}
