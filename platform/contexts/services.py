"""Named contexts: record, change, extend, delete. See also `contexts.expiry`, `contexts.pins`.

Extensions are stored in the database, as pins are. `contexts.stored` derives the terms of blocks
from them, and may repeat that at any time (after a failure, after `rebuild_index`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from django.db import IntegrityError, transaction
from django.utils import timezone
from valkey.exceptions import ValkeyError

from base import live, log_events
from base.problems import Problem
from catalog import limits
from catalog.models import Context, NodeSession
from catalog.usage import bounded
from contexts import pins, rows, stored
from contexts.labels import added, merged
from contexts.parts import Parts
from storage import hot
from tenants.audit import Actor


@dataclass(frozen=True)
class Extended:
    """`extended` blocks got the new end; `lost` ones, which a request behind the chain needs, are
    gone."""

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
    labels: Mapping[str, str] | None = None,
    prompt_tokens: int = 0,
    hit_tokens: int = 0,
) -> tuple[Context, bool]:
    """Upsert by (tenant, space, name); return the context and whether it is new.

    Call inside the tenant's scope. Existing pins move to the new chain, as far as the pin budget
    allows; a new pin over the budget is refused as a whole, but the context is recorded. A `label`
    of None keeps the old label; `labels` add to the old ones. `ids`: the chain; in a space with KV
    groups each id stands for one part of every group. `prompt_tokens`, `hit_tokens`: of the
    request; a report that is repeated, since its answer was lost, counts them twice. A Valkey
    outage is no failure: the next walk updates terms, the next change of a pin or rebuild updates
    pins.
    Raises Problem (limit-reached): too many contexts, or blocks of this one or of all.
    """
    blocks = len(ids) * max(1, len(session.space.groups))
    limits.require_context_blocks(session.space_id, name, blocks)
    now = timezone.now()
    with transaction.atomic():
        context, created = _found_or_made(session, name, ids, blocks, tokens, actor)
        before = None if created else rows.facts(context)
        old_ids = [] if created else context.ids()
        is_relabelled = not created and label is not None and label != context.label
        context.chain, context.blocks, context.tokens = b"".join(ids), blocks, tokens
        context.label = context.label if label is None else label
        context.labels = added(context.labels, labels or {})
        is_news = created or context.state != Context.State.STORED
        context.expired_at, context.updated_at, context.last_used_at = None, now, now
        context.state = Context.State.STORED
        context.prompt_tokens = bounded(context.prompt_tokens + prompt_tokens)
        context.hit_tokens = bounded(context.hit_tokens + min(hit_tokens, prompt_tokens))
        context.save()
        # No audit event when an agent's requests lengthen a context: the trail shows decisions.
        if created:
            rows.note(context, "context.record", actor, before=before, after=rows.facts(context))
        if is_news:
            rows.announce("context.stored", context, rows.stored_data(context))

    def settle() -> None:
        stored.hold_or_follow_later(context, anew=is_relabelled)
        if context.is_pinned:
            pins.follow_chain(context, old_ids)

    transaction.on_commit(settle, robust=True)
    live.hint_on_commit(context.tenant_id)
    if pin_s is not None:
        pins.pin_for(context, pin_s, actor)
    return context, created


def change(
    *,
    context: Context,
    actor: Actor,
    name: str | None = None,
    label: str | None = None,
    labels: Mapping[str, str | None] | None = None,
) -> Context:
    """Rename a context, or change what it is labelled. None keeps a value; in `labels` it removes
    one. Blocks get the terms of rules that match the new name and label; if Valkey does not answer,
    by the next walk.

    Raises Problem: conflict (the space has a context of this name), malformed (too many labels).
    """
    with rows.changing(context) as row:
        before = rows.facts(row)
        row.name = row.name if name is None else name
        row.label = row.label if label is None else label
        row.labels = merged(row.labels, labels or {})
        after = rows.facts(row)
        if after == before:
            return row
        row.updated_at = timezone.now()
        try:
            with transaction.atomic():
                rows.save(row, "name", "label", "labels", "updated_at")
        except IntegrityError:
            raise Problem(
                "conflict", f"name: the space has a context {row.name} already.", field="name"
            ) from None
        rows.note(row, "context.update", actor, before=before, after=after)
        if (row.name, row.label) != (before["name"], before["label"]):
            transaction.on_commit(lambda: _settle(row), robust=True)
    return row


def _settle(context: Context) -> None:
    stored.hold_or_follow_later(context, anew=True)


def extend(*, context: Context, for_s: int, actor: Actor) -> Extended:
    """Let the blocks live at least `for_s` seconds from now, in both tiers.

    The extension is stored in the database, so it survives a rebuild of the index.
    Raises Problem: context-gone (expired, or no block of it is stored; nothing changes),
    hot-tier-unavailable (the extension is saved; the next walk applies it).
    """
    until, failure = timezone.now() + timedelta(seconds=for_s), None
    with rows.changing(context) as row:
        rows.require_unexpired(row)
        before = rows.facts(row)
        row.extended_until = max(until, row.extended_until or until)
        row.updated_at = timezone.now()
        rows.save(row, "extended_until", "updated_at")
        rows.note(row, "context.extend", actor, before=before, after=rows.facts(row))
        try:
            there = stored.hold_or_follow_later(row)
        except ValkeyError as error:  # the extension is saved all the same
            failure, there = error, 0
        if there == 0 and failure is None:
            raise rows.lost(row)
    with hot.required():
        if failure is not None:
            raise failure
        parts = Parts(row.space)
        lost = parts.lost(hot.hot_tier(row.tenant_id), row.ids(), there)
    return Extended(there, lost)


def delete(*, context: Context, actor: Actor) -> None:
    """Delete the context with its pins and its extension. Its blocks stay, with the terms of other
    contexts that hold them, else of their space.

    A Valkey outage is no failure: the next walk updates terms, pins end at their time.
    Raises Problem (pinned-by-others) unless the actor is an operator.
    """
    with rows.changing(context) as row:
        pins.require_no_others(row, actor)
        tenant_id, space_id, ids = row.tenant_id, row.space_id, row.ids()
        blocks = Parts(row.space).of(ids)
        was_pinned, gave_terms = row.is_pinned, stored.gives_terms(row)
        rows.note(row, "context.delete", actor, before=rows.facts(row), after=None)
        rows.announce("context.deleted", row)
        row.delete()
    try:
        if was_pinned:
            pins.settle(tenant_id=tenant_id, space_id=space_id, chains=[ids])
        stored.settle_or_follow_later(
            tenant_id=tenant_id,
            space_id=space_id,
            root=ids[0],
            ids=blocks,
            gave_terms=gave_terms,
        )
    except ValkeyError as error:
        log_events.DELETED_CONTEXT_NOT_SETTLED.log(context=context.pk, error=error)


def _found_or_made(
    session: NodeSession, name: str, ids: list[bytes], blocks: int, tokens: int, actor: Actor
) -> tuple[Context, bool]:
    """The locked row, and whether it is new. Raises Problem (limit-reached)."""
    locked = Context.objects.select_for_update()
    known = locked.filter(space_id=session.space_id, name=name).first()
    if known is not None:
        return known, False
    limits.require_room_for_context()
    made: tuple[Context, bool] = locked.get_or_create(
        space_id=session.space_id,
        name=name,
        defaults={
            **{"chain": b"".join(ids), "blocks": blocks, "tokens": tokens},
            **{"owner": actor.owner, "owner_name": actor.name[:200]},
        },
    )
    return made
