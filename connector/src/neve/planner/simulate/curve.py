"""The whole LRU curve in one pass: the hit rate at every capacity, from stack distances.

LRU holds the most recently used blocks, as many as fit. So a block is held at every capacity from
its need up: its own bytes and those of all blocks used since its last use. A request's n-th block
is a hit, as part of a held prefix, at every capacity from the largest need of its first n blocks
up. A request is looked up as a whole before its blocks are used, as in `single`.
Source: Mattson et al., Evaluation techniques for storage hierarchies, IBM Systems Journal 1970.

Time O(log n) a block. Memory is linear in the unique blocks; where their bytes are unequal, also in
the distinct needs, which are at most as many as the hits.
"""

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import accumulate

from neve.errors import Misuse
from neve.planner.simulate.single import BytesOf, one_byte


class Stack:
    """Blocks by recency. Knows how many bytes LRU needs in order to hold a block still.

    Times of last uses are slots of a Fenwick tree of bytes, which is renumbered when its slots are
    more than twice the blocks.
    """

    def __init__(self) -> None:
        self._slots: dict[int, int] = {}  # id → slot of its last use, 1 …; in order of slots
        self._sizes: dict[int, int] = {}
        self._sums = [0]  # Fenwick tree: [n] holds the bytes in slots n - (n & -n) + 1 … n
        self.total_bytes = 0

    def __len__(self) -> int:
        return len(self._slots)

    def need(self, id_: int) -> int | None:
        """Returns bytes of the block and of all that were used since; None if it is new."""
        slot = self._slots.get(id_)
        if slot is None:
            return None
        before, slot = 0, slot - 1
        sums = self._sums
        while slot:
            before += sums[slot]
            slot &= slot - 1
        return self.total_bytes - before

    def use(self, id_: int, size_bytes: int) -> None:
        """Puts a block on top. Raises: Misuse if its bytes have changed."""
        sums = self._sums
        slot = self._slots.pop(id_, None)
        if slot is None:
            self._sizes[id_] = size_bytes
            self.total_bytes += size_bytes
        else:
            if self._sizes[id_] != size_bytes:
                raise Misuse(
                    f"block {id_} has {size_bytes} bytes now and had {self._sizes[id_]} before; "
                    "expected equal bytes at each use"
                )
            while slot < len(sums):
                sums[slot] -= size_bytes
                slot += slot & -slot
            if len(sums) > 2 * len(self._slots) + 1000:
                self._renumber()
        self._append(id_, size_bytes)

    def _append(self, id_: int, size_bytes: int) -> None:
        sums = self._sums
        slot = len(sums)
        self._slots[id_] = slot
        part, first = slot - 1, slot - (slot & -slot)
        while part > first:
            size_bytes += sums[part]
            part &= part - 1
        sums.append(size_bytes)

    def _renumber(self) -> None:
        self._sums = [0]
        for id_ in self._slots:
            self._append(id_, self._sizes[id_])


class Curve:
    """Hit rate by capacity. `needs`: capacity → blocks that are hits from this capacity up."""

    def __init__(self, needs: Counter[int], *, asked_blocks: int, largest_block: int) -> None:
        self.asked_blocks = asked_blocks
        self.largest_block = largest_block
        self.capacities = sorted(needs)  # where the curve steps up
        self._hits = [0, *accumulate(needs[each] for each in self.capacities)]

    def hit_blocks(self, capacity: int | None) -> int:
        """Hits at a capacity, in the unit of the blocks' bytes; None: unlimited.

        Raises: Misuse for a capacity that does not hold each of the blocks.
        """
        if capacity is None:
            return self._hits[-1]
        if capacity < self.largest_block:
            raise Misuse(
                f"{capacity} hold not even the largest block of {self.largest_block}",
                field="capacity",
            )
        return self._hits[bisect_right(self.capacities, capacity)]

    def hit_rate(self, capacity: int | None) -> float | None:
        """Hits ÷ blocks asked for; None without any. Raises: Misuse as `hit_blocks`."""
        return self.hit_blocks(capacity) / self.asked_blocks if self.asked_blocks else None

    def capacity_for(self, hit_rate: float) -> int | None:
        """Returns the least capacity with at least `hit_rate`; None if no capacity gives it."""
        asked = self.asked_blocks
        if not asked or hit_rate > self._hits[-1] / asked:
            return None
        wanted = bisect_left(self._hits, hit_rate, key=lambda hits: hits / asked)
        return max(self.largest_block, self.capacities[wanted - 1] if wanted else 0)


def lru_curve(requests: Iterable[Sequence[int]], *, bytes_of: BytesOf = one_byte) -> Curve:
    """The curve of LRU in one pass over requests of block ids, each a chain's blocks in order.

    Exact: equal to `single.run("lru", …)` at every capacity. Capacities are in blocks unless
    `bytes_of` says the blocks' bytes. Raises: Misuse if a block's bytes change.
    """
    stack = Stack()
    needs: Counter[int] = Counter()
    asked = largest = 0
    for ids in requests:
        most = 0
        for id_ in ids:
            need = stack.need(id_)
            if need is None:
                break
            most = max(most, need)
            needs[most] += 1
        for id_ in ids:
            size_bytes = bytes_of(id_)
            largest = max(largest, size_bytes)
            stack.use(id_, size_bytes)
        asked += len(ids)
    return Curve(needs, asked_blocks=asked, largest_block=largest)
