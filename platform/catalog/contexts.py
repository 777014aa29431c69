"""Named contexts: record, pin, unpin, expire, extend, and where their blocks are.

A pin is intent and stands in the database; the ends of pins in Valkey are derived from it by
`settle_pins`, which may be repeated at any time (after a failure, after `rebuild_index`).
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from django.db import transaction
from django.utils import timezone

from catalog.models import Context, NodeSession
from controlplane import hot
from controlplane.problems import Problem
from neve.errors import MissReason
from neve.hot import Tier
from retention.models import RetentionPolicy
from tenants.audit import Actor
from tenants.audit import record as audit
from tenants.scope import tenant_scope

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

    Inside the tenant's scope. A pin that it has goes over to the blocks of the new chain; a label
    of None keeps the old one. Valkey being down is logged: `settle_pins` catches up later.
    """
    now = timezone.now()
    with transaction.atomic():
        context, created = Context.objects.select_for_update().get_or_create(
            space_id=session.space_id,
            name=name,
            defaults={"chain": b"".join(ids), "blocks": len(ids), "tokens": tokens},
        )
        before = None if created else _facts(context)
        left = set(context.ids()) - set(ids)
        was_pinned = context.is_pinned
        context.chain, context.blocks, context.tokens = b"".join(ids), len(ids), tokens
        context.label = context.label if label is None else label
        context.expired_at, context.updated_at = None, now
        if pin_s is not None:
            until = now + timedelta(seconds=pin_s)
            context.pinned_until = max(until, context.pinned_until or until)
        context.save()
        # Not each request that an agent adds to its context: what somebody decided.
        if created or pin_s is not None:
            action = "context.record" if pin_s is None else "context.pin"
            _audit(context, action, actor, before=before, after=_facts(context))
    if context.is_pinned or was_pinned:
        transaction.on_commit(
            lambda: settle_pins(
                tenant_id=context.tenant_id, space_id=context.space_id, ids=[*ids, *left]
            ),
            robust=True,
        )
    return context, created


def pin(*, context: Context, until: datetime, actor: Actor) -> int:
    """Sets the end of the pin. Returns how many of its blocks are there to be kept.

    Raises Problem: malformed (`until`), hot-tier-unavailable (the pin is noted and applied later).
    """
    now = timezone.now()
    if not now < until <= now + MAX_PIN:
        raise Problem(
            "malformed",
            f"until: needs to lie within the next {MAX_PIN.days} days, got {until.isoformat()}.",
            field="until",
        )
    row = _change(context, "context.pin", actor, pinned_until=until)
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
    row = _change(context, "context.expire", actor, pinned_until=None, expired_at=timezone.now())
    _apply(row)
    with hot.required():
        return hot.hot_tier(row.tenant_id).expire(row.ids())


def extend(*, context: Context, for_s: int, actor: Actor) -> int:
    """Lets the blocks live at least that long from now, in both tiers. Returns how many do.

    Raises Problem (hot-tier-unavailable); it is noted then, and holds after the next rebuild.
    """
    until = timezone.now() + timedelta(seconds=for_s)
    until = max(until, context.extended_until or until)
    row = _change(context, "context.extend", actor, extended_until=until)
    with tenant_scope(row.tenant_id):
        terms = RetentionPolicy.objects.get().terms().for_blocks(int(until.timestamp()))
    with hot.required():
        return hot.hot_tier(row.tenant_id).retain(
            row.ids(), terms, held=True, join=True, flush=False
        )


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

    Repeatable. Returns how many blocks are pinned now. Raises valkey's errors.
    """
    until_of = dict.fromkeys(ids, 0)
    with tenant_scope(tenant_id):
        pinned = Context.objects.filter(space_id=space_id, pinned_until__gt=timezone.now())
        for context in pinned:
            until_s = int(context.pinned_until.timestamp())
            for id_ in context.ids():
                if id_ in until_of:
                    until_of[id_] = max(until_of[id_], until_s)
    groups: defaultdict[int, list[bytes]] = defaultdict(list)
    for id_, until_s in until_of.items():
        groups[until_s].append(id_)
    tier = hot.hot_tier(tenant_id)
    kept = 0
    for until_s, members in groups.items():
        if until_s:
            kept += tier.pin(members, until_s)  # never lowers an end, so:
        tier.unpin(members, until_s)
    return kept


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
