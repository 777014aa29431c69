"""Derives the terms of stored blocks from policy, rules and contexts, and writes them to the index.

Index entries contain their block's terms, so a change of policy, rules or labels must update them:
`follow` walks a tenant's index once, in slices, and changes only entries that differ. Segments are
not rewritten: their footers have the time of storing, and a rebuild derives the terms here.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from django.db.models import F
from django.utils import timezone
from valkey.exceptions import ValkeyError

from catalog.models import Context
from contexts.held import HeldTerms, context_terms, held_terms
from contexts.parts import Parts
from neve.formats.segment import SegmentRow
from neve.index.scan import BEGINNING, IndexEntry, Place
from neve.index.tier import BlockTerms, EncodedPlace, HotTier, RestoredBlock
from retention.models import RetentionPolicy
from retention.rulebook import Rulebook, rulebook_of
from retention.terms import end_of
from storage import hot
from storage.hot import scan_tenant
from tenants.scope import tenant_scope

# A walk may miss contexts written while it reads the others, so it settles these at its end.
OVERLAP = timedelta(minutes=1)


@dataclass(frozen=True)
class Standing:
    """Terms of a block. `held`: a context holds the block and gives the terms; else its space."""

    terms: BlockTerms
    held: bool


class StandingTerms:
    """Terms of any block of a tenant, by its present policy, rules and contexts."""

    def __init__(self, tenant_id: int, book: Rulebook | None = None) -> None:
        self.book = book or rulebook_of(tenant_id)
        self.held: HeldTerms = held_terms(tenant_id, self.book)
        self._default = Standing(self.book.policy.for_blocks(), False)
        self._spaces = {id_: Standing(terms, False) for id_, terms in self.book.spaces().items()}

    def of(self, ids: Sequence[bytes], space_ids: Iterable[int]) -> list[Standing]:
        """Terms in the order of `ids`. `space_ids`: parallel to `ids`."""
        return [
            self._spaces.get(space_id, self._default) if terms is None else Standing(terms, True)
            for terms, space_id in zip(self.held.of(ids), space_ids, strict=True)
        ]


@dataclass
class Walk:
    """Progress of a walk: `blocks` read, `changed` blocks, `next` place (None: done)."""

    started_at: datetime = field(default_factory=timezone.now)
    blocks: int = 0
    changed: int = 0
    next: Place | None = BEGINNING


def follow(tenant_id: int, walk: Walk) -> Iterator[Walk]:
    """Give every stored block its present terms; yield `walk` after each slice.

    May stop after any slice and resume in another process; safe beside live traffic. Raises
    valkey's errors.
    """
    tier, standing = hot.hot_tier(tenant_id), StandingTerms(tenant_id)
    for page in scan_tenant(tenant_id, walk.next or BEGINNING):
        entries = page.entries
        own = standing.of([e.id for e in entries], [e.space_id for e in entries])
        for wanted, ids in changes_of(entries, own).items():
            give(tier, ids, wanted, flush=True)
            walk.changed += len(ids)
        walk.blocks += len(entries)
        walk.next = page.next
        if walk.next is None:
            settle_since(tenant_id, walk.started_at)
        yield walk


def settle_since(tenant_id: int, started: datetime) -> None:
    """At the end of a walk, settle the contexts written since it began."""
    with tenant_scope(tenant_id):
        recent = Context.objects.filter(updated_at__gte=started - OVERLAP)
        for context in recent.iterator(chunk_size=100):
            _settle_chain(context)


def changes_of(
    entries: Sequence[IndexEntry], standings: Sequence[Standing]
) -> dict[Standing, list[bytes]]:
    """Terms → ids of the blocks whose index entries have other terms. Pure.

    An entry does not say when its block's flush is due. So blocks without a cold copy always get
    their terms again, except clean ones that are never flushed.
    """
    changes: defaultdict[Standing, list[bytes]] = defaultdict(list)
    for entry, standing in zip(entries, standings, strict=True):
        terms = standing.terms
        wanted = (end_of(terms, entry.stored_s), terms.idle_s or 0, terms.priority, standing.held)
        differs = wanted != (entry.expires_s, entry.idle_s, entry.priority, entry.held)
        is_flushed = entry.is_cold or (terms.flush_after_s is None and not entry.is_dirty)
        if differs or not is_flushed:
            changes[standing].append(entry.id)
    return changes


def restored(row: SegmentRow, own: Standing, *, segment_s: int) -> RestoredBlock:
    """A footer's row with the block's present terms. `segment_s`: time of the segment's writing.

    Ignores the expiry in the footer: it is out of date.
    """
    stored_s = row.stored_s or segment_s
    return RestoredBlock(
        row.id,
        row.length,
        row.tokens,
        EncodedPlace(row.offset, row.stored_length, row.codec) if row.codec else row.offset,
        stored_s,
        expires_s=end_of(own.terms, stored_s),
        idle_s=own.terms.idle_s or 0,
        priority=own.terms.priority,
        held=own.held,
    )


def give(tier: HotTier, ids: Sequence[bytes], standing: Standing, *, flush: bool) -> int:
    return tier.retain(ids, standing.terms, held=standing.held, join=False, flush=flush)


def hold(context: Context) -> int:
    """Give the context's terms to the blocks of its chain.

    Blocks that another context holds get the more generous value of each term. Reads no other
    chains; makes no call if contexts change no terms. Returns how many blocks are in the index.
    """
    book = rulebook_of(context.tenant_id)
    if not book.looks_at_contexts and not gives_terms(context):
        return 0
    terms = context_terms(
        book,
        context.space_id,
        context.label,
        context.name,
        context.extended_until,
        context.durable_until,
    )
    in_space = book.of_space(context.space_id)
    return hot.hot_tier(context.tenant_id).retain(
        Parts(context.space).of(context.ids()),
        terms,
        held=True,
        join=True,
        flush=terms.flush_after_s != in_space.flush_after_s,
    )


def gives_terms(context: Context) -> bool:
    """Whether an extension or a durable pin gives the blocks terms of their own."""
    return context.extended_until is not None or context.durable_until is not None


def hold_or_follow_later(context: Context, *, anew: bool = False) -> int:
    """`hold`, or `settle` if the context's own terms changed (`anew`).

    If Valkey does not answer, raises valkey's errors, and the next walk does the work.
    """
    with _or_by_the_next_walk(context.tenant_id):
        if anew:
            return _settle_chain(context)
        return hold(context)


def settle_or_follow_later(
    *, tenant_id: int, space_id: int, root: bytes, ids: Sequence[bytes], gave_terms: bool
) -> None:
    """`settle` for the blocks of a removed context, if contexts change terms.

    If Valkey does not answer, raises valkey's errors, and the next walk does the work.
    """
    if ids and (gave_terms or rulebook_of(tenant_id).looks_at_contexts):
        with _or_by_the_next_walk(tenant_id):
            settle(tenant_id=tenant_id, space_id=space_id, root=root, ids=ids)


def _settle_chain(context: Context) -> int:
    ids = context.ids()
    blocks = Parts(context.space).of(ids)
    return settle(tenant_id=context.tenant_id, space_id=context.space_id, root=ids[0], ids=blocks)


@contextmanager
def _or_by_the_next_walk(tenant_id: int) -> Iterator[None]:
    try:
        yield
    except ValkeyError:
        with tenant_scope(tenant_id):
            RetentionPolicy.objects.update(generation=F("generation") + 1)
        raise


def settle(*, tenant_id: int, space_id: int, root: bytes, ids: Sequence[bytes]) -> int:
    """Give blocks exactly the terms of the contexts that hold them now, even less generous terms.

    `ids`: blocks of a chain that begins with `root`. Reads all chains that begin with `root`.
    Returns how many blocks are in the index.
    """
    book = rulebook_of(tenant_id)
    held = held_terms(tenant_id, book, root=(space_id, root))
    in_space = book.of_space(space_id)
    groups: defaultdict[Standing, list[bytes]] = defaultdict(list)
    for id_, terms in zip(ids, held.of(ids), strict=True):
        own = Standing(in_space.for_blocks(), False) if terms is None else Standing(terms, True)
        groups[own].append(id_)
    tier = hot.hot_tier(tenant_id)
    return sum(
        give(tier, members, own, flush=own.terms.flush_after_s != in_space.flush_after_s)
        for own, members in groups.items()
    )
