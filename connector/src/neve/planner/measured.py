"""Speeds of prefill and of each tier, measured while the engine works. Callers read the clock."""

from collections.abc import Iterable
from typing import Final

from neve.planner.breakeven import Prefill, Store, pairs
from neve.planner.fit import TwoTermFit

# Steps with fewer prompt tokens show a step's fixed cost: it outweighs prefill.
LEAST_PREFILL_TOKENS: Final = 64
_MOST_OPEN: Final = 64  # steps that began and have not ended
# The engine's first steps compile, tune and allocate.
_WARM_UP_STEPS: Final = 2
# A tier's first load opens connections, which may even make it fail.
_WARM_UP_LOADS: Final = 1
# While all loads have one size, assume that this fraction of their time does not depend on size:
# otherwise larger loads would never look worth trying, and would never be measured.
_FIXED_SHARE: Final = 0.5
# A sample counts at most this many times the prediction, so that one pause of the engine or one
# burst of other loads does not dominate the fit.
MOST_SURPRISE: Final = 4.0
# A slow tier may have recovered: without new samples, its assumed speed doubles in this time, so
# that it is tried again.
DOUBLING_S: Final = 30.0


class PrefillMeter:
    """Prefill speed from the engine's steps, and how long its short ones take."""

    def __init__(self) -> None:
        self._fit = TwoTermFit()
        self._short = TwoTermFit(fade=0.8)
        self.most_tokens = 0  # prompt tokens of one measured step
        self._open: dict[int, tuple[float, float]] = {}
        self._warm_up = _WARM_UP_STEPS

    def begin(self, step: int, chunks: Iterable[tuple[int, int]]) -> bool:
        """Notes that a step computes these (start, end) token ranges of prompts.

        True: measure the step and call `end`, perhaps some steps later.
        """
        tokens = looked_at = 0.0
        for start, end in chunks:
            tokens += end - start
            looked_at += pairs(start, end)
        if not tokens:
            return False
        if len(self._open) == _MOST_OPEN:
            del self._open[next(iter(self._open))]
        self._open[step] = tokens, looked_at
        return True

    def end(self, step: int, took_s: float) -> bool:
        """Notes that a measured step took `took_s`; of several ranks, the first report counts.

        True if the step became a sample of the prefill speed.
        """
        tokens, looked_at = self._open.pop(step, (0.0, 0.0))
        if not tokens or took_s <= 0:
            return False
        if self._warm_up:
            self._warm_up -= 1
            return False
        if tokens < LEAST_PREFILL_TOKENS:
            before_s = self.step_s
            self._short.add(1.0, 0.0, min(took_s, MOST_SURPRISE * before_s or took_s))
            return False
        if self._fit.samples:
            a, b = self._fit.solve() or (took_s, 0.0)
            took_s = min(took_s, MOST_SURPRISE * (a * tokens + b * looked_at) or took_s)
        self._fit.add(tokens, looked_at, took_s)
        self.most_tokens = max(self.most_tokens, int(tokens))
        return True

    @property
    def step_s(self) -> float:
        """Seconds of a step with few prompt tokens, such as the one after a load; 0: unknown."""
        terms = self._short.solve()
        return 0.0 if terms is None else terms[0]

    def prefill(self) -> Prefill | None:
        """The fitted speed; None before the first sample."""
        terms = self._fit.solve()
        return None if terms is None else Prefill(*terms)


class StoreMeter:
    """Bandwidth and round trip of one tier, fitted to its loads, and the bytes in flight."""

    def __init__(self) -> None:
        self._fit = TwoTermFit(fade=0.8, share=_FIXED_SHARE)
        self._sampled_at = 0.0
        self._queue_bytes = 0
        self._warm_up = _WARM_UP_LOADS

    def begin(self, size_bytes: int) -> int:
        """Notes the start of a load. Returns the bytes in flight ahead of it."""
        ahead = self._queue_bytes
        self._queue_bytes += size_bytes
        return ahead

    def end(
        self, size_bytes: int, ahead_bytes: int, took_s: float, now: float, came: float = 1.0
    ) -> None:
        """Notes the end of a load after `took_s` seconds; 0: not a sample of the speed.

        `came`: fraction of the bytes received before the deadline. Timed-out loads do not update
        the fixed-cost term: equal deadlines would look like a fixed cost.
        """
        self._queue_bytes -= size_bytes
        if took_s <= 0 or size_bytes == 0:
            return
        if self._warm_up:
            self._warm_up -= 1
            return
        moved = ahead_bytes + came * size_bytes
        if terms := self._fit.solve():
            took_s = min(took_s, MOST_SURPRISE * (terms[0] * moved + terms[1]))
        self._fit.add(moved, float(came == 1.0), took_s)
        self._sampled_at = now

    def measured(self) -> Store | None:
        """The tier's speed as of the last sample; None before the first."""
        return self.store(self._sampled_at)

    def store(self, now: float) -> Store | None:
        """The tier's assumed speed at `now`: the older the last sample, the faster."""
        terms = self._fit.solve()
        if terms is None:
            return None
        hope = 2.0 ** min(60.0, (now - self._sampled_at) / DOUBLING_S)
        s_per_byte = max(terms[0], 1e-15) / hope
        return Store(1.0 / s_per_byte, terms[1] / hope, self._queue_bytes)
