"""Pins of contexts: they keep a context's blocks until a given time.

In a space with KV groups a pin keeps all stored parts of the chain, also window parts and states
amid it: every length at which a request could go on stays one, and so does a request that shares
only the beginning.

Pinned blocks stay in the tier where they are: hot ones in Valkey, cold ones in S3. A pin of the
tier `hot` also requests copies of cold blocks in Valkey (the kind of work `promote`). One of the
tier `durable` has hot blocks flushed at once, by the terms that its context gives them.

A pin belongs to the key or person that set it; a context is pinned until its latest pin ends. The
database is the source of truth. `settle` derives the pin ends in Valkey from it, and may be
repeated at any time (after a failure, after `rebuild_index`).
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
from django.db.models import Max, Q
from django.utils import timezone
from valkey.exceptions import ValkeyError

from base import log_events
from base.problems import Problem
from catalog import jobs
from catalog.models import Context, Pin
from contexts import rows, stored
from contexts.chains import Chain
from contexts.parts import Parts, parts_by_space, parts_of
from neve.index.tier import HotTier, Location, OverBudget, Tier
from retention.rulebook import rulebook_of
from storage import hot
from tenants.audit import Actor
from tenants.scope import tenant_scope

MAX_PIN = timedelta(days=365)


@dataclass(frozen=True)
class Pinned:
    """`kept` blocks are pinned; `lost` ones, which a request behind the chain needs, are gone.

    `hot`, `durable`: how many are in Valkey and in S3 now; None unless the pin asks for a tier.
    """

    pin: Pin
    pinned_until: datetime
    kept: int
    lost: int
    hot: int | None = None
    durable: int | None = None


@dataclass(frozen=True)
class Unpinned:
    """`removed`: pins; `kept`: blocks that other pins keep; latest end of this context's pins."""

    removed: int
    pinned_until: datetime | None
    kept: int


def pin(
    *,
    context: Context,
    until: datetime,
    actor: Actor,
    reason: str = "",
    tier: str = Pin.Tier.ANY,
) -> Pinned:
    """Set the end of the actor's own pin; pins of others stay unchanged.

    Raises Problem: malformed (`until`), context-gone (expired, or no block of it is stored),
    pin-budget (nothing changes), hot-tier-unavailable (the pin is saved, and applied later as far
    as the budget allows).
    """
    return _pin(context, until, actor, reason, tier, must_be_there=True)


def pin_for(context: Context, for_s: int, actor: Actor) -> None:
    """Set the pin that a node's request asked for; never shortens an existing pin.

    Does not require stored blocks: they may still be on their way. Logs a refusal by the budget.
    """
    until = timezone.now() + timedelta(seconds=for_s)
    with tenant_scope(context.tenant_id):
        own = Pin.objects.filter(context=context, owner=actor.owner).first()
    until = max(until, own.until if own else until)
    try:
        reason, tier = (own.reason, own.tier) if own else ("", Pin.Tier.ANY)
        _pin(context, until, actor, reason, tier, must_be_there=False)
    except Problem as problem:
        log_events.PIN_REFUSED.log(context=context.pk, reason=problem.detail)
        if problem.kind == "pin-budget":
            rows.note(context, "context.pin_refused", actor, before=None, after=problem.members)
    context.refresh_from_db(fields=["pinned_until"])


def unpin(
    *, context: Context, actor: Actor, pin_id: int | None = None, everybody: bool = False
) -> Unpinned:
    """Remove the actor's own pin; an operator may name any pin, or remove all.

    Blocks stay pinned by other pins of this context and of contexts that share them.
    Raises Problem: not-found (`pin`), forbidden, hot-tier-unavailable (removed; Valkey follows
    later).
    """
    with rows.changing(context) as row:
        before = rows.facts(row)
        mine = Pin.objects.filter(context=row)
        if everybody:
            _require_operator(actor, "all")
        elif pin_id is not None:
            mine = mine.filter(pk=pin_id)
            if (found := mine.first()) is None:
                raise Problem("not-found", f"pin: this context has no pin {pin_id}.", field="pin")
            if found.owner != actor.owner:
                _require_operator(actor, "pin")
        else:
            mine = mine.filter(owner=actor.owner)
        removed = [described(each) for each in mine]
        was_durable = row.durable_until is not None
        mine.delete()
        if removed:
            note_end(row)
            after = {**rows.facts(row), "removed": removed}
            rows.note(row, "context.unpin", actor, before=before, after=after)
            for each in removed:
                rows.announce("context.unpinned", row, {"owner": each["owner"]})
    kept = settle_of(row)
    if was_durable and row.durable_until is None:
        with hot.required():
            stored.hold_or_follow_later(row, anew=True)
    return Unpinned(len(removed), row.pinned_until if row.is_pinned else None, kept)


def require_no_others(context: Context, actor: Actor) -> None:
    """Raises Problem (pinned-by-others) unless the actor may end every pin of the context."""
    if actor.is_operator:
        return
    others = [described(each) for each in live_of(context) if each.owner != actor.owner]
    if others:
        names = ", ".join(f"{each['owner']} until {each['until']}" for each in others)
        raise Problem(
            "pinned-by-others", f"The context {context.name} is pinned by {names}.", pins=others
        )


def live_of(context: Context) -> list[Pin]:
    """Pins that have not ended, the latest end first."""
    with tenant_scope(context.tenant_id):
        return list(Pin.objects.filter(context=context, until__gt=timezone.now()))


def described(row: Pin) -> dict[str, Any]:
    return {
        "id": row.pk,
        "owner": row.owner_name,
        "reason": row.reason,
        "tier": row.tier,
        "until": row.until.isoformat(),
    }


def note_end(context: Context) -> None:
    """After a change of pins, in its transaction: update the latest ends, delete ended pins."""
    now = timezone.now()
    pins = Pin.objects.filter(context=context)
    pins.filter(until__lte=now).delete()
    ends = pins.aggregate(
        pinned_until=Max("until"),
        hot_until=Max("until", filter=Q(tier=Pin.Tier.HOT)),
        durable_until=Max("until", filter=Q(tier=Pin.Tier.DURABLE)),
    )
    for name, end in ends.items():
        setattr(context, name, end)
    rows.save(context, *ends)


def settle_of(context: Context) -> int:
    """`settle` for the context's chain. Raises Problem (hot-tier-unavailable)."""
    with hot.required():
        return settle(
            tenant_id=context.tenant_id, space_id=context.space_id, chains=[context.ids()]
        )


def settle(*, tenant_id: int, space_id: int, chains: Sequence[list[bytes]]) -> int:
    """Set each block's pin end to the latest end of all pinned contexts that contain the block.

    Reads the pinned contexts that share a root with one of `chains`. A granted pin that no longer
    fits the budget (its chain grew) covers as much of the chain, from its root, as the budget
    allows. Repeatable. Returns the number of pinned blocks. Raises valkey's errors.
    """
    parts = parts_of(tenant_id, space_id)
    ids = list(dict.fromkeys(id_ for chain in chains for id_ in chain))
    tier, book = hot.hot_tier(tenant_id), rulebook_of(tenant_id)
    own = Chain(ids)
    until_s, asked = np.zeros(len(ids), np.int64), np.full(len(ids), -1.0)
    grants: list[tuple[list[bytes], int, int | None]] = []
    with tenant_scope(tenant_id):
        pinned = Context.objects.filter(
            space_id=space_id,
            root__in={chain[0] for chain in chains if chain},
            pinned_until__gt=timezone.now(),
        ).order_by("created_at", "pk")
        found = pinned.values_list("label", "name", "pinned_until", "chain")
        for label, name, until, chain in found.iterator(chunk_size=100):
            assert until is not None  # the filter says so
            places, end_s = own.shared_with(chain), int(until.timestamp())
            until_s[places] = np.maximum(until_s[places], end_s)
            budget_bytes = book.of_context(space_id, label, name).pin_budget_bytes
            # Skip blocks that an older context asked for with as large a budget: same answer.
            budget = np.inf if budget_bytes is None else budget_bytes
            new = places[asked[places] < budget]
            asked[new] = budget
            if len(new):
                grants.append(([ids[place] for place in new], end_s, budget_bytes))
    tier.unpin(parts.of([ids[place] for place in np.flatnonzero(until_s == 0)]))
    for members, end_s, budget_bytes in grants:
        _grant(tier, parts.of(members), end_s, budget_bytes)
    groups: defaultdict[int, list[bytes]] = defaultdict(list)
    for place in np.flatnonzero(until_s):
        groups[int(until_s[place])].append(ids[place])
    return sum(tier.unpin(parts.of(members), end_s) for end_s, members in groups.items())


def follow_chain(context: Context, old_ids: list[bytes]) -> None:
    """Move the pins of a re-recorded context to its new chain.

    Reads other contexts only if blocks left the chain. Raises valkey's errors.
    """
    ids = context.ids()
    if not set(old_ids) <= set(ids):
        settle(tenant_id=context.tenant_id, space_id=context.space_id, chains=[ids, old_ids])
        return
    terms = rulebook_of(context.tenant_id).of_context(context.space_id, context.label, context.name)
    end_s = context.pin_end_s()
    blocks = Parts(context.space).of(ids)
    _grant(hot.hot_tier(context.tenant_id), blocks, end_s, terms.pin_budget_bytes)


def restore(tenant_id: int) -> None:
    """Grant all pins again after a rebuild. Inside the tenant's scope. Raises valkey's errors."""
    tier, book = hot.hot_tier(tenant_id), rulebook_of(tenant_id)
    parts = parts_by_space(tenant_id)
    pinned = Context.objects.filter(pinned_until__gt=timezone.now())
    for context in pinned.order_by("created_at", "pk").iterator(chunk_size=100):
        terms = book.of_context(context.space_id, context.label, context.name)
        end_s = context.pin_end_s()
        blocks = parts[context.space_id].of(context.ids())
        _grant(tier, blocks, end_s, terms.pin_budget_bytes)


def _grant(tier: HotTier, ids: list[bytes], end_s: int, budget_bytes: int | None) -> None:
    tier.pin(ids, end_s, budget_bytes=budget_bytes, as_many_as_fit=True)


def _pin(
    context: Context, until: datetime, actor: Actor, reason: str, tier: str, *, must_be_there: bool
) -> Pinned:
    now = timezone.now()
    if not now < until <= now + MAX_PIN:
        raise Problem(
            "malformed",
            f"until: needs to lie within the next {MAX_PIN.days} days, got {until.isoformat()}.",
            field="until",
        )
    terms = rulebook_of(context.tenant_id).of_context(context.space_id, context.label, context.name)
    try:
        with rows.changing(context) as row:
            rows.require_unexpired(row)
            before, ended_at = rows.facts(row), row.pinned_until
            own, _ = Pin.objects.update_or_create(
                context=row,
                owner=actor.owner,
                defaults={
                    **{"until": until, "reason": reason, "tier": tier},
                    "owner_name": actor.name[:200],
                },
            )
            note_end(row)
            pinned = described(own)
            rows.note(
                row, "context.pin", actor, before=before, after={**rows.facts(row), "pin": pinned}
            )
            told = {name: pinned[name] for name in ("until", "owner", "reason", "tier")}
            rows.announce("context.pinned", row, told)
            there = _charge(row, terms.pin_budget_bytes)
            if there == 0 and must_be_there:
                raise rows.lost(row)
    except OverBudget as refusal:
        settle_of(context)  # undo the pins in buckets that had granted them
        raise Problem(
            "pin-budget",
            f"pin_budget_bytes: {refusal.detail}",
            field="pin_budget_bytes",
            budget_bytes=refusal.budget_bytes,
            used_bytes=refusal.used_bytes,
            asked_bytes=refusal.asked_bytes,
        ) from refusal
    # Valkey keeps the later end of each block, so `settle` is needed only if an end gets earlier.
    pinned_until = row.pinned_until
    assert pinned_until is not None
    falls = ended_at is not None and pinned_until < ended_at
    if there is None or falls:
        kept = settle_of(row)
        there = kept if there is None else there
    else:
        kept = there
    is_hot, is_durable = _take_to_tiers(row, tier, actor)
    return Pinned(own, pinned_until, kept, _lost(row, there), is_hot, is_durable)


def _take_to_tiers(context: Context, tier: str, actor: Actor) -> tuple[int | None, int | None]:
    """Has blocks flushed, or requests their promotion. Returns how many are hot and durable now.

    Raises Problem (hot-tier-unavailable).
    """
    if tier == Pin.Tier.ANY:
        return None, None
    with hot.required():
        if tier == Pin.Tier.DURABLE:
            stored.hold_or_follow_later(context)
        blocks = Parts(context.space).of(context.ids())
        answers = hot.hot_tier(context.tenant_id).match(blocks)
    found = [answer for answer in answers if isinstance(answer, Location)]
    cold_only = sum(answer.tier is Tier.COLD for answer in found)
    if tier == Pin.Tier.HOT and cold_only:
        request_promotion(context, actor.name)
    return len(found) - cold_only, sum(answer.is_cold for answer in found)


def request_promotion(context: Context, by: str) -> None:
    """Requests copies of the context's cold blocks in Valkey, unless such a job waits or runs."""
    jobs.enqueue_once("promote", tenant_id=context.tenant_id, by=by, context_id=str(context.pk))


def _lost(context: Context, stored: int) -> int:
    """See `Parts.lost`. Raises Problem (hot-tier-unavailable)."""
    with hot.required():
        return Parts(context.space).lost(hot.hot_tier(context.tenant_id), context.ids(), stored)


def _charge(context: Context, budget_bytes: int | None) -> int | None:
    """Pin the stored blocks; return their number, or None if the hot tier does not answer.

    Raises OverBudget.
    """
    try:
        return hot.hot_tier(context.tenant_id).pin(
            Parts(context.space).of(context.ids()), context.pin_end_s(), budget_bytes=budget_bytes
        )
    except ValkeyError as error:
        log_events.PIN_NOT_APPLIED.log(context=context.pk, error=error)
        return None


def _require_operator(actor: Actor, member: str) -> None:
    if not actor.is_operator:
        raise Problem(
            "forbidden",
            f"{member}: only operators remove pins of others. Leave it out to remove your own.",
            field=member,
        )
