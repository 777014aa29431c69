"""Applies a changed policy: one walk through the tenant's index, by one worker at a time.

A policy whose `applied_generation` is behind its `generation` needs a walk; a change during a walk
needs another one. `walk` is the place of a walk: a pass ends after PASS_S, or its worker dies and
its lease lapses, and the next pass goes on from there.
"""

import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from django.db.models import F
from django.utils import timezone

from contexts.stored import Walk, follow
from neve.index.scan import BEGINNING, Place
from retention import provisioning
from retention.models import RetentionPolicy
from tenants.models import Tenant
from tenants.scope import tenant_scope
from tiering.elapsed import is_leased

LEASE = timedelta(seconds=60)
NOTED_S = 10.0  # between two notes of a walk's place
PASS_S = 300.0


def claim(tenant_id: int) -> tuple[int, Walk] | None:
    """The generation to apply and the walk's place; None: no work, or another worker has it."""
    now = timezone.now()
    with tenant_scope(tenant_id):
        waiting = RetentionPolicy.objects.filter(applied_generation__lt=F("generation"))
        if not waiting.exclude(is_leased("applying_until", LEASE)).update(
            applying_until=now + LEASE
        ):
            return None
        policy = RetentionPolicy.objects.get()
    return policy.generation, _resume(policy.walk, policy.generation)


def apply(
    tenant_id: int,
    generation: int,
    walk: Walk,
    *,
    progress: Callable[[Walk], object] = lambda walk: None,
) -> None:
    """Goes on with the walk of `claim`, to its end or for PASS_S.

    Raises valkey's errors; the walk goes on when the lease has lapsed.
    """
    end, note_at = time.monotonic() + PASS_S, time.monotonic() + NOTED_S
    provisioning.provision_tenant(
        Tenant.objects.get(pk=tenant_id)
    )  # if Valkey was down when the policy changed
    for _ in follow(tenant_id, walk):
        now = time.monotonic()
        if now >= end:
            break
        if now >= note_at and walk.next is not None:
            note_at = now + NOTED_S
            noted = _noted(walk, generation)
            _save(tenant_id, walk=noted, applying_until=timezone.now() + LEASE)
            progress(walk)
    if walk.next is None:
        _save(tenant_id, walk=None, applying_until=None, applied_generation=generation)
    else:
        _save(tenant_id, walk=_noted(walk, generation), applying_until=None)


def _save(tenant_id: int, **fields: Any) -> None:
    with tenant_scope(tenant_id):
        RetentionPolicy.objects.update(**fields)


def _noted(walk: Walk, generation: int) -> dict[str, Any]:
    # The cursor as text: it may need all of 64 bits, more than a JSON number is safe for.
    bucket, cursor = walk.next or BEGINNING
    return {
        "generation": generation,
        "started_at": walk.started_at.isoformat(),
        "blocks": walk.blocks,
        "changed": walk.changed,
        "bucket": bucket,
        "cursor": str(cursor),
    }


def _resume(noted: dict[str, Any] | None, generation: int) -> Walk:
    """A new walk if the noted one was for another generation."""
    if noted is None or noted["generation"] != generation:
        return Walk()
    return Walk(
        datetime.fromisoformat(noted["started_at"]),
        noted["blocks"],
        noted["changed"],
        Place(noted["bucket"], int(noted["cursor"])),
    )
