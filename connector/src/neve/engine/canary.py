"""Now and then compares KV from Neve with KV that this engine computes itself.

No list of settings proves that two engines compute the same KV. So the first found prefix with
blocks of other engines is computed as if it were a miss, and its blocks are fetched too: nothing is
loaded until both are the same. Later, one in `every` such prefixes is compared. If they differ, the
engine serves alone until it is restarted: it neither loads nor saves.

At most two blocks of a prefix are fetched, the first and the last. The cost is one prefix in
`every` that is computed instead of loaded.
"""

from collections import Counter
from collections.abc import Collection, Iterable
from enum import StrEnum
from typing import Final

from neve.engine.telemetry import Telemetry

DEFAULT_EVERY: Final = 1000


class Verdict(StrEnum):
    """`NEAR`: the same but for rounding, where bits are compared. `UNKNOWN`: the block could not be
    fetched, or no staging was free."""

    SAME = "same"
    NEAR = "near"
    OTHER = "other"
    UNKNOWN = "unknown"


class Canary:
    """Belongs to the scheduler's thread. `parts`: ranks that hold a part of each block.

    `every` = 0: nothing is ever compared. Of several KV cache `groups`, each is compared.
    """

    def __init__(self, every: int, parts: int, telemetry: Telemetry, *, groups: int = 1) -> None:
        self._every = every
        self._parts = parts
        self._group_of: dict[bytes, int] = {}  # blocks that are being compared
        self._unproven = set(range(groups))
        self._telemetry = telemetry
        self._due = every > 0
        self._found = 0
        self._same: Counter[bytes] = Counter()
        # Until a block of each group was the same on every part.
        self.closed = every > 0
        self.alone = False  # once a block differed

    def picks(self) -> bool:
        """Whether to compare a found prefix with blocks of other engines. Called once for each."""
        if not self._every or self.alone:
            return False
        self._found += 1
        if not self._due and self._found < self._every:
            return False
        self._due, self._found = False, 0
        return True

    def drop(self) -> None:
        """A picked comparison does not take place: the next prefix is picked instead, while
        `closed`."""
        self._due = self._due or self.closed

    def expect(self, block_id: bytes, group: int) -> None:
        """The block with this first id, of one KV cache group, is being compared."""
        if self.closed:
            self._group_of[block_id] = group

    def complete(self, groups: Collection[int]) -> None:
        """Of a picked prefix, no more than blocks of these groups are compared."""
        if not self._unproven.issubset(groups):
            self.drop()

    def note(self, verdicts: Iterable[tuple[bytes, Verdict]]) -> None:
        """Verdicts of ranks, by the first id of a chunk."""
        for block_id, verdict in verdicts:
            self._telemetry.count("compared_blocks", 1, verdict)
            if verdict is Verdict.OTHER:
                self.alone = True
            elif verdict is Verdict.UNKNOWN:
                self.drop()
            else:
                self._same[block_id] += 1
                if self._same[block_id] >= self._parts:
                    self._unproven.discard(self._group_of.get(block_id, 0))
                    self.closed = bool(self._unproven)
                if not self.closed:
                    self._same.clear()
                    self._group_of.clear()
        self._telemetry.gauge("alone", int(self.alone))
