"""Weighs many contexts: their distinct blocks, those that other contexts hold too, and the bytes.

The database sorts the chains, and they are read one after the other. Chains share a beginning and
nothing else, so the blocks that are new with each one are those behind what it shares with its
neighbours. Memory: 20 bytes a context, READ_AT_ONCE chains, and MOST_ASKED ids.
"""

from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from uuid import UUID

from catalog.models import ID_BYTES, Context
from contexts.chains import shared_ids
from contexts.parts import Parts, parts_by_space
from neve.index.tier import HotTier, Location, Tier
from storage import hot
from tenants.scope import tenant_scope

READ_AT_ONCE = 50  # of at most 512 KiB, unless an operator allowed longer contexts
MOST_ASKED = 50_000  # ids whose sizes the index is asked for: all, or evenly spread ones
MOST_NAMED = 500  # contexts in one statement
MOST_ROOTS = 500  # of more, the spaces are read whole


@dataclass(frozen=True)
class Weight:
    """Distinct blocks of some contexts, and the bytes of those that are stored. `shared`: blocks
    that unexpired contexts outside of these hold too; `sharers`: how many contexts outside do.

    `own_hot_bytes`, `own_cold_bytes`: of the stored bytes that nobody shares, those in Valkey and
    those in S3; a block may be in both. `is_estimate`: the bytes are extrapolated from MOST_ASKED
    ids.
    """

    blocks: int = 0
    bytes: int = 0
    shared_blocks: int = 0
    shared_bytes: int = 0
    is_estimate: bool = False
    sharers: int = 0
    own_hot_bytes: int = 0
    own_cold_bytes: int = 0


def weigh(tenant_id: int, chosen: Iterable[UUID]) -> Weight:
    """Of the unexpired ones among `chosen`, contexts of one tenant. Raises Problem
    (hot-tier-unavailable)."""
    mine = {uuid.bytes for uuid in chosen}
    with tenant_scope(tenant_id):
        found = _Found(parts_by_space(tenant_id))
        found.read(mine)
    with hot.required():
        return found.weight(hot.hot_tier(tenant_id))


@dataclass(frozen=True)
class _Sample:
    """A block id of a chosen context: `row` of `_Found`, and its place in the chain."""

    row: int
    place: int
    space_id: int
    id: bytes


class _Found:
    """The chosen contexts and those that may share blocks with them, in the order of chains."""

    def __init__(self, parts: dict[int, Parts]) -> None:
        self._parts = parts
        self._is_mine = bytearray()
        self._shared = array("I")  # ids, with the row before
        self._length, self._own_from = array("I"), array("I")
        self._spaces = array("Q")
        self._samples: list[_Sample] = []
        self._every = 1

    def read(self, mine: set[bytes]) -> None:
        spaces, roots, blocks = _extent(mine)
        self._every = max(1, -(-blocks // MOST_ASKED))
        before, space_before, number = b"", None, 0
        since_mine = 0  # ids that all rows since the last chosen one share
        for uuid, space_id, chain in _sorted_chains(spaces, roots):
            shared = shared_ids(before, chain) if space_id == space_before else 0
            before, space_before = chain, space_id
            since_mine = min(since_mine, shared)
            row, length, is_mine = len(self._length), len(chain) // ID_BYTES, uuid.bytes in mine
            self._is_mine.append(is_mine)
            self._shared.append(shared)
            self._length.append(length)
            self._own_from.append(since_mine if is_mine else length)
            self._spaces.append(space_id)
            if is_mine:
                for place in range(since_mine + -number % self._every, length, self._every):
                    id_ = chain[place * ID_BYTES : (place + 1) * ID_BYTES]
                    self._samples.append(_Sample(row, place, space_id, id_))
                number += length - since_mine
                since_mine = length

    def weight(self, tier: HotTier) -> Weight:
        shared_to = self._shared_to()
        blocks = shared_blocks = 0
        for row, length in enumerate(self._length):
            own_from, groups = self._own_from[row], self._groups(self._spaces[row])
            blocks += (length - own_from) * groups
            shared_blocks += max(0, min(length, shared_to[row]) - own_from) * groups
        sizes, sampled = {True: 0, False: 0}, {True: 0, False: 0}
        own_hot = own_cold = 0
        by_space: defaultdict[int, list[_Sample]] = defaultdict(list)
        for sample in self._samples:
            by_space[sample.space_id].append(sample)
        for space_id, samples in by_space.items():
            groups = self._groups(space_id)
            answers = tier.match(self._parts[space_id].of([sample.id for sample in samples]))
            for n, sample in enumerate(samples):
                is_shared = sample.place < shared_to[sample.row]
                sampled[is_shared] += groups
                for answer in answers[n * groups : (n + 1) * groups]:
                    if isinstance(answer, Location):
                        sizes[is_shared] += answer.size_bytes
                        if not is_shared:
                            own_hot += answer.size_bytes * (answer.tier is Tier.HOT)
                            own_cold += answer.size_bytes * answer.is_cold
        shared_bytes = _scaled(sizes[True], shared_blocks, sampled[True])
        own_bytes, own_hot, own_cold = (
            _scaled(bytes_, blocks - shared_blocks, sampled[False])
            for bytes_ in (sizes[False], own_hot, own_cold)
        )
        return Weight(
            blocks,
            own_bytes + shared_bytes,
            shared_blocks,
            shared_bytes,
            self._every > 1,
            self._sharers(),
            own_hot,
            own_cold,
        )

    def _groups(self, space_id: int) -> int:
        return max(1, len(self._parts[space_id].groups))

    def _sharers(self) -> int:
        """Rows that were not chosen and share an id with one that was: between two chains all
        share what the two do, so the nearest chosen one decides."""
        found = bytearray(len(self._length))
        since = 0
        for row, is_mine in enumerate(self._is_mine):
            since = min(since, self._shared[row])
            found[row] = not is_mine and since > 0
            since = self._length[row] if is_mine else since
        since = 0
        for row in range(len(found) - 1, -1, -1):
            is_mine = self._is_mine[row]
            found[row] |= not is_mine and since > 0
            since = min(self._length[row] if is_mine else since, self._shared[row])
        return sum(found)

    def _shared_to(self) -> "array[int]":
        """Of each row, how many ids it shares with the nearest rows that were not chosen."""
        found = array("I", bytes(4 * len(self._length)))
        since = 0
        for row, is_mine in enumerate(self._is_mine):
            since = min(since, self._shared[row])
            found[row] = since
            since = since if is_mine else self._length[row]
        since = 0
        for row in range(len(found) - 1, -1, -1):
            found[row] = max(found[row], since)
            since = min(since if self._is_mine[row] else self._length[row], self._shared[row])
        return found


def _scaled(bytes_: int, blocks: int, sampled: int) -> int:
    return round(bytes_ * blocks / sampled) if sampled else 0


def _extent(mine: set[bytes]) -> tuple[set[int], set[tuple[int, bytes]], int]:
    """Spaces and roots (each with its space) of the chosen contexts, and how many blocks these have
    at most."""
    spaces: set[int] = set()
    roots: set[tuple[int, bytes]] = set()
    blocks, rows = 0, Context.objects.filter(expired_at=None).order_by()
    if len(mine) <= MOST_NAMED:
        rows = rows.filter(pk__in=[UUID(bytes=raw) for raw in mine])
    # Of more, all rows are read once: SQLite would read them for each part of the names.
    found = rows.values_list("pk", "space_id", "root", "blocks")
    for uuid, space_id, root, count in found.iterator(chunk_size=2000):
        if uuid.bytes not in mine:
            continue
        spaces.add(space_id)
        blocks += count
        if len(roots) <= MOST_ROOTS:
            roots.add((space_id, bytes(root)))
    return spaces, roots, blocks


def _sorted_chains(
    spaces: set[int], roots: set[tuple[int, bytes]]
) -> Iterator[tuple[UUID, int, bytes]]:
    """One query for each root, or for each space: either is read by an index and sorts little."""
    unexpired = Context.objects.filter(expired_at=None)
    if len(roots) <= MOST_ROOTS:
        parts = [unexpired.filter(space_id=space, root=root) for space, root in sorted(roots)]
    else:
        parts = [unexpired.filter(space_id=space) for space in sorted(spaces)]
    for rows in parts:
        found = rows.order_by("root", "chain").values_list("pk", "space_id", "chain")
        for uuid, space_id, chain in found.iterator(chunk_size=READ_AT_ONCE):
            yield uuid, space_id, bytes(chain)
