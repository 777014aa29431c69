"""Named contexts: record, pin, unpin, expire, extend, and where their blocks are.

Pins and extensions are intent and stand in the database. The ends of pins in Valkey are derived
from it by `settle_pins`, the terms of blocks by `retention.stored`; both may be repeated at any
time (after a failure, after `rebuild_index`).
"""

import logging
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from django.db import transaction
from django.utils import timezone
from valkey.exceptions import ValkeyError

from catalog.models import Context, NodeSession
from controlplane import hot
from controlplane.problems import Problem
from neve.errors import MissReason
from neve.hot import HotTier, OverBudget, Tier
from retention import stored
from retention.rulebook import Rulebook, rulebook_of
from tenants.audit import Actor
from tenants.audit import record as audit
from tenants.scope import tenant_scope

log = logging.getLogger("neve.contexts")

MAX_PIN = timedelta(days=365)


@dataclass(frozen=True)
class Residency:
    """Where the blocks of a context are, counted, and one by one in the order of its chain."""

    hot: int = 0
    cold: int = 0
    lost: int = 0
    blocks: list[dict[str, Any]] = field(default_factory=list)


def record(
    *,
    session: NodeSession,
    name: str,
    ids: list[bytes],
    tokens: int,
    label: str | None,
    pin_s: int | None,
    actor: Actor,
) -> tuple[Context, bool]:
    """Upserts by (tenant, space, name); returns the context and whether it is new.

    Inside the tenant's scope. A pin that it has goes over to the blocks of the new chain, as far as
    the budget of pins allows; a label of None keeps the old one. A new pin over the budget is
    refused as a whole, and the context recorded. Valkey being down is no failure: the blocks'
    terms are settled later, pins by the next change of a pin or rebuild.
    """
    now = timezone.now()
    with transaction.atomic():
        context, created = Context.objects.select_for_update().get_or_create(
            space_id=session.space_id,
            name=name,
            defaults={"chain": b"".join(ids), "blocks": len(ids), "tokens": tokens},
        )
        before = None if created else _facts(context)
        known = set() if created else set(context.ids())
        is_relabelled = not created and label is not None and label != context.label
        context.chain, context.blocks, context.tokens = b"".join(ids), len(ids), tokens
        context.label = context.label if label is None else label
        context.expired_at, context.updated_at = None, now
        context.save()
        # Not each request that an agent adds to its context: what somebody decided.
        if created:
            _audit(context, "context.record", actor, before=before, after=_facts(context))

    def settle() -> None:
        stored.hold_or_follow_later(context, anew=is_relabelled)
        if context.is_pinned:
            settle_pins(
                tenant_id=context.tenant_id,
                space_id=context.space_id,
                ids=[*ids, *(known - set(ids))],
            )

    transaction.on_commit(settle, robust=True)
    if pin_s is not None:
        _pin_for(context, pin_s, actor)
    return context, created


def pin(*, context: Context, until: datetime, actor: Actor) -> int:
    """Sets the end of the pin. Returns how many of its blocks are there to be kept.

    Raises Problem: malformed (`until`), pin-budget (then nothing changes), hot-tier-unavailable
    (the pin is noted and applied later, as far as the budget allows).
    """
    now = timezone.now()
    if not now < until <= now + MAX_PIN:
        raise Problem(
            "malformed",
            f"until: needs to lie within the next {MAX_PIN.days} days, got {until.isoformat()}.",
            field="until",
        )
    budget = rulebook_of(context.tenant_id).of_context(
        context.space_id, context.label, context.name
    )
    try:
        with transaction.atomic():
            row = _change(context, "context.pin", actor, pinned_until=until)
            _charge_pin(row, until, budget.pin_budget_bytes)
    except OverBudget as refusal:
        _apply(context)  # what other buckets had granted
        raise Problem(
            "pin-budget",
            f"pin_budget_bytes: {refusal.detail}",
            field="pin_budget_bytes",
            budget_bytes=refusal.budget_bytes,
            used_bytes=refusal.used_bytes,
            asked_bytes=refusal.asked_bytes,
        ) from refusal
    return _apply(row)


def unpin(*, context: Context, actor: Actor) -> None:
    """Blocks that another pinned context shares stay pinned as long as that one asks.

    Raises Problem (hot-tier-unavailable).
    """
    _apply(_change(context, "context.unpin", actor, pinned_until=None))


def expire(*, context: Context, actor: Actor) -> tuple[int, int]:
    """Takes the context's own pin away and removes its blocks from both tiers, at once.

    Returns (blocks removed, blocks kept because another context pins them).
    Raises Problem (hot-tier-unavailable).
    """
    row = _change(
        context,
        "context.expire",
        actor,
        pinned_until=None,
        extended_until=None,
        expired_at=timezone.now(),
    )
    _apply(row)
    with hot.required():
        return hot.hot_tier(row.tenant_id).expire(row.ids())


def extend(*, context: Context, for_s: int, actor: Actor) -> int:
    """Lets the blocks live at least that long from now, in both tiers. Returns how many do.

    It is noted in the database, so it also holds after a rebuild of the index.
    Raises Problem (hot-tier-unavailable): it is noted then and holds from the next walk on.
    """
    until = timezone.now() + timedelta(seconds=for_s)
    until = max(until, context.extended_until or until)
    row = _change(context, "context.extend", actor, extended_until=until, updated_at=timezone.now())
    with hot.required():
        return stored.hold_or_follow_later(row)


def residency(context: Context) -> Residency:
    """Costs one function call per 1,000 blocks. Raises Problem (hot-tier-unavailable)."""
    ids = context.ids()
    with hot.required():
        answers = hot.hot_tier(context.tenant_id).match(ids)
    blocks = [_residence(id_, answer) for id_, answer in zip(ids, answers, strict=True)]
    tiers = [block["tier"] for block in blocks]
    return Residency(tiers.count("hot"), tiers.count("cold"), tiers.count(None), blocks)


def settle_pins(*, tenant_id: int, space_id: int, ids: Iterable[bytes]) -> int:
    """Makes the ends of the blocks' pins what the pinned contexts of the space say: the latest.

    What was granted and has no room in the budget any more (a chain grew) is pinned from its root
    on as far as there is. Repeatable. Returns how many blocks are pinned. Raises valkey's errors.
    """
    until_of = dict.fromkeys(ids, 0)
    tier, book = hot.hot_tier(tenant_id), rulebook_of(tenant_id)
    with tenant_scope(tenant_id):
        pinned = Context.objects.filter(space_id=space_id, pinned_until__gt=timezone.now())
        for context in pinned.order_by("created_at", "pk"):
            until_s = int(context.pinned_until.timestamp())
            shared = [id_ for id_ in context.ids() if id_ in until_of]
            _pin_again(tier, book, context, shared)
            for id_ in shared:
                until_of[id_] = max(until_of[id_], until_s)
    groups: defaultdict[int, list[bytes]] = defaultdict(list)
    for id_, until_s in until_of.items():
        groups[until_s].append(id_)
    tier.unpin(groups.pop(0, []))
    return sum(tier.unpin(members, until_s) for until_s, members in groups.items())


def restore_pins(tenant_id: int) -> None:
    """After the index was rebuilt. Inside the tenant's scope. Raises valkey's errors."""
    tier, book = hot.hot_tier(tenant_id), rulebook_of(tenant_id)
    pinned = Context.objects.filter(pinned_until__gt=timezone.now())
    for context in pinned.order_by("created_at", "pk").iterator(chunk_size=100):
        _pin_again(tier, book, context, context.ids())


def _pin_again(tier: HotTier, book: Rulebook, context: Context, ids: list[bytes]) -> None:
    terms = book.of_context(context.space_id, context.label, context.name)
    tier.pin(
        ids,
        int(context.pinned_until.timestamp()),
        budget_bytes=terms.pin_budget_bytes,
        as_many_as_fit=True,
    )


def _charge_pin(context: Context, until: datetime, budget_bytes: int | None) -> None:
    """Raises OverBudget. A hot tier that does not answer is no refusal."""
    try:
        hot.hot_tier(context.tenant_id).pin(
            context.ids(), int(until.timestamp()), budget_bytes=budget_bytes
        )
    except ValkeyError as error:
        log.warning("pin_not_applied context=%s error=%s", context.pk, error)


def _pin_for(context: Context, for_s: int, actor: Actor) -> None:
    """The pin that a node's request asked for; never shorter than the one there is."""
    until = timezone.now() + timedelta(seconds=for_s)
    until = max(until, context.pinned_until or until)
    try:
        pin(context=context, until=until, actor=actor)
    except Problem as problem:
        log.warning("pin_refused context=%s reason=%s", context.pk, problem.detail)
        if problem.kind == "pin-budget":
            _audit(context, "context.pin_refused", actor, before=None, after=problem.members)
    context.refresh_from_db(fields=["pinned_until"])


def _apply(context: Context) -> int:
    with hot.required():
        return settle_pins(
            tenant_id=context.tenant_id, space_id=context.space_id, ids=context.ids()
        )


@transaction.atomic
def _change(context: Context, action: str, actor: Actor, **fields: Any) -> Context:
    with tenant_scope(context.tenant_id):
        row: Context = Context.objects.select_for_update().get(pk=context.pk)
        before = _facts(row)
        for name, value in fields.items():
            setattr(row, name, value)
        row.save(update_fields=list(fields))
        _audit(row, action, actor, before=before, after=_facts(row))
    return row


def _facts(context: Context) -> dict[str, Any]:
    def iso(at: datetime | None) -> str | None:
        return at.isoformat() if at else None

    return {
        "name": context.name,
        "label": context.label,
        "blocks": context.blocks,
        "tokens": context.tokens,
        "pinned_until": iso(context.pinned_until),
        "extended_until": iso(context.extended_until),
        "expired_at": iso(context.expired_at),
    }


def _audit(
    context: Context,
    action: str,
    actor: Actor,
    *,
    before: dict[str, Any] | None,
    after: dict[str, Any],
) -> None:
    audit(
        actor=actor,
        tenant_id=context.tenant_id,
        action=action,
        obj=context,
        before=before,
        after=after,
    )


def _residence(id_: bytes, answer: Any) -> dict[str, Any]:
    if isinstance(answer, MissReason):
        return {"id": id_.hex(), "tier": None, "reason": answer.value}
    tier: Tier = answer.tier
    return {"id": id_.hex(), "tier": tier.value, "reason": None}
