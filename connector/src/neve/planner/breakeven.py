"""When is loading KV faster than computing it? Arithmetic only: no clock, no I/O, no engine.

Computing tokens `start` to `end` of a prompt takes `s_per_token * n + s_per_pair * pairs` seconds:
weights are applied once per token, attention once per pair of a token and an earlier one. Loading
takes a round trip plus (queued bytes + bytes) ÷ bandwidth. Both are equal at the break-even
bandwidth, bytes per token × prefill tokens per second.

Used by nodes for each found prefix (`neve.planner.choice`), by `neve plan breakeven`, by
GET /spaces/{id} and by the page Spaces.
"""

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np

from neve.errors import Misuse
from neve.planner.fit import TwoTermFit
from neve.planner.parts import PrefixBytes

# Load only if the prediction is faster by this fraction: predictions are inexact.
MARGIN: Final = 0.05


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

    def tokens_per_s(self, tokens: int) -> float:
        """Mean speed over a prompt of `tokens`; inf if computing takes no time."""
        seconds = self.seconds(0, tokens)
        return tokens / seconds if seconds > 0 else math.inf


@dataclass(frozen=True)
class Store:
    """Speed of a tier. `queue_bytes`: loads already queued ahead."""

    bytes_per_s: float
    round_trip_s: float = 0.0
    queue_bytes: int = 0

    def seconds(self, size_bytes: float) -> float:
        if size_bytes == 0:
            return 0.0
        return self.round_trip_s + (self.queue_bytes + size_bytes) / self.bytes_per_s


def pairs(start: int, end: int) -> float:
    """Number of (token, earlier token) pairs that attention visits to compute `start` to `end`."""
    return (end * end - start * start) / 2


def break_even_bytes_per_s(
    prefill: Prefill,
    *,
    tokens: int,
    bytes_per_token: float | PrefixBytes,
    round_trip_s: float = 0.0,
    queue_bytes: int = 0,
) -> float:
    """Bandwidth at which loading a prompt is as fast as computing it; inf if none is enough."""
    left_s = prefill.seconds(0, tokens) - round_trip_s
    size = _prefix_bytes(bytes_per_token)
    return (queue_bytes + size.of(tokens)) / left_s if left_s > 0 else math.inf


def break_even_tokens(
    prefill: Prefill,
    store: Store,
    *,
    bytes_per_token: float | PrefixBytes,
    margin: float = 0.0,
) -> int | None:
    """Length of the shortest prefix that loading brings no later than computing; None: no length.

    Longer prefixes are worth loading too: compute time grows faster than load time. `margin`: the
    fraction of the compute time by which a load has to be faster.
    """
    size, share = _prefix_bytes(bytes_per_token), 1.0 - margin
    gain_s = share * prefill.s_per_token - size.per_token / store.bytes_per_s
    fixed_s = store.round_trip_s + (store.queue_bytes + size.fixed) / store.bytes_per_s
    half = share * prefill.s_per_pair / 2
    # The positive root of half × n² + gain × n - fixed, in the form that doesn't cancel.
    root = math.sqrt(gain_s * gain_s + 4 * half * fixed_s)
    if gain_s > 0:
        tokens = 2 * fixed_s / (gain_s + root)
    elif half > 0:
        tokens = (root - gain_s) / (2 * half)
    else:
        return None
    return max(1, math.ceil(tokens))


def first_token_s(
    tiers: Sequence[Hashable],
    *,
    block_bytes: int,
    block_ends: Sequence[int],
    end: int,
    prefill: Prefill,
    stores: Mapping[Any, Store],
    step_s: float = 0.0,
) -> Any:
    """Seconds until the first token if the first 1, 2, … n of a prefix's n blocks are loaded and
    the rest of the prompt, up to token `end`, is computed behind them.

    `tiers` and `block_ends` (in tokens) describe the blocks in chain order. Tiers are read in
    parallel; one that is not in `stores` takes no time. `step_s`: the engine's shortest step, which
    follows every load. Returns a float64 array of shape (n,).
    """
    # Arrays, because a long prompt has thousands of blocks.
    until: Any = np.minimum(block_ends, end)
    left_s: Any = np.maximum(prefill.seconds(until, end), step_s)
    total_s = left_s
    for tier, store in stores.items():
        counts = np.cumsum([each is tier for each in tiers])
        load_s = store.seconds(block_bytes) + (counts - 1) * block_bytes / store.bytes_per_s
        total_s = np.maximum(total_s, left_s + np.where(counts, load_s, 0.0))
    return total_s


def mooncake_bytes_per_s(
    *,
    flops_per_s: float,
    prefix_tokens: int,
    model_dim: int,
    gqa: float,
    element_bytes: float = 2,
    attention: float = 4,
    projections: float = 22,
) -> float:
    """Break-even bandwidth by the paper Mooncake: B = G × 2ds ÷ (gqa × (apd + bd²)).

    `flops_per_s` (G): of all GPUs; `model_dim` (d): hidden size; `gqa`: query heads per KV head;
    `element_bytes` (s). `attention` (a) and `projections` (b): FLOPs of a layer are a·n²·d + b·n·d²
    for n tokens. The number of layers cancels out: KV and FLOPs grow alike.

    Source: Qin et al., "Mooncake: Trading More Storage for Less Computation", FAST '25, equations
    1 and 2 and table 1 (LLaMA3-70B: a = 4, b = 22). With the GPUs' peak as `flops_per_s` it is an
    upper bound: engines prefill more slowly.
    """
    flops = attention * prefix_tokens * model_dim + projections * model_dim**2
    return flops_per_s * 2 * model_dim * element_bytes / (gqa * flops)


def _prefix_bytes(size: float | PrefixBytes) -> PrefixBytes:
    return size if isinstance(size, PrefixBytes) else PrefixBytes(size, 0)
