"""Counters of a replay. Bytes are payload bytes, without the 64-byte headers of blocks.

A request's hits are its longest loaded prefix. All later blocks count as misses, for the reason
that ended the prefix: an engine would compute them even if they were stored.
"""

import math
import threading
import time
from collections import Counter, deque
from dataclasses import dataclass
from typing import Any

from neve.errors import MissReason
from neve.index.tier import Tier
from neve.planner.simulate.single import SingleTier

# Percentiles cover the latest requests only, so that an endless replay's memory is bounded.
LOADS_KEPT = 20_000


@dataclass(frozen=True)
class RequestOutcome:
    """Result of loading one request's prompt. `missed`: why the prefix ended; None: no miss.
    `match_s`: of `load_s`, the look-up."""

    input_tokens: int
    asked_blocks: int
    hit_blocks: dict[Tier, int]
    verified_blocks: int
    missed: MissReason | None
    load_s: float
    match_s: float = 0.0

    @property
    def hits(self) -> int:
        return sum(self.hit_blocks.values())


class Tally:
    """Sums outcomes. Thread-safe."""

    def __init__(self, *, chunk_tokens: int, payload_bytes: int) -> None:
        self._chunk_tokens = chunk_tokens
        self._payload_bytes = payload_bytes
        self._lock = threading.Lock()
        self._started = time.monotonic()
        self._loads_s: deque[float] = deque(maxlen=LOADS_KEPT)
        self._load_s = 0.0
        self._firsts_s: deque[float] = deque(maxlen=LOADS_KEPT)
        self.requests = 0
        self.asked_tokens = 0
        self.asked_blocks = 0
        self.hit_blocks: Counter[Tier] = Counter()
        self.missed: Counter[MissReason] = Counter()
        self.put: Counter[MissReason | None] = Counter()
        self.verified_blocks = 0
        self.wrong_blocks = 0

    def add(
        self,
        outcome: RequestOutcome,
        put: Counter[MissReason | None],
        *,
        compute_s: float | None = None,
    ) -> None:
        """Counts a request. `put`: number of blocks stored (key None) or not stored (reason).
        `compute_s`: time of an engine for the tokens that were not loaded; None: unknown."""
        with self._lock:
            self.requests += 1
            self.asked_tokens += outcome.input_tokens
            self.asked_blocks += outcome.asked_blocks
            self.hit_blocks.update(outcome.hit_blocks)
            self.verified_blocks += outcome.verified_blocks
            self.put.update(put)
            if outcome.missed is not None:
                self.missed[outcome.missed] += outcome.asked_blocks - outcome.hits
            if outcome.hits:
                self._loads_s.append(outcome.load_s)
                self._load_s += outcome.load_s
            if compute_s is not None:
                self._firsts_s.append(outcome.load_s + compute_s)

    def add_wrong(self) -> None:
        with self._lock:
            self.wrong_blocks += 1

    @property
    def hit_tokens(self) -> int:
        return self.hit_blocks.total() * self._chunk_tokens

    @property
    def token_hit_rate(self) -> float | None:
        """Tokens loaded ÷ tokens of all prompts; None before the first."""
        return self.hit_tokens / self.asked_tokens if self.asked_tokens else None

    @property
    def read_bytes(self) -> int:
        return self.hit_blocks.total() * self._payload_bytes

    @property
    def written_bytes(self) -> int:
        return self.put[None] * self._payload_bytes

    @property
    def wall_s(self) -> float:
        return time.monotonic() - self._started

    def summary(self, *, ideal: SingleTier | None, unbounded: SingleTier | None) -> dict[str, Any]:
        """All counts so far as JSON values; unknown numbers are None."""
        with self._lock:
            wall_s = self.wall_s
            loads_s, firsts_s = sorted(self._loads_s), sorted(self._firsts_s)
            hits = self.hit_blocks.total()
            failed = {
                reason.value: count
                for reason, count in self.put.items()
                if reason not in (None, MissReason.QUOTA)
            }
            return {
                "requests": self.requests,
                "wall_s": wall_s,
                "tokens": {
                    "asked": self.asked_tokens,
                    "hit": self.hit_tokens,
                    "computed": self.asked_tokens - self.hit_tokens,
                    "hit_rate": self.token_hit_rate,
                },
                "blocks": {
                    "chunk_tokens": self._chunk_tokens,
                    "payload_bytes": self._payload_bytes,
                    "asked": self.asked_blocks,
                    "hit": hits,
                    "hit_hot": self.hit_blocks[Tier.HOT],
                    "hit_cold": self.hit_blocks[Tier.COLD],
                    "hit_local": self.hit_blocks[Tier.LOCAL],
                    "hit_rate": hits / self.asked_blocks if self.asked_blocks else None,
                    "missed": {reason.value: n for reason, n in sorted(self.missed.items())},
                },
                "ideal_lru": {
                    "capacity_blocks": ideal.policy.capacity_bytes if ideal else None,
                    "hit_rate": ideal.hits.rate if ideal else None,
                    "unbounded_hit_rate": unbounded.hits.rate if unbounded else None,
                },
                "read": {
                    "bytes": self.read_bytes,
                    "hot_bytes": self.hit_blocks[Tier.HOT] * self._payload_bytes,
                    "cold_bytes": self.hit_blocks[Tier.COLD] * self._payload_bytes,
                    "local_bytes": self.hit_blocks[Tier.LOCAL] * self._payload_bytes,
                    "gb_per_s": self.read_bytes / wall_s / 1e9,
                    "gb_per_s_of_one_load": (
                        self.read_bytes / self._load_s / 1e9 if self._load_s else None
                    ),
                    "verified_blocks": self.verified_blocks,
                    "wrong_blocks": self.wrong_blocks,
                },
                "write": {
                    "bytes": self.written_bytes,
                    "gb_per_s": self.written_bytes / wall_s / 1e9,
                    "stored_blocks": self.put[None],
                    "refused_by_quota_blocks": self.put[MissReason.QUOTA],
                    "failed": failed,
                },
                "load_ms": {
                    "count": len(loads_s),
                    "p50": _percentile_ms(loads_s, 0.50),
                    "p99": _percentile_ms(loads_s, 0.99),
                },
                "first_token_ms": {
                    "count": len(firsts_s),
                    "p50": _percentile_ms(firsts_s, 0.50),
                    "p95": _percentile_ms(firsts_s, 0.95),
                    "p99": _percentile_ms(firsts_s, 0.99),
                },
            }


def _percentile_ms(ordered_s: list[float], share: float) -> float | None:
    """Nearest-rank quantile `share` (0 … 1) of sorted seconds, in ms; None without samples."""
    if not ordered_s:
        return None
    return ordered_s[math.ceil(share * len(ordered_s)) - 1] * 1e3
