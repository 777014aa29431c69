"""The tree of the beginnings that the contexts of a space share.

The database sorts the chains, and they are read one after the other: neighbours share the longest
beginnings. The tree is built from these lengths alone.

Bounds: memory is 40 bytes a context, READ_AT_ONCE chains and the answer. Time grows with the bytes
of the space's chains, of which `NEVE_CONTEXT_BLOCKS_LIMIT` allows 16 a block.
"""

import heapq
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from uuid import UUID

from catalog.models import ID_BYTES, Context, Space
from contexts.chains import ids_per_chunk, shared_ids
from tenants.scope import tenant_scope

READ_AT_ONCE = 50  # of at most 512 KiB, unless an operator allowed longer contexts
MOST_LISTED = 10  # contexts of one node


@dataclass(frozen=True)
class Member:
    """A context of the tree."""

    id: UUID
    name: str
    tokens: int


@dataclass(frozen=True)
class Node:
    """A beginning that `context_count` contexts share: its length from the root of the tree on.

    `contexts`: some that share no more than this with any other, the longest first. `more`: how
    many are neither among these nor below `children`.
    """

    tokens: int
    blocks: int
    context_count: int
    contexts: tuple[Member, ...]
    children: tuple["Node", ...]
    more: int


def lineage(space: Space, *, limit: int, depth: int, min_tokens: int) -> Node:
    """The tree of the unexpired contexts of a space; its root is the empty beginning.

    At most `limit` nodes below the root, those of the most contexts, in at most `depth` levels.
    Beginnings of fewer than `min_tokens` are left out: their contexts and children belong to the
    root. Three SQL statements, whatever the number of contexts.
    """
    with tenant_scope(space.tenant_id):
        chains = _Chains(space, min_tokens)
        root = tree_of(chains.shared)
        picked = _pick(root, limit, depth)
        listed = {id(branch): chains.longest(branch.alone()) for branch in picked}
        uuids = [chains.uuid(place) for places in listed.values() for place in places]
        names = dict(Context.objects.filter(pk__in=uuids).order_by().values_list("pk", "name"))

    def shown(branch: Branch) -> Node:
        members = tuple(
            Member(uuid, names[uuid], chains.tokens[place])
            for place in listed[id(branch)]
            if (uuid := chains.uuid(place)) in names  # else deleted meanwhile
        )
        largest = sorted(branch.children, key=lambda child: -child.count)
        children = tuple(shown(child) for child in largest if id(child) in listed)
        known = len(members) + sum(child.context_count for child in children)
        tokens, blocks = chains.extent(branch)
        return Node(tokens, blocks, branch.count, members, children, branch.count - known)

    return shown(root)


class _Chains:
    """Of each unexpired context of the space, in the order of the chains: id, tokens, and ids
    shared with the one before."""

    def __init__(self, space: Space, min_tokens: int) -> None:
        self._chunk_tokens = space.chunk_tokens
        self._groups = max(1, len(space.groups))
        self._uuids, self.tokens = bytearray(), array("q")
        self._ids_per_chunk, self.shared = array("I"), array("I")
        before = b""
        for uuid, tokens, chain in self._read(space):
            ids = shared_ids(before, chain)
            a_chunk = ids_per_chunk(
                len(chain) // ID_BYTES, tokens=tokens, chunk_tokens=self._chunk_tokens
            )
            if ids // a_chunk * self._chunk_tokens < min_tokens:
                ids = 0
            self._uuids += uuid.bytes
            self.tokens.append(tokens)
            self._ids_per_chunk.append(a_chunk)
            self.shared.append(ids // a_chunk * a_chunk)
            before = chain

    def uuid(self, place: int) -> UUID:
        return UUID(bytes=bytes(self._uuids[16 * place : 16 * place + 16]))

    def extent(self, branch: "Branch") -> tuple[int, int]:
        """(tokens, blocks) of the shared beginning."""
        if not branch.ids:
            return 0, 0
        chunks = branch.ids // self._ids_per_chunk[branch.first]
        return chunks * self._chunk_tokens, branch.ids * self._groups

    def longest(self, places: Iterator[int]) -> list[int]:
        return heapq.nlargest(MOST_LISTED, places, key=lambda place: (self.tokens[place], -place))

    @staticmethod
    def _read(space: Space) -> Iterator[tuple[UUID, int, bytes]]:
        rows = Context.objects.filter(space=space, expired_at=None)
        found = rows.order_by("root", "chain").values_list("pk", "tokens", "chain")
        for uuid, tokens, chain in found.iterator(chunk_size=READ_AT_ONCE):
            yield uuid, tokens, bytes(chain)


@dataclass
class Branch:
    """Neighbours `first` to `last` in the order of the chains, which share `ids`."""

    ids: int
    first: int
    last: int = 0
    children: list["Branch"] = field(default_factory=list)

    @property
    def count(self) -> int:
        return self.last - self.first + 1

    def alone(self) -> Iterator[int]:
        """Places of the contexts that are of no child."""
        place = self.first
        for child in self.children:
            yield from range(place, child.first)
            place = child.last + 1
        yield from range(place, self.last + 1)


def tree_of(shared: "array[int]") -> Branch:
    """`shared`: what each neighbour shares with the one before. Linear time.

    Source: the tree of intervals of a longest-common-prefix array, Abouelhoda et al. 2004.
    """
    root = Branch(0, 0, len(shared) - 1)
    stack = [root]
    for place in range(1, len(shared) + 1):
        ids = shared[place] if place < len(shared) else 0
        first, inner = place - 1, None
        while ids < stack[-1].ids:
            branch = stack.pop()
            branch.last, first = place - 1, branch.first
            if ids <= stack[-1].ids:
                stack[-1].children.append(branch)
            else:
                inner = branch
        if ids > stack[-1].ids:
            stack.append(Branch(ids, first, children=[inner] if inner else []))
    return root


def _pick(root: Branch, limit: int, depth: int) -> list[Branch]:
    """The root and up to `limit` branches below, those of the most contexts: a branch has more
    than its children."""
    picked, waiting, number = [root], [(0, 0, 1, root)], 0
    while waiting:
        _, _, level, branch = heapq.heappop(waiting)
        if branch is not root:
            picked.append(branch)
        if len(picked) > limit:
            break
        for child in branch.children if level <= depth else ():
            number += 1
            heapq.heappush(waiting, (-child.count, number, level + 1, child))
    return picked
