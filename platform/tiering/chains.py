"""The order in which blocks lie in a segment. Pure.

Loading a context reads a path from a root down. A path takes one range for each piece in which it
lies, so blocks should follow their parents.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar


class Linked(Protocol):
    @property
    def id(self) -> bytes: ...
    @property
    def parent(self) -> bytes: ...


Block = TypeVar("Block", bound=Linked)


def count_runs(blocks: Sequence[Linked]) -> int:
    """The number of pieces that chains lie in: blocks that do not follow their parent."""
    before = [b"", *(block.id for block in blocks)]
    return sum(block.parent != id_ for block, id_ in zip(blocks, before, strict=False))


def order_along_chains(blocks: Sequence[Block]) -> list[Block]:
    """Every block behind its parent, the bushiest continuation first. Ids must be unique.

    Where a chain forks, the branch with the most blocks follows the fork, then the others. So a
    path leaves a contiguous piece only where it takes a lighter branch, at most log₂ n times among
    n blocks. Trees keep the order of their first blocks: blocks that were stored together stay
    together. O(n log n). Source: heavy path decomposition, Sleator and Tarjan 1983.
    """
    known = {block.id for block in blocks}
    children: dict[bytes, list[Block]] = defaultdict(list)
    roots: list[Block] = []
    for block in blocks:
        (children[block.parent] if block.parent in known else roots).append(block)
    below = _walk(roots, children)
    weight = dict.fromkeys(known, 1)
    for block in reversed(below):
        if block.parent in known:
            weight[block.parent] += weight[block.id]
    for branches in children.values():
        branches.sort(key=lambda block: weight[block.id], reverse=True)
    ordered = _walk(roots, children)
    reached = {block.id for block in ordered}
    return ordered + [
        block for block in blocks if block.id not in reached
    ]  # parents that a hostile node forged into a circle


def _walk(roots: Sequence[Block], children: Mapping[bytes, Sequence[Block]]) -> list[Block]:
    """Depth first: the first of `children` follows its parent."""
    ordered: list[Block] = []
    stack = list(reversed(roots))
    while stack:
        block = stack.pop()
        ordered.append(block)
        stack.extend(reversed(children.get(block.id, ())))
    return ordered
