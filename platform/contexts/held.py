"""Terms that contexts give to the blocks in their chains. A context holds the blocks of its chain.

Blocks that no context holds have their space's terms; blocks that several contexts hold have the
most generous terms. Contexts are read only if a rule names contexts, or one is extended or pinned
to be durable: otherwise they change no terms.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime

import numpy as np
from django.db.models import Q
from django.utils import timezone

from catalog.models import ID_BYTES, Context
from contexts.parts import parts_by_space
from neve.index.tier import BlockTerms
from retention.rulebook import Rulebook
from retention.terms import most_generous
from tenants.scope import tenant_scope

_ID = np.dtype(f"S{ID_BYTES}")  # compares as bytes; both sides are padded alike


class HeldTerms:
    """Block id → terms, for blocks that contexts hold. A sorted table, 20 bytes a block."""

    def __init__(self, chains: Iterable[tuple[bytes, BlockTerms]]) -> None:
        """`chains`: (concatenated 16-byte ids, terms of their context) of each context."""
        self._terms: list[BlockTerms] = []
        numbers: dict[BlockTerms, int] = {}
        parts, owners = [np.empty(0, _ID)], [np.empty(0, np.uint32)]
        for chain, terms in chains:
            number = self._number(terms, numbers)
            parts.append(np.frombuffer(chain, _ID))
            owners.append(np.full(len(parts[-1]), number, np.uint32))
        ids, owner = np.concatenate(parts), np.concatenate(owners)
        order = np.lexsort((owner, ids))
        ids, owner = ids[order], owner[order]
        is_new = np.ones(len(ids), bool)
        is_new[1:] = (ids[1:] != ids[:-1]) | (owner[1:] != owner[:-1])
        ids, owner = ids[is_new], owner[is_new]
        self._ids, starts, counts = np.unique(ids, return_index=True, return_counts=True)
        self._owner = owner[starts]
        joined: dict[bytes, int] = {}
        for place in np.flatnonzero(counts > 1):
            several = owner[starts[place] : starts[place] + counts[place]]
            key = several.tobytes()
            if key not in joined:
                terms = most_generous(self._terms[n] for n in several)
                joined[key] = self._number(terms, numbers)
            self._owner[place] = joined[key]

    def _number(self, terms: BlockTerms, numbers: dict[BlockTerms, int]) -> int:
        if terms not in numbers:
            numbers[terms] = len(self._terms)
            self._terms.append(terms)
        return numbers[terms]

    def __len__(self) -> int:
        return len(self._ids)

    def of(self, ids: Sequence[bytes]) -> list[BlockTerms | None]:
        """The terms of each block; None if no context holds it. O(ids · log n)."""
        if not len(self._ids) or not ids:
            return [None] * len(ids)
        wanted = np.frombuffer(b"".join(ids), _ID)
        places = np.minimum(np.searchsorted(self._ids, wanted), len(self._ids) - 1)
        found = self._ids[places] == wanted
        owners = self._owner[places]
        return [
            self._terms[n] if is_found else None
            for n, is_found in zip(owners.tolist(), found.tolist(), strict=True)
        ]


def held_terms(
    tenant_id: int, book: Rulebook, *, root: tuple[int, bytes] | None = None
) -> HeldTerms:
    """Terms from all contexts of the tenant. With `root` (space id, block id): only from contexts
    of that space that begin with that block, since no others share blocks. Reads only chains that
    change terms.
    """
    parts = parts_by_space(tenant_id)
    with tenant_scope(tenant_id):
        contexts = Context.objects.filter(expired_at=None)
        if root is not None:
            contexts = contexts.filter(space_id=root[0], root=root[1])
        if not book.looks_at_contexts:
            # Also contexts that share blocks with such a one: the most generous terms win.
            now = timezone.now()
            own = contexts.filter(Q(extended_until__gt=now) | Q(durable_until__gt=now))
            contexts = contexts.filter(root__in=own.values("root"))
        rows = contexts.order_by().values_list(
            *("space_id", "label", "name", "extended_until", "durable_until", "chain")
        )
        return HeldTerms(
            (
                parts[space].of_chain(bytes(chain)),
                context_terms(book, space, label, name, until, durable),
            )
            for space, label, name, until, durable, chain in rows.iterator(chunk_size=100)
        )


def context_terms(
    book: Rulebook,
    space_id: int,
    label: str,
    name: str,
    extended_until: datetime | None,
    durable_until: datetime | None,
) -> BlockTerms:
    """Terms that one context gives to its blocks. A durable pin has them flushed at once."""
    until_s = 0 if extended_until is None else int(extended_until.timestamp())
    terms = book.of_context(space_id, label, name).for_blocks(until_s)
    is_durable = durable_until is not None and durable_until > timezone.now()
    return replace(terms, flush_after_s=0) if is_durable else terms
