"""Derives contexts' states from the index: stored, stored in part, or lost; and their bytes.

A bounded part of a tenant's contexts at a time: those that somebody pinned, then those that
requests used recently, then those never checked, then those whose last check is the oldest.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.db import transaction
from django.db.models import QuerySet
from django.utils import timezone

from catalog.models import Context
from contexts import pins, rows, stored
from contexts.chains import ids_per_chunk
from contexts.parts import Parts, parts_by_space
from contexts.residency import Answer, is_lost, usable_chunks
from events.services import Subject, emit_many
from neve.index.tier import HotTier, Location, Tier
from storage import hot
from tenants.scope import tenant_scope

# Blocks of one tenant in one turn, and contexts: 0.3 s of CPU time if each has 100 blocks.
MOST_BLOCKS = 50_000
MOST_CONTEXTS = 500
PINNED_S, USED_S, OTHERS_S = 60, 300, 3600  # seconds between two checks
RECENTLY = timedelta(hours=1)
_STATE = Context.State
_BY_LOSS: tuple[str, ...] = (_STATE.STORED, _STATE.PARTIAL, _STATE.LOST)

Told = dict[str, list[tuple[Subject, dict[str, Any]]]]  # data of events, by kind


@dataclass(frozen=True)
class Found:
    """What the index says of a context. `cold_only`, `hot_only`: blocks in one tier only."""

    state: str
    size_bytes: int
    lost_blocks: int
    cold_only: int
    hot_only: int


def check(tenant_id: int) -> int:
    """Ask the index about contexts whose check is due; write what changed; emit events.

    A context that a node records meanwhile keeps what the node said. Returns how many it asked
    about. Raises valkey's errors.
    """
    now = timezone.now()
    with tenant_scope(tenant_id):
        asked = _chosen(now)
        if not asked:
            return 0
        parts = parts_by_space(tenant_id)
        found = dict(
            zip(
                (context.pk for context in asked),
                look(hot.hot_tier(tenant_id), parts, asked),
                strict=True,
            )
        )
        _write(tenant_id, asked, found, now)
        for context in asked:
            _mend_pin(context, found[context.pk], now)
    return len(asked)


def check_now(tenant_id: int, context_id: UUID) -> None:
    """`check` for one context, if it is not expired or deleted. Raises valkey's errors."""
    with tenant_scope(tenant_id):
        asked = list(Context.objects.filter(pk=context_id, expired_at=None))
        if not asked:
            return
        found = next(look(hot.hot_tier(tenant_id), parts_by_space(tenant_id), asked))
        _write(tenant_id, asked, {context_id: found}, timezone.now())


def look(tier: HotTier, parts: dict[int, Parts], contexts: Sequence[Context]) -> Iterator[Found]:
    """In the order of `contexts`. One call for each 1,000 blocks. Raises valkey's errors."""
    blocks = [parts[context.space_id].of(context.ids()) for context in contexts]
    answers = tier.match([id_ for ids in blocks for id_ in ids])
    first = 0
    for context, ids in zip(contexts, blocks, strict=True):
        own = answers[first : first + len(ids)]
        first += len(ids)
        yield _found(parts[context.space_id], context, own)


def _found(parts: Parts, context: Context, answers: Sequence[Answer]) -> Found:
    there = [answer for answer in answers if isinstance(answer, Location)]
    lost = len(answers) - len(there)
    if lost and parts.groups:
        chunks = len(answers) // len(parts.groups)
        needed = zip(parts.is_needed(chunks), answers, strict=True)
        lost = sum(is_needed and is_lost(answer) for is_needed, answer in needed)
    if not there and context.state == _STATE.EXPECTED:
        state = _STATE.EXPECTED
    elif not lost:
        state = _STATE.STORED
    else:
        shards = len(parts.groups) or ids_per_chunk(
            len(answers), tokens=context.tokens, chunk_tokens=parts.chunk_tokens
        )
        state = _STATE.PARTIAL if usable_chunks(parts, answers, shards) else _STATE.LOST
    return Found(
        state=state,
        size_bytes=sum(answer.size_bytes for answer in there),
        lost_blocks=lost,
        cold_only=sum(answer.tier is Tier.COLD for answer in there),
        hot_only=sum(not answer.is_cold for answer in there),
    )


def _chosen(now: datetime) -> list[Context]:
    """Contexts to ask about, the most urgent first, within the bounds of a turn."""

    def before(seconds: int) -> datetime:
        return now - timedelta(seconds=seconds)

    live = Context.objects.filter(expired_at=None)
    kinds: tuple[QuerySet[Context], ...] = (
        live.filter(pinned_until__gt=now, checked_at__lt=before(PINNED_S)),
        live.filter(last_used_at__gt=now - RECENTLY, checked_at__lt=before(USED_S)),
        live.filter(checked_at=None),
        live.filter(checked_at__lt=before(OTHERS_S)),
    )
    chosen: dict[UUID, Context] = {}
    blocks = 0
    for kind in kinds:
        for context in kind.order_by("checked_at")[: MOST_CONTEXTS - len(chosen)]:
            if context.pk in chosen:
                continue
            blocks += context.blocks
            if chosen and blocks > MOST_BLOCKS:
                return list(chosen.values())
            chosen[context.pk] = context
        if len(chosen) >= MOST_CONTEXTS:
            break
    return list(chosen.values())


@transaction.atomic
def _write(
    tenant_id: int, asked: Sequence[Context], found: dict[UUID, Found], now: datetime
) -> None:
    told: Told = {}
    same = []
    for context in asked:
        new = found[context.pk]
        if (new.state, new.size_bytes) == (context.state, context.size_bytes):
            same.append(context.pk)
            continue
        unchanged = Context.objects.filter(pk=context.pk, updated_at=context.updated_at)
        is_written = unchanged.filter(state=context.state).update(
            state=new.state, size_bytes=new.size_bytes, checked_at=now
        )
        if is_written and new.state != context.state:
            _tell(context, new, told)
    Context.objects.filter(pk__in=same).update(checked_at=now)
    for kind, items in told.items():
        emit_many(kind, tenant_id=tenant_id, items=items)


def _tell(context: Context, new: Found, told: Told) -> None:
    if new.state == _STATE.STORED:
        told.setdefault("context.stored", []).append(
            (rows.subject(context), rows.stored_data(context))
        )
    elif context.state in _BY_LOSS[: _BY_LOSS.index(new.state)]:
        data = {"lost_blocks": new.lost_blocks, "state": new.state}
        told.setdefault("context.lost", []).append((rows.subject(context), data))


def _mend_pin(context: Context, found: Found, now: datetime) -> None:
    """Brings pinned blocks to the tier of their pin again: the tier may have had no room."""
    if context.hot_until is not None and context.hot_until > now and found.cold_only:
        pins.request_promotion(context, "")
    if context.durable_until is not None and context.durable_until > now and found.hot_only:
        stored.hold_or_follow_later(context)
