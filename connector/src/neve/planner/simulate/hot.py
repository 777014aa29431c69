"""Promotion to a hot tier above an unlimited cold one, simulated in whole blocks.

Why 2q and promotion at the second read were chosen: docs/decisions/007-eviction.md.

A request asks for its blocks in order. A hot block is used; a cold one is read from S3 and perhaps
promoted; any other is computed and stored as hot, and is in S3 before it is evicted.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from neve.index.tier import PROMOTE_WINDOW_S
from neve.planner.simulate.policies import Policy
from neve.planner.simulate.requests import BlockRequest
from neve.planner.simulate.single import BytesOf, one_byte

_NEVER_S = -1e18


class Promote(StrEnum):
    SECOND_READ = "second"
    EVERY_READ = "every"
    NEVER = "never"


@dataclass
class HotTier:
    """A hot tier of `blocks` above an unlimited cold tier.

    A cold block is promoted at its second read within `window_s`, unless `promote` says otherwise.
    """

    blocks: Policy
    promote: Promote = Promote.SECOND_READ
    window_s: float = PROMOTE_WINDOW_S
    bytes_of: BytesOf = one_byte
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
        self._cold[id_] = _NEVER_S
        for left in self.blocks.store(id_, self.bytes_of(id_), again=again):
            self._cold[left] = _NEVER_S

    def add_cold(self, ids: Iterable[int]) -> None:
        """Adds cold blocks that were never hot."""
        self._cold.update(dict.fromkeys(ids, _NEVER_S))

    def _is_promoted(self, id_: int, now_s: float) -> bool:
        if self.promote is Promote.SECOND_READ:
            return now_s - self._cold[id_] <= self.window_s
        return self.promote is Promote.EVERY_READ


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
