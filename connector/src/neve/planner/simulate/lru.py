"""The ideal cache, for comparison: exact LRU over blocks.

Rules, as in the README of the traces: a request hits the blocks of its longest cached prefix; then
all its blocks are inserted and touched in order, and the least recently touched blocks beyond the
capacity are evicted. The hit rate is hits ÷ all blocks asked for.
"""

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from itertools import takewhile

from neve.errors import Misuse


class LruModel:
    """Exact LRU of `capacity_blocks` blocks; None never evicts. Not thread-safe."""

    def __init__(self, capacity_blocks: int | None) -> None:
        if capacity_blocks is not None and capacity_blocks < 1:
            raise Misuse(f"need at least 1 block, got {capacity_blocks}", field="capacity_blocks")
        self.capacity_blocks = capacity_blocks
        self.asked_blocks = 0
        self.hit_blocks = 0
        self._cached: OrderedDict[Hashable, None] = OrderedDict()

    def replay(self, ids: Sequence[Hashable]) -> int:
        """Asks for one request's blocks, first to last, and stores them. Returns the hits."""
        hits = sum(1 for _ in takewhile(self._cached.__contains__, ids))
        for block_id in ids:
            self._cached[block_id] = None
            self._cached.move_to_end(block_id)
        if self.capacity_blocks is not None:
            while len(self._cached) > self.capacity_blocks:
                self._cached.popitem(last=False)
        self.asked_blocks += len(ids)
        self.hit_blocks += hits
        return hits

    @property
    def hit_rate(self) -> float | None:
        """Hits ÷ blocks asked for; None before the first block."""
        return self.hit_blocks / self.asked_blocks if self.asked_blocks else None
