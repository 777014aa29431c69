"""The speeds that the choice needs, measured while the engine works. The caller brings the time."""

from collections.abc import Iterable
from typing import Final

from neve.planner.breakeven import Prefill, Store, pairs
from neve.planner.fit import TwoTermFit

# A step that computes fewer prompt tokens says little about prefill: its fixed cost rules.
LEAST_PREFILL_TOKENS: Final = 64
_MOST_OPEN: Final = 64  # steps whose time is awaited
# The engine's first steps compile, tune and allocate.
_WARM_UP_STEPS: Final = 2
# A tier's first load opens connections, and may fail for that alone.
_WARM_UP_LOADS: Final = 1
# While all loads had one size, so much of their time is taken to be the same for each size: larger
# ones must look worth trying, or they would never be measured.
_FIXED_SHARE: Final = 0.5
# One sample may say at most so many times what was predicted: an engine that was stopped for a
# while, or a burst of others' loads, must not rule what is believed of it.
_MOST_SURPRISE: Final = 4.0
# What was slow may be well again. A speed without new samples is believed to double every so long,
# so that in the end it is tried again.
DOUBLING_S: Final = 30.0


class PrefillMeter:
    """Prefill speed from the engine's steps."""

    def __init__(self) -> None:
        self._fit = TwoTermFit()
        self._open: dict[int, tuple[float, float]] = {}
        self._warm_up = _WARM_UP_STEPS

    def begin(self, step: int, chunks: Iterable[tuple[int, int]]) -> bool:
        """A step was scheduled that computes tokens `start` to `end` of some requests.

        True when it is to be measured: then `end` should follow, maybe some steps later.
        """
        tokens = looked_at = 0.0
        for start, end in chunks:
            tokens += end - start
            looked_at += pairs(start, end)
        if tokens < LEAST_PREFILL_TOKENS:
            return False
        if len(self._open) == _MOST_OPEN:
            del self._open[next(iter(self._open))]
        self._open[step] = tokens, looked_at
        return True

    def end(self, step: int, took_s: float) -> bool:
        """How long a step took that is measured; of several ranks the first word counts.

        True when it was taken for a measurement.
        """
        tokens, looked_at = self._open.pop(step, (0.0, 0.0))
        if not tokens or took_s <= 0:
            return False
        if self._warm_up:
            self._warm_up -= 1
            return False
        if self._fit.samples:
            a, b = self._fit.solve() or (took_s, 0.0)
            took_s = min(took_s, _MOST_SURPRISE * (a * tokens + b * looked_at) or took_s)
        self._fit.add(tokens, looked_at, took_s)
        return True

    def prefill(self) -> Prefill | None:
        """None until something was measured."""
        terms = self._fit.solve()
        return None if terms is None else Prefill(*terms)


class StoreMeter:
    """Bandwidth and round trip of one tier, and what is on its way from it, from whole loads."""

    def __init__(self) -> None:
        self._fit = TwoTermFit(fade=0.8, share=_FIXED_SHARE)
        self._sampled_at = 0.0
        self._queue_bytes = 0
        self._warm_up = _WARM_UP_LOADS

    def begin(self, size_bytes: int) -> int:
        """A load of so many bytes starts; returns the bytes that are under way ahead of it."""
        ahead = self._queue_bytes
        self._queue_bytes += size_bytes
        return ahead

    def end(
        self, size_bytes: int, ahead_bytes: int, took_s: float, now: float, came: float = 1.0
    ) -> None:
        """A load ended after `took_s`; 0 when that says nothing of the speed. `came`: the share of
        its bytes that were there when it ran out of time. Such a load tells nothing of a fixed
        part: many that have one deadline would look like one."""
        self._queue_bytes -= size_bytes
        if took_s <= 0 or size_bytes == 0:
            return
        if self._warm_up:
            self._warm_up -= 1
            return
        moved = ahead_bytes + came * size_bytes
        if terms := self._fit.solve():
            took_s = min(took_s, _MOST_SURPRISE * (terms[0] * moved + terms[1]))
        self._fit.add(moved, float(came == 1.0), took_s)
        self._sampled_at = now

    def measured(self) -> Store | None:
        """The tier as it was at the last sample; None until something was measured."""
        return self.store(self._sampled_at)

    def store(self, now: float) -> Store | None:
        """The tier as it may be now: the longer ago it was measured, the faster."""
        terms = self._fit.solve()
        if terms is None:
            return None
        hope = 2.0 ** min(60.0, (now - self._sampled_at) / DOUBLING_S)
        s_per_byte = max(terms[0], 1e-15) / hope
        return Store(1.0 / s_per_byte, terms[1] / hope, self._queue_bytes)
