"""Named contexts: record, expire, extend, delete, and where their blocks are.

Extensions are intent and stand in the database, as pins do (`contexts.pins`). The terms of blocks
are derived from them by `contexts.stored`, which may be repeated at any time (after a failure,
after `rebuild_index`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from django.db import transaction
from django.utils import timezone
from valkey.exceptions import ValkeyError

from base import log_events
from catalog import limits
from catalog.models import Context, NodeSession, Pin
from contexts import pins, rows, stored
from contexts.chains import Chain
from neve.errors import MissReason
from neve.index.tier import Location, Tier
from storage import hot
from tenants.audit import Actor
from tenants.scope import tenant_scope

Answer = Location | MissReason


@dataclass(frozen=True)
class Residency:
    """Where the blocks of a context are, counted, and one by one in the order of its chain.

    Each block is hot (whether or not it is cold as well), cold only, or lost. Durable ones stand
    in S3. Tokens count whole chunks: a chunk is where the worst of its blocks is, and `usable` are
    those before the first lost one.
    """

    hot: int = 0
    cold: int = 0
    lost: int = 0
    durable: int = 0
    hot_bytes: int = 0
    cold_bytes: int = 0
    durable_bytes: int = 0
    hot_tokens: int = 0
    cold_tokens: int = 0
    lost_tokens: int = 0
    durable_tokens: int = 0
    usable_tokens: int = 0
    blocks: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Expiry:
    """What leaves both tiers, and what stays since another unexpired context holds it.

    `pinned` of the shared blocks are kept by another context's pin. `lost` ones were gone before.
    """

    removed: int
    removed_bytes: int
    shared: int
    shared_bytes: int
    pinned: int
    lost: int


@dataclass(frozen=True)
class Extended:
    """`extended` blocks live so long now; `lost` of the chain are stored nowhere any more."""

    extended: int
    lost: int


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
    Raises Problem (limit-reached): one context more, or blocks of this one or of all.
    """
    limits.require_context_blocks(session.space_id, name, len(ids))
    now = timezone.now()
    with transaction.atomic():
        context, created = _found_or_made(session, name, ids, tokens)
        before = None if created else rows.facts(context)
        old_ids = [] if created else context.ids()
        is_relabelled = not created and label is not None and label != context.label
        context.chain, context.blocks, context.tokens = b"".join(ids), len(ids), tokens
        context.label = context.label if label is None else label
        context.expired_at, context.updated_at = None, now
        context.save()
        # Not each request that an agent adds to its context: what somebody decided.
        if created:
            rows.note(context, "context.record", actor, before=before, after=rows.facts(context))

    def settle() -> None:
        stored.hold_or_follow_later(context, anew=is_relabelled)
        if context.is_pinned:
            pins.follow_chain(context, old_ids)

    transaction.on_commit(settle, robust=True)
    if pin_s is not None:
        pins.pin_for(context, pin_s, actor)
    return context, created


def expire(*, context: Context, actor: Actor, dry_run: bool = False) -> Expiry:
    """Ends the context with its pins; removes the blocks that no other context holds, at once.

    A context that is recorded meanwhile may find them gone, as if it had come just after.
    `dry_run`: says what would go, and changes nothing.
    Raises Problem: pinned-by-others (unless the actor is an operator), hot-tier-unavailable (the
    context is expired; repeat it to remove the blocks).
    """
    if dry_run:
        with tenant_scope(context.tenant_id):
            pins.require_no_others(context, actor)
        with hot.required():
            return _Parting(context).expiry()
    with rows.changing(context) as row:
        pins.require_no_others(row, actor)
        before, was_extended = rows.facts(row), row.extended_until is not None
        Pin.objects.filter(context=row).delete()
        row.pinned_until = row.extended_until = None
        row.expired_at = timezone.now()
        row.save(update_fields=["pinned_until", "extended_until", "expired_at"])
        rows.note(row, "context.expire", actor, before=before, after=rows.facts(row))
    pins.settle_of(row)
    with hot.required():
        # After the row says so: of two that expire at once, the later one finds no sharer.
        parting = _Parting(row)
        parting.remove()
        stored.settle_or_follow_later(
            tenant_id=row.tenant_id,
            space_id=row.space_id,
            root=row.ids()[0],
            ids=parting.shared,
            was_extended=was_extended,
        )
    return parting.expiry()


def extend(*, context: Context, for_s: int, actor: Actor) -> Extended:
    """Lets the blocks live at least that long from now, in both tiers.

    It is noted in the database, so it also holds after a rebuild of the index.
    Raises Problem: context-gone (expired, or no block of it is stored: nothing changes then),
    hot-tier-unavailable (it is noted and holds from the next walk on).
    """
    until, failure = timezone.now() + timedelta(seconds=for_s), None
    with rows.changing(context) as row:
        rows.require_unexpired(row)
        before = rows.facts(row)
        row.extended_until = max(until, row.extended_until or until)
        row.updated_at = timezone.now()
        row.save(update_fields=["extended_until", "updated_at"])
        rows.note(row, "context.extend", actor, before=before, after=rows.facts(row))
        try:
            there = stored.hold_or_follow_later(row)
        except ValkeyError as error:  # noted all the same
            failure, there = error, 0
        if there == 0 and failure is None:
            raise rows.lost(row)
    with hot.required():
        if failure is not None:
            raise failure
    return Extended(there, row.blocks - there)


def delete(*, context: Context, actor: Actor) -> None:
    """Forgets the name, its pins and its extension. Its blocks stay, with the terms of the contexts
    that still hold them, or else of their space.

    Valkey being down is no failure: terms follow by the next walk, pins end at their time.
    Raises Problem (pinned-by-others) unless the actor is an operator.
    """
    with rows.changing(context) as row:
        pins.require_no_others(row, actor)
        tenant_id, space_id, ids = row.tenant_id, row.space_id, row.ids()
        was_pinned, was_extended = row.is_pinned, row.extended_until is not None
        rows.note(row, "context.delete", actor, before=rows.facts(row), after=None)
        row.delete()
    try:
        if was_pinned:
            pins.settle(tenant_id=tenant_id, space_id=space_id, chains=[ids])
        stored.settle_or_follow_later(
            tenant_id=tenant_id,
            space_id=space_id,
            root=ids[0],
            ids=ids,
            was_extended=was_extended,
        )
    except ValkeyError as error:
        log_events.DELETED_CONTEXT_NOT_SETTLED.log(context=context.pk, error=error)


def residency(context: Context) -> Residency:
    """Costs one function call per 1,000 blocks. Raises Problem (hot-tier-unavailable)."""
    ids = context.ids()
    with hot.required():
        answers = hot.hot_tier(context.tenant_id).match(ids)
    found = [answer for answer in answers if isinstance(answer, Location)]
    hot_ones = [answer for answer in found if answer.tier is Tier.HOT]
    cold_ones = [answer for answer in found if answer.tier is Tier.COLD]
    durable = [answer for answer in found if answer.is_cold]
    return Residency(
        hot=len(hot_ones),
        cold=len(cold_ones),
        lost=len(answers) - len(found),
        durable=len(durable),
        hot_bytes=sum(each.size_bytes for each in hot_ones),
        cold_bytes=sum(each.size_bytes for each in cold_ones),
        durable_bytes=sum(each.size_bytes for each in durable),
        **_tokens(context, answers),
        blocks=[_residence(id_, answer) for id_, answer in zip(ids, answers, strict=True)],
    )


class _Parting:
    """The blocks of a context that nobody else holds, and those that other contexts hold."""

    def __init__(self, context: Context) -> None:
        """Reads the contexts of the same root. Raises valkey's errors."""
        self._tier = hot.hot_tier(context.tenant_id)
        ids = list(dict.fromkeys(context.ids()))
        is_shared, is_pinned = [False] * len(ids), [False] * len(ids)
        chain, now = Chain(ids), timezone.now()
        for other, pinned_until in _sharers(context):
            for place in chain.shared_with(other):
                is_shared[place] = True
                is_pinned[place] |= pinned_until is not None and pinned_until > now
        found = self._found(ids)
        self._sizes = found
        self.own = [id_ for id_, held in zip(ids, is_shared, strict=True) if not held]
        self.shared = [id_ for id_, held in zip(ids, is_shared, strict=True) if held]
        self._pinned = sum(id_ in found for id_, held in zip(ids, is_pinned, strict=True) if held)
        self._blocks = len(ids)

    def remove(self) -> None:
        kept = self._tier.expire(self.own)[1]
        if kept:  # recorded and pinned since the contexts were read
            stay = self._found(self.own)
            self.shared += stay
            self.own = [id_ for id_ in self.own if id_ not in stay]
            self._pinned += len(stay)

    def expiry(self) -> Expiry:
        own = [self._sizes[id_] for id_ in self.own if id_ in self._sizes]
        shared = [self._sizes[id_] for id_ in self.shared if id_ in self._sizes]
        return Expiry(
            removed=len(own),
            removed_bytes=sum(own),
            shared=len(shared),
            shared_bytes=sum(shared),
            pinned=self._pinned,
            lost=self._blocks - len(self._sizes),
        )

    def _found(self, ids: Sequence[bytes]) -> dict[bytes, int]:
        """Sizes in bytes of those that are stored."""
        answers = zip(ids, self._tier.match(ids), strict=True)
        return {id_: found.size_bytes for id_, found in answers if isinstance(found, Location)}


def _sharers(context: Context) -> Iterator[tuple[bytes | memoryview, datetime | None]]:
    """Chain and end of the pin of every other context that may hold blocks of this one."""
    with tenant_scope(context.tenant_id):
        others = Context.objects.filter(
            space_id=context.space_id, root=context.ids()[0], expired_at=None
        ).exclude(pk=context.pk)
        found = others.order_by().values_list("chain", "pinned_until")
        yield from found.iterator(chunk_size=100)


def _found_or_made(
    session: NodeSession, name: str, ids: list[bytes], tokens: int
) -> tuple[Context, bool]:
    """The row, locked. Raises Problem (limit-reached) for one more than the tenant may have."""
    locked = Context.objects.select_for_update()
    known = locked.filter(space_id=session.space_id, name=name).first()
    if known is not None:
        return known, False
    limits.require_room_for_context()
    made: tuple[Context, bool] = locked.get_or_create(
        space_id=session.space_id,
        name=name,
        defaults={"chain": b"".join(ids), "blocks": len(ids), "tokens": tokens},
    )
    return made


def _tokens(context: Context, answers: Sequence[Answer]) -> dict[str, int]:
    """Tokens by residence. A chunk has as many blocks in a row as the space has shards of it."""
    chunks = max(1, round(context.tokens / context.space.chunk_tokens))
    shards = len(answers) // chunks if len(answers) % chunks == 0 else 1
    each = context.tokens * shards / max(1, len(answers))  # tokens of a chunk
    totals = dict.fromkeys(("hot", "cold", "lost", "durable", "usable"), 0.0)
    is_whole = True
    for first in range(0, len(answers), max(1, shards)):
        chunk = answers[first : first + max(1, shards)]
        found = [answer for answer in chunk if isinstance(answer, Location)]
        if len(found) < len(chunk):
            totals["lost"], is_whole = totals["lost"] + each, False
            continue
        is_hot = all(answer.tier is Tier.HOT for answer in found)
        totals["hot" if is_hot else "cold"] += each
        totals["durable"] += each * all(answer.is_cold for answer in found)
        totals["usable"] += each * is_whole
    return {f"{name}_tokens": round(total) for name, total in totals.items()}


def _residence(id_: bytes, answer: Answer) -> dict[str, Any]:
    if isinstance(answer, MissReason):
        return {
            "id": id_.hex(), "tier": None, "reason": answer.value,
            "is_durable": False, "size_bytes": 0,
        }  # fmt: skip
    return {
        "id": id_.hex(), "tier": answer.tier.value, "reason": None,
        "is_durable": answer.is_cold, "size_bytes": answer.size_bytes,
    }  # fmt: skip
