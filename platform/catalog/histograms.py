"""Percentiles from merged latency histograms. Never an average of percentiles. Pure."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from neve.node.stats import LOAD_MS

_BOUND = "<="


@dataclass(frozen=True)
class Percentile:
    """`milliseconds` is exact only up to its bucket; `is_beyond` says that it lies above the last
    bound, which is then what is given."""

    milliseconds: float
    is_beyond: bool = False


def merge(histograms: Iterable[Mapping[str, int]]) -> Counter[str]:
    """Loads by bucket name ("<=5" holds those over the next smaller bound, up to 5 ms)."""
    merged: Counter[str] = Counter()
    for histogram in histograms:
        merged.update(histogram)
    return merged


def percentile(histogram: Mapping[str, int], share: float) -> Percentile | None:
    """The value under which `share` (0…1) of the loads stayed; None without loads.

    Loads are taken as spread evenly inside their bucket. Names without a bound are overflow.
    """
    loads_by_bound = dict.fromkeys(map(float, LOAD_MS), 0)  # buckets without loads are left out
    loads_by_bound |= {
        float(name.removeprefix(_BOUND)): loads
        for name, loads in histogram.items()
        if name.startswith(_BOUND)
    }
    bounded = sorted(loads_by_bound.items())
    total = sum(histogram.values())
    if total <= 0:
        return None
    wanted, seen, lower_ms = share * total, 0, 0.0
    for upper_ms, loads in bounded:
        if loads and seen + loads >= wanted:
            return Percentile(lower_ms + (upper_ms - lower_ms) * (wanted - seen) / loads)
        seen, lower_ms = seen + loads, upper_ms
    return Percentile(lower_ms, is_beyond=True)
