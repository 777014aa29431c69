"""Compares KV from Neve with KV that this engine computes itself, now and then.

No list of settings proves that two engines compute the same KV. So the first prefix of other
engines' blocks that is found is computed as if it were not there, and fetched as well: until both
are the same, nothing is loaded. Later, one in `every` such prefixes is. When they differ, the
engine serves alone until it starts anew: it neither loads nor saves.

At most two blocks of a prefix are fetched, the first and the last. What it costs is that the prefix
is computed: one in `every` of what Neve would have spared.
"""

from collections import Counter
from collections.abc import Iterable
from enum import StrEnum
from typing import Final

from neve.engine.telemetry import Telemetry

DEFAULT_EVERY: Final = 1000


class Verdict(StrEnum):
    """`UNKNOWN`: it could not be fetched, or there was no staging."""

    SAME = "same"
    OTHER = "other"
    UNKNOWN = "unknown"


class Canary:
    """Belongs to the scheduler's thread. `parts`: ranks that hold a part of each block.

    `every` = 0: nothing is ever compared.
    """

    def __init__(self, every: int, parts: int, telemetry: Telemetry) -> None:
        self._every = every
        self._parts = parts
        self._telemetry = telemetry
        self._due = every > 0
        self._found = 0
        self._same: Counter[bytes] = Counter()
        self.closed = every > 0  # until the first one was the same
        self.alone = False  # one was another

    def picks(self) -> bool:
        """Of a prefix that was found, with other engines' blocks: whether it is compared. Asked
        once for each."""
        if not self._every or self.alone:
            return False
        self._found += 1
        if not self._due and self._found < self._every:
            return False
        self._due, self._found = False, 0
        return True

    def drop(self) -> None:
        """A comparison that was picked does not take place."""
        self._due = self._due or self.closed

    def note(self, verdicts: Iterable[tuple[bytes, Verdict]]) -> None:
        """What the ranks said, by a block's first id."""
        for block_id, verdict in verdicts:
            self._telemetry.count("compared_blocks", 1, verdict)
            if verdict is Verdict.OTHER:
                self.alone = True
            elif verdict is Verdict.UNKNOWN:
                self.drop()
            else:
                self._same[block_id] += 1
                if self._same[block_id] >= self._parts:
                    self.closed = False
                    self._same.clear()
        self._telemetry.gauge("alone", int(self.alone))
