"""Delivers events to webhooks. A dead receiver costs one short attempt now and then.

A tick takes webhooks by lease, the healthy ones first, a few of each tenant, and sends to several
at once. To one webhook it sends one after the other, and stops at the first failure. An attempt may
happen twice (a killed worker, a lease that ran out): receivers tell by `webhook-id`.

Answers are not kept, apart from their status: the log must not read to a tenant what an address
answers that only the platform reaches.
"""

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db import transaction
from django.db.models import Exists, F, OuterRef, Q, QuerySet
from django.utils import timezone

from base import outbound
from base.isolation import isolated
from base.problems import Problem
from events import order, signing, webhooks
from events.models import Delivery, Webhook
from events.reading import envelope

# Pauses behind the first attempt and so on; 75 hours together.
# Source: the schedule that the Standard Webhooks specification recommends.
RETRIES_S = (5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400)
JITTER = 0.1  # of a pause, added
ATTEMPT_S = 5.0  # of one request, from the name to the whole answer
BUDGET_S = 8.0  # of one webhook in a tick: no request begins later
ANSWER_BYTES = 64 << 10
LEASE_S = 60
QUIET_MOST_S = 60  # between attempts at a failing webhook, whatever waits for it
OF_WEBHOOK, OF_TENANT, OF_TICK, FAILING = 50, 4, 32, 8  # most: deliveries; webhooks, thrice
THREADS = 16
DELIVER = "deliver"  # the kind of work
LOGGED = 20  # attempts of a delivery

_ticks = threading.BoundedSemaphore(2)  # others of this process return at once


@dataclass(frozen=True)
class Attempt:
    """`status` None: no answer, for the reason in `error`."""

    delivery_id: int
    at: datetime
    status: int | None
    error: str
    latency_ms: int

    @property
    def is_success(self) -> bool:
        return self.status is not None and 200 <= self.status < 300

    def entry(self) -> dict[str, Any]:
        return {
            "at": self.at.isoformat(timespec="milliseconds"),
            "status": self.status,
            "error": self.error,
            "latency_ms": self.latency_ms,
        }


def deliver() -> int:
    """One tick: numbers events, then makes the attempts that are due. Returns how many."""
    if not _ticks.acquire(blocking=False):
        return 0
    try:
        order.number_all()
        attempts = 0
        with ThreadPoolExecutor(THREADS, thread_name_prefix="neve-webhook") as pool:
            sending: dict[Future[list[Attempt]], Webhook] = {}
            for webhook in _take():
                with isolated(DELIVER, webhook.tenant_id):
                    if due := _due_of(webhook):
                        sending[pool.submit(_send_all, webhook, due)] = webhook
            for done in as_completed(sending):
                with isolated(DELIVER, sending[done].tenant_id):
                    attempts += _record(sending[done], done.result())
        return attempts
    finally:
        _ticks.release()


def _due(now: datetime) -> QuerySet[Delivery]:
    return Delivery.unscoped.filter(
        state=Delivery.State.WAITING, next_attempt_at__lte=now, event__sequence__isnull=False
    )


def _take() -> list[Webhook]:
    """Webhooks with due deliveries, by lease; those that wait longest first."""
    now = timezone.now()
    free = Q(leased_until=None) | Q(leased_until__lte=now)
    loud = Q(quiet_until=None) | Q(quiet_until__lte=now)
    waiting = Webhook.unscoped.filter(
        free,
        loud,
        Exists(_due(now).filter(webhook=OuterRef("pk"))),
        is_active=True,
        tenant__is_active=True,
    ).order_by(F("leased_until").asc(nulls_first=True))
    chosen = [
        *_fair(waiting.filter(failures=0), OF_TICK),
        *_fair(waiting.filter(failures__gt=0), FAILING),
    ]
    until = now + timedelta(seconds=LEASE_S)
    return [
        webhook
        for webhook in chosen
        if Webhook.unscoped.filter(free, pk=webhook.pk).update(leased_until=until)
    ]


def _fair(waiting: QuerySet[Webhook], most: int) -> list[Webhook]:
    """The first `most`, of each tenant at most OF_TENANT."""
    of_tenant: Counter[int] = Counter()
    chosen: list[Webhook] = []
    for webhook in waiting[: 20 * most]:
        of_tenant[webhook.tenant_id] += 1
        if of_tenant[webhook.tenant_id] <= OF_TENANT and len(chosen) < most:
            chosen.append(webhook)
    return chosen


def _due_of(webhook: Webhook) -> list[tuple[int, str, bytes]]:
    """Delivery's number, message id and body, oldest first."""
    rows = _due(timezone.now()).filter(webhook=webhook).select_related("event__tenant")
    most = 1 if webhook.failures else OF_WEBHOOK
    return [
        (row.pk, str(row.event.uuid), json.dumps(envelope(row.event)).encode())
        for row in rows.order_by("next_attempt_at", "pk")[:most]
    ]


def _send_all(webhook: Webhook, messages: Sequence[tuple[int, str, bytes]]) -> list[Attempt]:
    """In a thread, without the database. Stops at the first failure, or when the time is up."""
    began, attempts = time.monotonic(), []
    for delivery_id, message_id, body in messages:
        if time.monotonic() - began > BUDGET_S:
            break
        attempts.append(_send(webhook, delivery_id, message_id, body))
        if not attempts[-1].is_success:
            break
    return attempts


def _send(webhook: Webhook, delivery_id: int, message_id: str, body: bytes) -> Attempt:
    at, began = timezone.now(), time.monotonic()
    status, error = None, ""
    try:
        status = outbound.send(
            "POST",
            webhook.url,
            field="url",
            body=body,
            headers=signing.headers(webhook, message_id=message_id, body=body, at=at),
            timeout_s=ATTEMPT_S,
            most_bytes=ANSWER_BYTES,
        ).status
    except outbound.Unreachable as unreachable:
        error = str(unreachable)[:200]
    except Problem:  # its words would tell to which address an internal name leads
        error = "the platform may not connect to this address"
    return Attempt(delivery_id, at, status, error, int(1000 * (time.monotonic() - began)))


@transaction.atomic
def _record(taken: Webhook, attempts: Sequence[Attempt]) -> int:
    """Writes down what happened, and gives the lease back."""
    webhook = Webhook.unscoped.select_for_update().filter(pk=taken.pk).first()
    if webhook is None:  # removed meanwhile
        return len(attempts)
    webhook.leased_until = timezone.now()
    numbers = [attempt.delivery_id for attempt in attempts]
    rows = {row.pk: row for row in Delivery.unscoped.filter(pk__in=numbers)}
    for attempt in attempts:
        if (delivery := rows.get(attempt.delivery_id)) is not None:
            _note(webhook, delivery, attempt)
    fields = ["failures", "failing_since", "delivered_at", "quiet_until", "leased_until"]
    webhook.save(update_fields=fields)
    return len(attempts)


def _note(webhook: Webhook, delivery: Delivery, attempt: Attempt) -> None:
    now = timezone.now()
    delivery.attempts += 1
    delivery.log = [*delivery.log, attempt.entry()][-LOGGED:]
    if attempt.is_success:
        delivery.state, delivery.finished_at = Delivery.State.DELIVERED, now
        webhook.failures, webhook.failing_since, webhook.quiet_until = 0, None, None
        webhook.delivered_at = now
    else:
        webhook.failures += 1
        webhook.failing_since = webhook.failing_since or now
        quiet_s = min(2.0**webhook.failures, QUIET_MOST_S) * random.uniform(0.75, 1.0)
        webhook.quiet_until = now + timedelta(seconds=quiet_s)
        is_gone = attempt.status == 410
        if is_gone or delivery.attempts > len(RETRIES_S):
            delivery.state, delivery.finished_at = Delivery.State.FAILED, now
            has_answered = webhook.delivered_at and webhook.delivered_at > delivery.created_at
            if is_gone:
                webhooks.deactivate(webhook, "its receiver answered 410 Gone")
            elif not has_answered:
                webhooks.deactivate(webhook, f"no success since {webhook.failing_since:%F %T} UTC")
        else:
            pause_s = RETRIES_S[delivery.attempts - 1] * random.uniform(1.0, 1.0 + JITTER)
            delivery.next_attempt_at = now + timedelta(seconds=pause_s)
    delivery.save(update_fields=["state", "attempts", "log", "next_attempt_at", "finished_at"])
