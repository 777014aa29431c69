"""When is loading KV faster than computing it? Arithmetic only: no clock, no I/O, no engine.

Computing tokens `start` to `end` of a prompt takes `s_per_token * n + s_per_pair * pairs` seconds:
weights are applied once per token, attention once per pair of a token and an earlier one. Loading
takes a round trip plus bytes ÷ bandwidth.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from neve.errors import Misuse
from neve.planner.fit import TwoTermFit


@dataclass(frozen=True)
class Prefill:
    """Prefill speed of an engine: seconds per token, and per pair of tokens."""

    s_per_token: float
    s_per_pair: float = 0.0

    @classmethod
    def at(cls, tokens_per_s: float) -> Self:
        """A constant speed at every prompt length."""
        return cls(1.0 / tokens_per_s)

    @classmethod
    def through(cls, points: Iterable[tuple[int, float]]) -> Self:
        """Fits measured (prompt tokens, seconds); one point gives a constant speed.

        Raises `Misuse` without any point.
        """
        fit = TwoTermFit(fade=1.0)
        for tokens, seconds in points:
            fit.add(tokens, pairs(0, tokens), seconds)
        terms = fit.solve()
        if terms is None:
            raise Misuse("need at least one measured prompt")
        return cls(*terms)

    def seconds(self, start: int, end: int) -> float:
        """Seconds to compute tokens `start` to `end` of a prompt whose earlier KV is in memory."""
        return self.s_per_token * (end - start) + self.s_per_pair * pairs(start, end)


@dataclass(frozen=True)
class Store:
    """Speed of a tier. `queue_bytes`: loads already queued ahead."""

    bytes_per_s: float
    round_trip_s: float = 0.0
    queue_bytes: int = 0

    def seconds(self, size_bytes: int) -> float:
        if size_bytes == 0:
            return 0.0
        return self.round_trip_s + (self.queue_bytes + size_bytes) / self.bytes_per_s


def pairs(start: int, end: int) -> float:
    """Number of (token, earlier token) pairs that attention visits to compute `start` to `end`."""
    return (end * end - start * start) / 2


def break_even_bytes_per_s(
    prefill: Prefill, *, tokens: int, bytes_per_token: int, round_trip_s: float = 0.0
) -> float:
    """Bandwidth at which loading a prompt is as fast as computing it; inf if none is enough."""
    left_s = prefill.seconds(0, tokens) - round_trip_s
    return tokens * bytes_per_token / left_s if left_s > 0 else math.inf


def break_even_tokens(prefill: Prefill, store: Store, *, bytes_per_token: int) -> int | None:
    """Fewest tokens for which loading is no slower than computing; None: loading never pays.

    Longer prompts are worth loading too: compute time grows faster than load time.
    """
    gain_s = prefill.s_per_token - bytes_per_token / store.bytes_per_s
    fixed_s = store.round_trip_s + store.queue_bytes / store.bytes_per_s
    half = prefill.s_per_pair / 2
    if half == 0:
        if gain_s <= 0:
            return None
        tokens = fixed_s / gain_s
    else:
        tokens = (-gain_s + math.sqrt(gain_s * gain_s + 4 * half * fixed_s)) / (2 * half)
    return max(1, math.ceil(tokens))
