"""Eviction and promotion of a hot tier, simulated in whole blocks.

`POLICIES` are the rows of `EVICTION` in the index's functions; `REFERENCES` exist only here.
Why 2q was chosen: docs/decisions/007-eviction.md.

A request asks for its blocks in order. A hot block is used; a cold one is read from S3 and perhaps
promoted; any other is computed and stored as hot, and is in S3 before it is evicted.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from neve.index.tier import PROMOTE_WINDOW_S
from neve.planner.simulate.requests import BlockRequest

_NEVER_S = -1e18


class HotBlocks(Protocol):
    """The ids of hot blocks, in the order in which a policy evicts them."""

    def __contains__(self, id_: int) -> bool: ...
    def __len__(self) -> int: ...
    def enter(self, id_: int, *, again: bool) -> None:
        """Adds a block that is not hot. `again`: it is promoted from S3."""

    def use(self, id_: int) -> None:
        """Notes a use of a hot block."""

    def evict(self) -> int:
        """Removes the next block and returns its id. Needs at least one block."""


class Queues:
    """`lru` and `2q`: a probation queue and a queue of used blocks, each least recent first.

    With `probation`, a new block is on probation until its first use. The probation queue is
    evicted first while it holds more than `share` of all blocks.
    """

    def __init__(self, *, probation: bool, share: float) -> None:
        self.probation = probation
        self.share = share
        self._young: OrderedDict[int, None] = OrderedDict()
        self._others: OrderedDict[int, None] = OrderedDict()

    def __contains__(self, id_: int) -> bool:
        return id_ in self._young or id_ in self._others

    def __len__(self) -> int:
        return len(self._young) + len(self._others)

    def enter(self, id_: int, *, again: bool) -> None:
        (self._young if self.probation and not again else self._others)[id_] = None

    def use(self, id_: int) -> None:
        self._young.pop(id_, None)
        self._others[id_] = None
        self._others.move_to_end(id_)

    def evict(self) -> int:
        young_first = len(self._young) > self.share * len(self)
        return (self._young if young_first else self._others).popitem(last=False)[0]


class ByPriority:
    """One `HotBlocks` for each priority; evicts the lowest priority first."""

    def __init__(self, make: Callable[[], HotBlocks], priority_of: Callable[[int], int]) -> None:
        self._make = make
        self._priority_of = priority_of
        self._of: dict[int, HotBlocks] = {}

    def __contains__(self, id_: int) -> bool:
        return id_ in self._blocks(id_)

    def __len__(self) -> int:
        return sum(map(len, self._of.values()))

    def enter(self, id_: int, *, again: bool) -> None:
        self._blocks(id_).enter(id_, again=again)

    def use(self, id_: int) -> None:
        self._blocks(id_).use(id_)

    def evict(self) -> int:
        return self._of[min(each for each, blocks in self._of.items() if len(blocks))].evict()

    def _blocks(self, id_: int) -> HotBlocks:
        priority = self._priority_of(id_)
        if priority not in self._of:
            self._of[priority] = self._make()
        return self._of[priority]


class S3Fifo:
    """S3-FIFO with a tenth of the blocks in its small queue.

    Needs no ghost queue, since the index knows every cold block: a promoted block enters the main
    queue. Source: Yang et al., SOSP'23.
    """

    SMALL = 0.1
    MOST_USES = 3

    def __init__(self) -> None:
        self._small: OrderedDict[int, int] = OrderedDict()
        self._main: OrderedDict[int, int] = OrderedDict()

    def __contains__(self, id_: int) -> bool:
        return id_ in self._small or id_ in self._main

    def __len__(self) -> int:
        return len(self._small) + len(self._main)

    def enter(self, id_: int, *, again: bool) -> None:
        (self._main if again else self._small)[id_] = 0

    def use(self, id_: int) -> None:
        queue = self._small if id_ in self._small else self._main
        queue[id_] = min(self.MOST_USES, queue[id_] + 1)

    def evict(self) -> int:
        while True:
            if len(self._small) > self.SMALL * len(self) or not self._main:
                id_, uses = self._small.popitem(last=False)
                if not uses:
                    return id_
                self._main[id_] = 0
            else:
                id_, uses = self._main.popitem(last=False)
                if not uses:
                    return id_
                self._main[id_] = uses - 1


class Promote(StrEnum):
    SECOND_READ = "second"
    EVERY_READ = "every"
    NEVER = "never"


@dataclass
class HotTier:
    """A hot tier of `most_blocks` above an unlimited cold tier.

    A cold block is promoted at its second read within `window_s`, unless `promote` says otherwise.
    """

    blocks: HotBlocks
    most_blocks: int
    promote: Promote = Promote.SECOND_READ
    window_s: float = PROMOTE_WINDOW_S
    promoted: int = 0
    _cold: dict[int, float] = field(default_factory=dict)  # id → time of its last cold read

    def request(self, ids: Iterable[int], now_s: float) -> int:
        """Asks for blocks, first to last. Returns the number of hot ones."""
        return sum(self.ask(id_, now_s) for id_ in ids)

    def ask(self, id_: int, now_s: float) -> bool:
        """Asks for one block and stores it if it is unknown. Returns whether it was hot."""
        if id_ in self.blocks:
            self.blocks.use(id_)
            return True
        if id_ not in self._cold:
            self.store(id_, again=False)
        elif self._is_promoted(id_, now_s):
            self.promoted += 1
            self.store(id_, again=True)
        else:
            self._cold[id_] = now_s
        return False

    def store(self, id_: int, *, again: bool) -> None:
        """Evicts until there is room, then adds the block, as a commit does."""
        while len(self.blocks) >= self.most_blocks:
            self._cold[self.blocks.evict()] = _NEVER_S
        self._cold[id_] = _NEVER_S
        self.blocks.enter(id_, again=again)

    def add_cold(self, ids: Iterable[int]) -> None:
        """Adds cold blocks that were never hot."""
        self._cold.update(dict.fromkeys(ids, _NEVER_S))

    def _is_promoted(self, id_: int, now_s: float) -> bool:
        if self.promote is Promote.SECOND_READ:
            return now_s - self._cold[id_] <= self.window_s
        return self.promote is Promote.EVERY_READ


POLICIES: dict[str, Callable[[], Queues]] = {
    "lru": lambda: Queues(probation=False, share=0),
    "2q": lambda: Queues(probation=True, share=0.5),
}
REFERENCES: dict[str, Callable[[], HotBlocks]] = {
    "2q, a tenth": lambda: Queues(probation=True, share=0.1),
    "s3-fifo": S3Fifo,
}


def simulate(tier: HotTier, requests: Iterable[BlockRequest]) -> tuple[float, float]:
    """Returns hot hits and promotions, each per block asked for by requests other than scans.

    Raises: ZeroDivisionError without such blocks.
    """
    hits = asked = 0
    for request in requests:
        if request.was_cold:
            tier.add_cold(request.ids)
        hot = tier.request(request.ids, request.at_s)
        if not request.is_scan:
            hits, asked = hits + hot, asked + len(request.ids)
    return hits / asked, tier.promoted / asked
