"""Counters of a node, which its heartbeats carry.

A look-up of n blocks that finds a prefix of p counts n as `requested`. A block counts as a hit of
its tier once it was loaded and verified. The n-p blocks behind the prefix count as misses, under
the reason of the first of them; a block that was found but not loaded, under its own. Of several
KV cache groups, n and p count the blocks that a load needs: of a window only the last ones.

`tail_tokens`: tokens after a prompt's last whole block, which no block can hold. The hit rate of
prompts is hits ÷ (`requested_tokens` + `tail_tokens`), in the dashboard as in a replay.

`put_blocks`: blocks that the engine stored. `promoted_blocks`: cold blocks brought back into the
hot tier. Both count in `hot_write_bytes`. `drops`: why the `dropped` blocks were not stored.
"""

import threading
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

from neve.errors import MissReason, Misuse

COUNTERS: Final = (
    "requested_tokens",
    "tail_tokens",
    "hit_hot_tokens",
    "hit_cold_tokens",
    "requested_blocks",
    "hit_hot_blocks",
    "hit_cold_blocks",
    "hot_read_bytes",
    "cold_read_bytes",
    "hot_write_bytes",
    "put_blocks",
    "promoted_blocks",
    "promoted_bytes",
    "put_refused",
    "dropped",
    "corrupt",
    "compared_blocks",
    "differing_blocks",
)
LOAD_MS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
LOAD_NAMES: Final = (*(f"<={bound}" for bound in LOAD_MS), "+Inf")
# Upper bound of each count in a heartbeat: no node reaches it, and a double holds it exactly.
MOST_COUNT: Final = 2**53


@dataclass
class Counts:
    """Counters by name, misses and drops in blocks by reason, loads by duration, each in one
    bucket."""

    counters: Counter[str] = field(default_factory=Counter)
    misses: Counter[str] = field(default_factory=Counter)
    load_ms: Counter[str] = field(default_factory=Counter)
    drops: Counter[str] = field(default_factory=Counter)

    def __iadd__(self, other: "Counts") -> "Counts":
        self.counters.update(other.counters)
        self.misses.update(other.misses)
        self.load_ms.update(other.load_ms)
        self.drops.update(other.drops)
        return self

    def copy(self) -> "Counts":
        return Counts(
            self.counters.copy(), self.misses.copy(), self.load_ms.copy(), self.drops.copy()
        )

    def as_dict(self) -> dict[str, Any]:
        """The heartbeat's objects; what is 0 is left out."""
        return {
            "counters": {name: count for name in COUNTERS if (count := self.counters[name])},
            "misses": {str(name): count for name, count in self.misses.items() if count},
            "load_ms": {name: count for name, count in self.load_ms.items() if count},
            "drops": {str(name): count for name, count in self.drops.items() if count},
        }


class Stats:
    """Totals since the start, and the delta that the next heartbeat carries. For any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._totals = Counts()
        self._fresh = Counts()
        self.changes = 0  # rises with each count, so that readers see whether anything is new

    def count(self, **counters: int) -> None:
        self._add(Counts(counters=Counter(counters)))

    def miss(self, reason: MissReason, blocks: int = 1) -> None:
        self._add(Counts(misses=Counter({reason.value: blocks})))

    def drop(self, reason: MissReason, blocks: int = 1) -> None:
        """Blocks that were not stored, except those that a quota refused."""
        self._add(Counts(drops=Counter({reason.value: blocks})))

    def load(self, duration_s: float) -> None:
        """One `get_many` from call to completion."""
        name = LOAD_NAMES[bisect_left(LOAD_MS, duration_s * 1000)]
        self._add(Counts(load_ms=Counter({name: 1})))

    def totals(self) -> Counts:
        with self._lock:
            return self._totals.copy()

    def take(self) -> Counts:
        """What was counted since the last `take`. The caller keeps it until it is delivered."""
        with self._lock:
            fresh, self._fresh = self._fresh, Counts()
            return fresh

    def _add(self, counts: Counts) -> None:
        unknown = counts.counters.keys() - set(COUNTERS)
        if unknown:
            raise Misuse("is no counter", field=min(unknown))
        with self._lock:
            self.changes += 1
            self._totals += counts
            self._fresh += counts
