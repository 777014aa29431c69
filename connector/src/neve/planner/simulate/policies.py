"""Eviction policies: which block leaves a full tier next. Weighted by bytes, quotas are hard.

`POLICIES` names them. `lru` and `2q` are the rows of EVICTION in the index's functions
(functions/ranks.lua), held together by tests/neve/test_simulate_hot.py; the others exist only here,
for comparison. A tier (`single`, `hot`, `tiers`) decides what enters and what counts as a hit.

Ids are integers. Costs: O(1) for a use, an entry or an eviction; O(log n) for `gdsf` and `belady`.
Memory is linear in the held blocks (`s3-fifo`: also in as many evicted ids).
"""

import heapq
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from itertools import count

from neve.errors import Misuse

EVICT_BATCH = 16  # blocks that the functions take from one queue before they look again


class Policy(ABC):
    """The held blocks of one tier and who leaves next.

    Callers use `store`, `use`, `evict` and `remove`. `capacity_bytes`: None never evicts.
    Invariant: after each call, `used_bytes` ≤ `capacity_bytes`.
    """

    def __init__(self, capacity_bytes: int | None = None) -> None:
        if capacity_bytes is not None and capacity_bytes < 1:
            raise Misuse(f"need at least 1 byte, got {capacity_bytes}", field="capacity_bytes")
        self.capacity_bytes = capacity_bytes
        self.used_bytes = 0
        self._sizes: dict[int, int] = {}  # id → bytes

    def __contains__(self, id_: int) -> bool:
        return id_ in self._sizes

    def __len__(self) -> int:
        return len(self._sizes)

    def size_of(self, id_: int) -> int:
        """Returns bytes of a held block. Raises: KeyError for another."""
        return self._sizes[id_]

    def store(
        self, id_: int, size_bytes: int = 1, *, again: bool = False, cost: float = 1.0
    ) -> Sequence[int]:
        """Adds a block that is not held, evicting for room. Returns the ids of the blocks that
        left: `id_` itself if it was not kept, as a block above the quota never is.

        `again`: it is known to be used repeatedly (promoted from a lower tier). `cost`: of
        computing it anew, in any unit; only `gdsf` weighs it.
        """
        left: Sequence[int] = ()
        if self.capacity_bytes is not None:
            over = self.used_bytes + size_bytes - self.capacity_bytes
            if over > 0:
                if size_bytes > self.capacity_bytes:
                    return (id_,)
                left = self.make_room(over)
        self._sizes[id_] = size_bytes
        self.used_bytes += size_bytes
        self._add(id_, size_bytes, again, cost)
        return left

    def make_room(self, lacking_bytes: int) -> list[int]:
        """Evicts until `lacking_bytes` are freed or nothing is left. Returns the evicted ids."""
        most = self.used_bytes - lacking_bytes
        left = []
        while self.used_bytes > most and self._sizes:
            left.append(self.evict())
        return left

    def evict(self) -> int:
        """Removes the next block and returns its id. Needs at least one block."""
        id_ = self._pop()
        self.used_bytes -= self._sizes.pop(id_)
        return id_

    def remove(self, id_: int) -> None:
        """Removes a held block that expired or was deleted. Raises: KeyError for another."""
        self._discard(id_)
        self.used_bytes -= self._sizes.pop(id_)

    @abstractmethod
    def use(self, id_: int) -> None:
        """Notes a use of a held block."""

    @abstractmethod
    def _add(self, id_: int, size_bytes: int, again: bool, cost: float) -> None: ...
    @abstractmethod
    def _pop(self) -> int: ...
    @abstractmethod
    def _discard(self, id_: int) -> None: ...


class Queues(Policy):
    """`lru` and `2q`: a probation queue and a queue of used blocks, each least recent first.

    With `probation`, a new block is on probation until its first use. The probation queue is
    evicted first while it holds more than `share` of all blocks: of their number, not their bytes,
    as the functions count them.
    """

    def __init__(self, capacity_bytes: int | None = None, *, probation: bool, share: float) -> None:
        super().__init__(capacity_bytes)
        self.probation = probation
        self.share = share
        self._young: OrderedDict[int, None] = OrderedDict()
        self._others: OrderedDict[int, None] = OrderedDict()

    def use(self, id_: int) -> None:
        if id_ in self._others:
            self._others.move_to_end(id_)
        else:
            del self._young[id_]
            self._others[id_] = None

    def make_room(self, lacking_bytes: int) -> list[int]:
        """As `make_room` of the functions: EVICT_BATCH blocks of one queue, then it looks again."""
        most = self.used_bytes - lacking_bytes
        left: list[int] = []
        while self.used_bytes > most and self._sizes:
            queue = self._first()
            for _ in range(min(EVICT_BATCH, len(queue))):
                if self.used_bytes <= most:
                    break
                id_ = queue.popitem(last=False)[0]
                self.used_bytes -= self._sizes.pop(id_)
                left.append(id_)
        return left

    def _first(self) -> OrderedDict[int, None]:
        young_first = len(self._young) > self.share * len(self._sizes)
        return self._young if young_first else self._others

    def _add(self, id_: int, size_bytes: int, again: bool, cost: float) -> None:
        (self._young if self.probation and not again else self._others)[id_] = None

    def _pop(self) -> int:
        return self._first().popitem(last=False)[0]

    def _discard(self, id_: int) -> None:
        del (self._young if id_ in self._young else self._others)[id_]


class ByPriority(Policy):
    """One policy without a quota for each priority, as `make_part` makes it; the lowest priority
    leaves first."""

    def __init__(
        self,
        capacity_bytes: int | None,
        make_part: Callable[[], Policy],
        priority_of: Callable[[int], int],
    ) -> None:
        super().__init__(capacity_bytes)
        self._make_part = make_part
        self._priority_of = priority_of
        self._parts: dict[int, Policy] = {}

    def use(self, id_: int) -> None:
        self._parts[self._priority_of(id_)].use(id_)

    def make_room(self, lacking_bytes: int) -> list[int]:
        most = self.used_bytes - lacking_bytes
        left: list[int] = []
        while self.used_bytes > most and self._sizes:
            evicted = self._first().make_room(self.used_bytes - most)
            self.used_bytes -= sum(self._sizes.pop(id_) for id_ in evicted)
            left += evicted
        return left

    def _first(self) -> Policy:
        return self._parts[min(each for each, part in self._parts.items() if len(part))]

    def _add(self, id_: int, size_bytes: int, again: bool, cost: float) -> None:
        priority = self._priority_of(id_)
        if priority not in self._parts:
            self._parts[priority] = self._make_part()
        self._parts[priority].store(id_, size_bytes, again=again, cost=cost)

    def _pop(self) -> int:
        return self._first().evict()

    def _discard(self, id_: int) -> None:
        self._parts[self._priority_of(id_)].remove(id_)


class S3Fifo(Policy):
    """S3-FIFO: a small queue for new blocks, a main queue, and a ghost queue of evicted ids.

    A block that leaves the small queue moves to the main one after `least_uses`, and else to the
    ghosts; a ghost that comes back enters the main queue, as does a block stored `again`. The small
    queue holds a tenth of the bytes, the ghosts stand for as many bytes as the main queue.
    Source: Yang et al., SOSP'23, algorithm 1.
    """

    SMALL = 0.1
    MOST_USES = 3

    def __init__(self, capacity_bytes: int | None = None, *, least_uses: int = 2) -> None:
        super().__init__(capacity_bytes)
        self._least_uses = least_uses
        self._small: OrderedDict[int, int] = OrderedDict()  # id → uses
        self._main: OrderedDict[int, int] = OrderedDict()
        self._ghosts: OrderedDict[int, int] = OrderedDict()  # id → bytes
        self._small_bytes = 0
        self._ghost_bytes = 0

    def use(self, id_: int) -> None:
        queue = self._small if id_ in self._small else self._main
        if queue[id_] < self.MOST_USES:
            queue[id_] += 1

    def _add(self, id_: int, size_bytes: int, again: bool, cost: float) -> None:
        ghost_bytes = self._ghosts.pop(id_, None)
        self._ghost_bytes -= ghost_bytes or 0
        if again or ghost_bytes is not None:
            self._main[id_] = 0
        else:
            self._small[id_] = 0
            self._small_bytes += size_bytes

    def _pop(self) -> int:
        while True:
            if self._small and (self._small_bytes > self.SMALL * self.used_bytes or not self._main):
                id_, uses = self._small.popitem(last=False)
                self._small_bytes -= self._sizes[id_]
                if uses < self._least_uses:
                    self._remember(id_)
                    return id_
                self._main[id_] = 0
            else:
                id_, uses = self._main.popitem(last=False)
                if not uses:
                    return id_
                self._main[id_] = uses - 1

    def _remember(self, id_: int) -> None:
        self._ghosts[id_] = self._sizes[id_]
        self._ghost_bytes += self._sizes[id_]
        while self._ghost_bytes > (1 - self.SMALL) * self.used_bytes:
            self._ghost_bytes -= self._ghosts.popitem(last=False)[1]

    def _discard(self, id_: int) -> None:
        if id_ in self._main:
            del self._main[id_]
        else:
            del self._small[id_]
            self._small_bytes -= self._sizes[id_]


class Lfu(Policy):
    """Evicts the block with the fewest uses since it was stored; of equal ones, the longest
    unused."""

    def __init__(self, capacity_bytes: int | None = None) -> None:
        super().__init__(capacity_bytes)
        self._uses: dict[int, int] = {}
        self._with: dict[int, OrderedDict[int, None]] = {}  # uses → ids, longest unused first

    def use(self, id_: int) -> None:
        uses = self._uses[id_]
        self._leave(id_, uses)
        self._join(id_, uses + 1)

    def _add(self, id_: int, size_bytes: int, again: bool, cost: float) -> None:
        self._join(id_, 0)

    def _pop(self) -> int:
        uses = min(self._with)
        id_ = next(iter(self._with[uses]))
        self._discard(id_)
        return id_

    def _discard(self, id_: int) -> None:
        self._leave(id_, self._uses.pop(id_))

    def _join(self, id_: int, uses: int) -> None:
        self._uses[id_] = uses
        self._with.setdefault(uses, OrderedDict())[id_] = None

    def _leave(self, id_: int, uses: int) -> None:
        ids = self._with[uses]
        del ids[id_]
        if not ids:
            del self._with[uses]


class _Ranking:
    """Ids by a rank that may change; pops the lowest, of equal ones the earliest ranked."""

    def __init__(self) -> None:
        self._ranks: dict[int, tuple[float, int]] = {}
        self._heap: list[tuple[float, int, int]] = []  # also holds ranks that are over
        self._next = count()

    def set(self, id_: int, rank: float) -> None:
        turn = next(self._next)
        self._ranks[id_] = rank, turn
        heapq.heappush(self._heap, (rank, turn, id_))
        if len(self._heap) > 2 * len(self._ranks) + 1000:
            self._heap = [(*ranked, each) for each, ranked in self._ranks.items()]
            heapq.heapify(self._heap)

    def pop(self) -> tuple[int, float]:
        while True:
            rank, turn, id_ = heapq.heappop(self._heap)
            if self._ranks.get(id_) == (rank, turn):
                del self._ranks[id_]
                return id_, rank

    def discard(self, id_: int) -> None:
        del self._ranks[id_]


class Gdsf(Policy):
    """Greedy-Dual-Size-Frequency: evicts the lowest clock + uses × cost ÷ bytes, where the clock
    is the rank of the last evicted block. Source: Cherkasova, HPL-98-69R1, 1998.
    """

    def __init__(self, capacity_bytes: int | None = None) -> None:
        super().__init__(capacity_bytes)
        self._clock = 0.0
        self._worth: dict[int, tuple[int, float]] = {}  # id → uses, cost ÷ bytes
        self._ranking = _Ranking()

    def use(self, id_: int) -> None:
        uses, density = self._worth[id_]
        self._rank(id_, uses + 1, density)

    def _add(self, id_: int, size_bytes: int, again: bool, cost: float) -> None:
        self._rank(id_, 1, cost / size_bytes)

    def _rank(self, id_: int, uses: int, density: float) -> None:
        self._worth[id_] = uses, density
        self._ranking.set(id_, self._clock + uses * density)

    def _pop(self) -> int:
        id_, self._clock = self._ranking.pop()
        del self._worth[id_]
        return id_

    def _discard(self, id_: int) -> None:
        del self._worth[id_]
        self._ranking.discard(id_)


class Future:
    """Next uses of the blocks of known requests. The tier calls `advance` as each begins.

    Raises: Misuse unless equal ids stand for equal prefixes (each follows the same id).
    """

    _DEPTHS = 1 << 32

    def __init__(self, requests: Iterable[Sequence[int]]) -> None:
        self._requests = [tuple(ids) for ids in requests]
        _check_prefixes(self._requests)
        self._begun = 0
        self._ranks: dict[int, int] = {}
        self._next_uses = next_uses(self._requests)

    def advance(self) -> None:
        """The next request begins."""
        ids, nexts = self._requests[self._begun], self._next_uses[self._begun]
        self._begun += 1
        for depth, (id_, number) in enumerate(zip(ids, nexts, strict=True)):
            self._ranks[id_] = -(number * self._DEPTHS + depth)

    def rank(self, id_: int) -> int:
        """Lowest for the block whose next use is furthest, of equal ones the deepest in its
        chain. Raises: KeyError before the first request for it."""
        return self._ranks[id_]


def next_uses(requests: Sequence[Sequence[int]]) -> list[list[int]]:
    """Returns for each block of each request the number of the next request for it; the number of
    requests if there is none."""
    found = []
    upcoming: dict[int, int] = {}
    never = len(requests)
    for number in range(never - 1, -1, -1):
        ids = requests[number]
        found.append([upcoming.get(id_, never) for id_ in ids])
        upcoming.update(dict.fromkeys(ids, number))
    found.reverse()
    return found


def _check_prefixes(requests: Iterable[Sequence[int]]) -> None:
    parents: dict[int, int | None] = {}
    for number, ids in enumerate(requests):
        parent = None
        for id_ in ids:
            if parents.setdefault(id_, parent) != parent:
                raise Misuse(
                    f"request {number}: block {id_} follows {parent} here and {parents[id_]} "
                    "before; expected ids that stand for the whole prefix"
                )
            parent = id_


class Belady(Policy):
    """Evicts the block whose next use is furthest away, even the new one. Needs the future.

    With blocks of equal bytes in one tier, no policy has more hits (`single.bound` also bounds
    unequal ones). The bound holds for hits of whole prefixes as for hits of blocks: every request
    for a block asks for its prefix, whose next use is therefore as early, and of equal next uses
    the deepest leaves first; so a held block's prefix is held too. It does not bound the
    time that hits spare, since deeper blocks cost more. Between two requests for a held block it
    must not be skipped: `use` it.
    """

    def __init__(self, capacity_bytes: int | None = None, *, future: Future) -> None:
        super().__init__(capacity_bytes)
        self._future = future
        self._ranking = _Ranking()

    def store(
        self, id_: int, size_bytes: int = 1, *, again: bool = False, cost: float = 1.0
    ) -> Sequence[int]:
        capacity_bytes = self.capacity_bytes
        if capacity_bytes is not None and size_bytes > capacity_bytes:
            return (id_,)
        self._sizes[id_] = size_bytes
        self.used_bytes += size_bytes
        self.use(id_)
        left = []
        while capacity_bytes is not None and self.used_bytes > capacity_bytes:
            left.append(self.evict())
        return left

    def use(self, id_: int) -> None:
        self._ranking.set(id_, self._future.rank(id_))

    def _add(self, id_: int, size_bytes: int, again: bool, cost: float) -> None:
        self.use(id_)

    def _pop(self) -> int:
        return self._ranking.pop()[0]

    def _discard(self, id_: int) -> None:
        self._ranking.discard(id_)


EVICTION = {"lru": (False, 0.0), "2q": (True, 0.5)}  # as in the functions: (probation, share)


def _queues(name: str) -> Callable[[int | None], Policy]:
    probation, share = EVICTION[name]
    return lambda capacity_bytes: Queues(capacity_bytes, probation=probation, share=share)


# Without `belady`, which needs the future.
ONLINE: dict[str, Callable[[int | None], Policy]] = {
    "lru": _queues("lru"),
    "2q": _queues("2q"),
    "s3-fifo": S3Fifo,
    "lfu": Lfu,
    "gdsf": Gdsf,
}
POLICIES = (*ONLINE, "belady")


def make(name: str, *, capacity_bytes: int | None, future: Future | None = None) -> Policy:
    """An empty policy of POLICIES. Only `belady` needs the `future`.

    Raises: Misuse for another name, no byte of capacity, or `belady` without a future.
    """
    if name in ONLINE:
        return ONLINE[name](capacity_bytes)
    if name != "belady":
        raise Misuse(
            f"unknown policy {name!r}; expected one of {', '.join(POLICIES)}", field="policy"
        )
    if future is None:
        raise Misuse("belady needs all requests in advance: pass their Future", field="future")
    return Belady(capacity_bytes, future=future)
