"""Counters of a node, sent in its heartbeats.

A look-up of n blocks that finds a prefix of p counts n as `requested`. A block is a hit of its tier
once it is loaded and verified. The n-p blocks behind the prefix are misses, for the first one's
reason; a found block that is not loaded is a miss for its own reason. With several KV cache groups,
n and p count the blocks that a load needs: of a sliding window only the last ones.

`tail_tokens`: tokens after a prompt's last whole block, which no block can hold. The hit rate of
prompts is hits ÷ (`requested_tokens` + `tail_tokens`), in the dashboard as in a replay.

`put_blocks`: blocks that the engine stored, of them `put_states`: states of linear attention.
`promoted_blocks`: cold blocks brought back into the hot tier. Both count in `hot_write_bytes`.
`drops`: why the `dropped` blocks were not stored.

`cold_requests`, `cold_fetched_bytes`: GETs to the object store and the bytes that they asked for:
with gaps between blocks, repeated tries and blocks that failed, other than `cold_read_bytes`.

`hit_local_*`, `local_read_bytes`: blocks that came from the node's local tier; they are in none of
the hot and cold counters. `local_write_bytes`: written into it. `local_evicted_blocks`: deleted to
make room, by this node. `local_bad_blocks`: files that failed verification and were deleted; such
blocks were read from another tier.

`family_hit_tokens`: of the hits, tokens of a family's blocks that this process did not store.

`decided_all`, `decided_prefix`, `decided_recompute`: found prefixes by decision
(`neve.planner.choice.Decision`).
Verified hits of an engine's loads, in GPU-microseconds: microseconds × GPUs of the engine.
`spared_tokens`, `spared_gpu_us`, `load_gpu_us`: loads that ended sooner than computing: their
tokens, the prefill that they spared (by the `Prefill` fitted when the load ended), and the wait
from a load's plan to its end. `slower_tokens`, `slower_gpu_us`: loads that took longer than
computing what they brought: their tokens and the time lost; a failed load loses all of its wait.
`unpriced_tokens`: loaded before a speed of prefill was measured; they are in none of the others.
These and the decisions count once an engine, in the space of its first rank.
"""

import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from neve.errors import MissReason, Misuse
from neve.formats.loss import Loss
from neve.node.requests import RequestRing
from neve.node.sampling import Sampling

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
    "put_states",
    "promoted_blocks",
    "promoted_bytes",
    "put_refused",
    "dropped",
    "corrupt",
    "compared_blocks",
    "differing_blocks",
    "family_hit_tokens",
    "decided_all",
    "decided_prefix",
    "decided_recompute",
    "spared_tokens",
    "spared_gpu_us",
    "load_gpu_us",
    "slower_tokens",
    "slower_gpu_us",
    "unpriced_tokens",
    "cold_requests",
    "cold_fetched_bytes",
    "hit_local_tokens",
    "hit_local_blocks",
    "local_read_bytes",
    "local_write_bytes",
    "local_evicted_blocks",
    "local_bad_blocks",
)
LOAD_MS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
LOAD_NAMES: Final = (*(f"<={bound}" for bound in LOAD_MS), "+Inf")
# Measured by an engine and sent in heartbeats: the terms of `neve.planner.breakeven.Prefill` and,
# of each tier, of `Store`.
SPEEDS: Final = (
    "prefill_s_per_token",
    "prefill_s_per_pair",
    "hot_bytes_per_s",
    "hot_round_trip_s",
    "cold_bytes_per_s",
    "cold_round_trip_s",
    "local_bytes_per_s",
    "local_round_trip_s",
)
# Upper bound of each count in a heartbeat; a double holds it exactly.
MOST_COUNT: Final = 2**53


@dataclass
class Counts:
    """Counters by name, misses and drops in blocks by reason, loads by histogram bucket (each load
    in one, not cumulative)."""

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
        """The heartbeat's objects, without counts of 0."""
        return {
            "counters": {name: count for name in COUNTERS if (count := self.counters[name])},
            "misses": {str(name): count for name, count in self.misses.items() if count},
            "load_ms": {name: count for name, count in self.load_ms.items() if count},
            "drops": {str(name): count for name, count in self.drops.items() if count},
        }


class Stats:
    """Totals since the start, and the next heartbeat's delta and samples. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._totals = Counts()
        self._fresh = Counts()
        # By names of SPEEDS. Writers replace the object.
        self.speeds: Mapping[str, float] = {}
        self.loss: Loss | None = None  # of a space that is not exact; writers replace it
        self.sampling = Sampling()
        self.requests = RequestRing()
        # Of late ranges of S3 (`neve.datapath.hedging`): "begun", and of them "won". Not sent.
        self.second_requests: Counter[str] = Counter()
        self.changes = 0  # incremented by each count, so that readers can detect changes

    def count(self, **counters: int) -> None:
        self._add(Counts(counters=Counter(counters)))

    def second_request(self, outcome: str) -> None:
        with self._lock:
            self.changes += 1
            self.second_requests[outcome] += 1

    def miss(self, reason: MissReason, blocks: int = 1) -> None:
        self._add(Counts(misses=Counter({reason.value: blocks})))

    def drop(self, reason: MissReason, blocks: int = 1) -> None:
        """Counts blocks that were not stored, except blocks refused by a quota."""
        self._add(Counts(drops=Counter({reason.value: blocks})))

    def load(self, duration_s: float) -> None:
        """Counts one `get_many` by its duration from call to completion."""
        name = LOAD_NAMES[bisect_left(LOAD_MS, duration_s * 1000)]
        self._add(Counts(load_ms=Counter({name: 1})))

    def totals(self) -> Counts:
        with self._lock:
            return self._totals.copy()

    def take(self) -> Counts:
        """Returns the counts since the last `take`. The caller keeps them until delivery."""
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
