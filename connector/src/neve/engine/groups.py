"""KV cache groups: layers whose engine blocks are allocated and freed together.

A chunk is stored as one part for each group; `neve.formats.parts` says which parts a reader needs.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from neve.formats.parts import PartGroup, PartKind, needed_from, stored_blocks


@dataclass(frozen=True)
class KvGroup:
    """`span`: tokens of a window, the reader's own included, or of a local chunk; None otherwise.

    `block_tokens`: tokens of an engine block. `number`: of the group in the engine.
    """

    layers: tuple[str, ...]
    span: int | None
    block_tokens: int
    number: int = 0
    kind: PartKind = PartKind.FULL

    def __post_init__(self) -> None:
        assert (self.span is not None) == (self.kind in (PartKind.WINDOW, PartKind.LOCAL))

    def needed_from(self, tokens: int) -> int:
        """First token, at the start of an engine block, whose KV computing token `tokens` reads."""
        return needed_from(self.kind, self.span, self.block_tokens, tokens)

    def stored_blocks(self, chunk_tokens: int) -> int:
        """Engine blocks of a chunk that are stored: its last ones."""
        return stored_blocks(self.kind, self.span, self.block_tokens, chunk_tokens)

    @property
    def frees(self) -> bool:
        """Whether requests give blocks of this group back while they run."""
        return self.kind is not PartKind.FULL

    def __str__(self) -> str:
        if self.kind is PartKind.FULL:
            return "all tokens"
        return self.kind.value if self.span is None else f"{self.kind} {self.span}"


def is_split(groups: Sequence[KvGroup]) -> bool:
    """Whether a chunk is more than one block with the KV of all its tokens."""
    return len(groups) > 1 or groups[0].frees


def alignment_tokens(groups: Sequence[KvGroup]) -> int:
    """Tokens of the shortest chunk that has whole engine blocks of every group."""
    return math.lcm(*(group.block_tokens for group in groups))


def part_groups(groups: Sequence[KvGroup], block_bytes: Iterable[int]) -> list[PartGroup]:
    """The table of groups for the platform; empty unless chunks have parts. `block_bytes`: of an
    engine block of each group, all layers; of a state group, of one state."""
    if not is_split(groups):
        return []
    return [
        PartGroup(group.kind, None, group.block_tokens, state_bytes=size)
        if group.kind is PartKind.STATE
        else PartGroup(group.kind, group.span, group.block_tokens, size // group.block_tokens)
        for group, size in zip(groups, block_bytes, strict=True)
    ]


def engine_blocks_of(
    group: KvGroup, tables: Sequence[Sequence[int]], chunk: int, chunk_tokens: int
) -> tuple[int, ...]:
    """The engine blocks that hold the stored tail of chunk number `chunk`, from a request's block
    tables, one for each group. 0 stands for a block that the engine freed, since no token to come
    sees it. Of a state, the block that a load fills.
    """
    end = (chunk + 1) * chunk_tokens // group.block_tokens
    return tuple(tables[group.number][end - group.stored_blocks(chunk_tokens) : end])


def blocks_to_skip(
    group: KvGroup, chunk: int, chunk_tokens: int, *, end_tokens: int, local_tokens: int
) -> int:
    """Leading engine blocks of a stored tail that a reader at `end_tokens` must not write: those
    that it has itself, and those that it does not see."""
    begin = (chunk + 1) * chunk_tokens - group.stored_blocks(chunk_tokens) * group.block_tokens
    return max(0, max(group.needed_from(end_tokens), local_tokens) - begin) // group.block_tokens
