"""The blocks that a context's chain stands for: one for each chunk, or one part for each KV group.

A context stores the ids of its chain. In a space with a table of groups its parts' ids follow from
them, chunk by chunk: so a prefix of the blocks is a prefix of the tokens. Contexts that share an id
of the chain share all parts of that chunk.
"""

from collections.abc import Sequence

from catalog.models import ID_BYTES, Space
from neve.errors import MissReason
from neve.formats.ids import BlockHasher
from neve.formats.parts import PartGroup, needed_parts
from neve.index.tier import HotTier
from tenants.scope import tenant_scope


class Parts:
    """Blocks of chains of one space. `groups`: its table; empty if it has none."""

    def __init__(self, space: Space) -> None:
        self.groups = tuple(map(PartGroup.from_dict, space.groups))
        self.chunk_tokens = space.chunk_tokens
        self._hasher = BlockHasher(bytes.fromhex(space.fingerprint), space.chunk_tokens)

    def of(self, ids: Sequence[bytes]) -> list[bytes]:
        """All blocks of the chunks with these `ids` of a chain, chunk by chunk."""
        if len(self.groups) < 2:
            return list(ids)
        groups = len(self.groups)
        return [part for id_ in ids for part in self._hasher.of_groups(id_, groups)]

    def of_chain(self, chain: bytes) -> bytes:
        """`of` for concatenated ids, as in `Context.chain`."""
        if len(self.groups) < 2:
            return chain
        ids = [chain[at : at + ID_BYTES] for at in range(0, len(chain), ID_BYTES)]
        return b"".join(self.of(ids))

    def is_needed(self, chunks: int) -> list[bool]:
        """Whether a request that goes on behind so many chunks needs each of their blocks, in the
        order of `of`. Only for a space with a table of groups."""
        counts = needed_parts(self.groups, chunks, self.chunk_tokens)
        return [chunk >= chunks - count for chunk in range(chunks) for count in counts]

    def needed(self, ids: Sequence[bytes]) -> list[bytes]:
        """The blocks that a request needs that goes on behind the chain `ids`."""
        if not self.groups:
            return list(ids)
        blocks = zip(self.of(ids), self.is_needed(len(ids)), strict=True)
        return [id_ for id_, is_needed in blocks if is_needed]

    def lost(self, tier: HotTier, ids: Sequence[bytes], stored: int) -> int:
        """How many of the `needed` blocks are in neither tier. `stored`: how many of all blocks are
        in one. Raises valkey's errors."""
        if not self.groups:
            return len(ids) - stored
        answers = tier.match(self.needed(ids))
        return sum(isinstance(answer, MissReason) for answer in answers)


def parts_of(tenant_id: int, space_id: int) -> Parts:
    with tenant_scope(tenant_id):
        return Parts(Space.objects.get(pk=space_id))


def parts_by_space(tenant_id: int) -> dict[int, Parts]:
    """Of all spaces of the tenant, by their number. One statement."""
    with tenant_scope(tenant_id):
        return {space.pk: Parts(space) for space in Space.objects.all()}
