"""Expires a context, now or later: removes its blocks from both tiers, unless another context has
them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

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
            return _Leaving(context).expiry()
    with rows.changing(context) as row:
        pins.require_no_others(row, actor)
        before, gave_terms = rows.facts(row), stored.gives_terms(row)
        Pin.objects.filter(context=row).delete()
        row.pinned_until = row.extended_until = None
        row.hot_until = row.durable_until = row.expires_at = None
        row.expired_at, row.state = timezone.now(), Context.State.EXPIRED
        rows.save(row, *rows.ENDS, "expired_at", "state")
        rows.note(row, "context.expire", actor, before=before, after=rows.facts(row))
    pins.settle_of(row)
    with hot.required():
        # Only now that the row is expired: if two contexts expire at once, the later one removes
        # their shared blocks.
        leaving = _Leaving(row)
        leaving.remove()
        stored.settle_or_follow_later(
            tenant_id=row.tenant_id,
            space_id=row.space_id,
            root=row.ids()[0],
            ids=leaving.shared,
            gave_terms=gave_terms,
        )
    expiry = leaving.expiry()
    data = {"removed_blocks": expiry.removed, "removed_bytes": expiry.removed_bytes}
    rows.announce("context.expired", row, data)
    return expiry


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
    """Blocks of an expiring context: `own` in no other context, `shared` also in others."""

    def __init__(self, context: Context) -> None:
        """Reads all contexts with the same root block. Raises valkey's errors."""
        self._tier, parts = hot.hot_tier(context.tenant_id), Parts(context.space)
        ids = list(dict.fromkeys(context.ids()))
        is_shared, is_pinned = [False] * len(ids), [False] * len(ids)
        chain, now = Chain(ids), timezone.now()
        for other, pinned_until in _sharers(context):
            for place in chain.shared_with(other):
                is_shared[place] = True
                is_pinned[place] |= pinned_until is not None and pinned_until > now
        self._sizes = self._found(parts.of(ids))
        self.own = parts.of([id_ for n, id_ in enumerate(ids) if not is_shared[n]])
        self.shared = parts.of([id_ for n, id_ in enumerate(ids) if is_shared[n]])
        pinned = parts.of([id_ for n, id_ in enumerate(ids) if is_pinned[n]])
        self._pinned = sum(id_ in self._sizes for id_ in pinned)
        self._lost = sum(id_ not in self._sizes for id_ in parts.needed(ids))

    def remove(self) -> None:
        kept = self._tier.expire(self.own)[1]
        if kept:  # another context with them was recorded and pinned meanwhile
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
            lost=self._lost,
        )

    def _found(self, ids: Sequence[bytes]) -> dict[bytes, int]:
        """Block id → size in bytes; only blocks that are stored."""
        answers = zip(ids, self._tier.match(ids), strict=True)
        return {id_: found.size_bytes for id_, found in answers if isinstance(found, Location)}


def _sharers(context: Context) -> Iterator[tuple[bytes | memoryview, datetime | None]]:
    """(chain, end of pins) of each other context that may share blocks: one with the same root."""
    with tenant_scope(context.tenant_id):
        others = Context.objects.filter(
            space_id=context.space_id, root=context.ids()[0], expired_at=None
        ).exclude(pk=context.pk)
        found = others.order_by().values_list("chain", "pinned_until")
        yield from found.iterator(chunk_size=100)
