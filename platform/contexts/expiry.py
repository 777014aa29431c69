"""Expires a context, now or later: removes its blocks from both tiers, unless another context has
them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from django.utils import timezone

from base.problems import Problem
from catalog.models import Context, Pin
from contexts import pins, rows, stored
from contexts.chains import Chain
from contexts.parts import Parts
from neve.index.tier import Location
from storage import hot
from tenants.audit import Actor
from tenants.scope import tenant_scope

MOST_AHEAD = timedelta(days=365)


@dataclass(frozen=True)
class Expiry:
    """Numbers of blocks: `removed` from both tiers; `shared` with unexpired contexts, so they stay.

    `pinned`: shared blocks that another context pins. `lost`: blocks that were gone before, of
    those that a request behind the chain needs.
    """

    removed: int
    removed_bytes: int
    shared: int
    shared_bytes: int
    pinned: int
    lost: int


NOTHING = Expiry(removed=0, removed_bytes=0, shared=0, shared_bytes=0, pinned=0, lost=0)


def expire(*, context: Context, actor: Actor, dry_run: bool = False) -> Expiry:
    """Expire the context, delete its pins, and remove blocks that no other context has.

    A context recorded meanwhile may find blocks gone, as if recorded just after.
    `dry_run`: count only, change nothing.
    Raises Problem: pinned-by-others (unless the actor is an operator), hot-tier-unavailable (the
    context is expired; repeat the call to remove the blocks).
    """
    if dry_run:
        with tenant_scope(context.tenant_id):
            pins.require_no_others(context, actor)
        with hot.required():
            return _Leaving([context]).expiry()
    return _remove([_end(context, actor)])[context.pk]


def expire_many(*, contexts: Sequence[Context], actor: Actor) -> dict[UUID, Expiry | Problem]:
    """`expire` for contexts of one space that have the same root block: the contexts that share it
    are read once. Returns what became of each; of their common blocks the first context counts all.

    Raises Problem (hot-tier-unavailable): contexts are expired; repeat the call.
    """
    found: dict[UUID, Expiry | Problem] = {}
    ended = []
    for context in contexts:
        try:
            ended.append(_end(context, actor))
        except Problem as problem:
            found[context.pk] = problem
    return {**found, **_remove(ended)} if ended else found


def _end(context: Context, actor: Actor) -> tuple[Context, bool]:
    """The expired row, without pins; and whether it gave terms to its blocks."""
    with rows.changing(context) as row:
        pins.require_no_others(row, actor)
        before, gave_terms = rows.facts(row), stored.gives_terms(row)
        Pin.objects.filter(context=row).delete()
        row.pinned_until = row.extended_until = None
        row.hot_until = row.durable_until = row.expires_at = None
        row.expired_at, row.state = timezone.now(), Context.State.EXPIRED
        rows.save(row, *rows.ENDS, "expired_at", "state")
        rows.note(row, "context.expire", actor, before=before, after=rows.facts(row))
    return row, gave_terms


def _remove(ended: Sequence[tuple[Context, bool]]) -> dict[UUID, Expiry]:
    """Removes the blocks of expired rows of one space and one root, and announces them."""
    expired = [row for row, _ in ended]
    first = expired[0]
    with hot.required():
        pins.settle(
            tenant_id=first.tenant_id,
            space_id=first.space_id,
            chains=[row.ids() for row in expired],
        )
        # Only now that the rows are expired: if two contexts expire at once, the later one removes
        # their shared blocks.
        leaving = _Leaving(expired)
        leaving.remove()
        stored.settle_or_follow_later(
            tenant_id=first.tenant_id,
            space_id=first.space_id,
            root=first.ids()[0],
            ids=leaving.shared,
            gave_terms=any(gave_terms for _, gave_terms in ended),
        )
    if len(expired) == 1:
        found = {first.pk: leaving.expiry()}
    else:
        counted: set[bytes] = set()
        found = {row.pk: leaving.expiry_of(row, counted) for row in expired}
    for row in expired:
        expiry = found[row.pk]
        data = {"removed_blocks": expiry.removed, "removed_bytes": expiry.removed_bytes}
        rows.announce("context.expired", row, data)
    return found


def expire_at(*, context: Context, at: datetime | None, actor: Actor) -> Expiry | None:
    """Have the context expired at a time, by `contexts.ends`; None takes that back.

    It waits for pins, and a request that names the context meanwhile does not prevent it. Returns
    the numbers of an expiry now; None if it was taken back.
    Raises Problem: malformed (`at`), context-gone (expired already), pinned-by-others (unless the
    actor is an operator), hot-tier-unavailable (nothing changes).
    """
    now = timezone.now()
    if at is not None and not now < at <= now + MOST_AHEAD:
        raise Problem(
            "malformed",
            f"at: needs to lie within the next {MOST_AHEAD.days} days, got {at.isoformat()}.",
            field="at",
        )
    expiry = expire(context=context, actor=actor, dry_run=True) if at else None
    with rows.changing(context) as row:
        rows.require_unexpired(row)
        before = rows.facts(row)
        row.expires_at, row.warned_until = at, None
        rows.save(row, "expires_at", "warned_until")
        rows.note(row, "context.expire_at", actor, before=before, after=rows.facts(row))
    context.expires_at = at
    return expiry


class _Leaving:
    """Blocks of expiring contexts of one space and one root: `own` are in no other context,
    `shared` also in others."""

    def __init__(self, contexts: Sequence[Context]) -> None:
        """Reads all contexts with the same root block. Raises valkey's errors."""
        first = contexts[0]
        self._tier, self._parts = hot.hot_tier(first.tenant_id), Parts(first.space)
        chains = [context.ids() for context in contexts]
        ids = list(dict.fromkeys(id_ for chain in chains for id_ in chain))
        is_shared, is_pinned = [False] * len(ids), [False] * len(ids)
        chain, now = Chain(ids), timezone.now()
        for other, pinned_until in _sharers(contexts):
            for place in chain.shared_with(other):
                is_shared[place] = True
                is_pinned[place] |= pinned_until is not None and pinned_until > now
        parts = self._parts
        needed = {id_ for chain in chains for id_ in parts.needed(chain)}
        self._sizes = self._found(parts.of(ids))
        self.own = parts.of([id_ for n, id_ in enumerate(ids) if not is_shared[n]])
        self.shared = parts.of([id_ for n, id_ in enumerate(ids) if is_shared[n]])
        self._pinned = set(parts.of([id_ for n, id_ in enumerate(ids) if is_pinned[n]]))
        self._lost = needed - self._sizes.keys()

    def remove(self) -> None:
        kept = self._tier.expire(self.own)[1]
        if kept:  # another context with them was recorded and pinned meanwhile
            stay = self._found(self.own)
            self.shared += stay
            self.own = [id_ for id_ in self.own if id_ not in stay]
            self._pinned |= stay.keys()

    def expiry(self) -> Expiry:
        return self._expiry({*self.own, *self.shared, *self._lost})

    def expiry_of(self, context: Context, counted: set[bytes]) -> Expiry:
        """Of one context, without blocks that are `counted`; adds its blocks to these."""
        ids = set(self._parts.of(context.ids())) - counted
        counted |= ids
        return self._expiry(ids)

    def _expiry(self, ids: set[bytes]) -> Expiry:
        own = [self._sizes[id_] for id_ in self.own if id_ in self._sizes and id_ in ids]
        shared = [self._sizes[id_] for id_ in self.shared if id_ in self._sizes and id_ in ids]
        return Expiry(
            removed=len(own),
            removed_bytes=sum(own),
            shared=len(shared),
            shared_bytes=sum(shared),
            pinned=len(self._pinned & self._sizes.keys() & ids),
            lost=len(self._lost & ids),
        )

    def _found(self, ids: Sequence[bytes]) -> dict[bytes, int]:
        """Block id → size in bytes; only blocks that are stored."""
        answers = zip(ids, self._tier.match(ids), strict=True)
        return {id_: found.size_bytes for id_, found in answers if isinstance(found, Location)}


def _sharers(
    contexts: Sequence[Context],
) -> Iterator[tuple[bytes | memoryview, datetime | None]]:
    """(chain, end of pins) of each other context that may share blocks: one with the same root."""
    first = contexts[0]
    with tenant_scope(first.tenant_id):
        others = Context.objects.filter(
            space_id=first.space_id, root=first.ids()[0], expired_at=None
        ).exclude(pk__in=[context.pk for context in contexts])
        found = others.order_by().values_list("chain", "pinned_until")
        yield from found.iterator(chunk_size=100)
