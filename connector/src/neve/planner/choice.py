"""Load or compute: how many blocks of a found prefix are worth loading."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import numpy as np

from neve.index.tier import Tier
from neve.planner.breakeven import MARGIN, Prefill, Store, first_token_s


class Decision(StrEnum):
    """What happens to a found prefix. The values are labels of a metric."""

    LOAD_ALL = "load_all"
    LOAD_PREFIX = "load_prefix"
    RECOMPUTE = "recompute"
    BOTH = "both"


# Counters of heartbeats (`neve.node.stats`).
COUNTED: Final = {
    Decision.LOAD_ALL: "decided_all",
    Decision.LOAD_PREFIX: "decided_prefix",
    Decision.RECOMPUTE: "decided_recompute",
}


def counted_as(decision: Decision) -> str:
    """A prefix that is loaded and computed at once counts as one that is loaded in part."""
    return COUNTED.get(decision, COUNTED[Decision.LOAD_PREFIX])


@dataclass(frozen=True)
class Choice:
    """Load the first `blocks`. `spared_s`: seconds to compute them instead (0: unknown).
    `tried_s`: the part of `spared_s` whose blocks are loaded only to measure their tier.
    `is_first`: some tier of them was never measured. `after_s`: how much longer than computing the
    rest the engine's step after the load takes."""

    blocks: int
    decision: Decision
    spared_s: float = 0.0
    tried_s: float = 0.0
    is_first: bool = False
    after_s: float = 0.0


def choose(
    tiers: Sequence[Tier],
    *,
    block_bytes: int,
    block_ends: Sequence[int],
    start: int,
    end: int,
    prefill: Prefill | None,
    stores: Mapping[Tier, Store],
    hopes: Mapping[Tier, Store] | None = None,
    trial_s: float = 0.0,
    first_trial_s: float = math.inf,
    step_s: float = 0.0,
) -> Choice:
    """Chooses the number of found blocks to load that gives the earliest first token.

    `tiers` and `block_ends` (in tokens) describe the found blocks; the engine needs the KV of
    tokens `start` to `end`. Tiers are read in parallel. `stores`: speeds as measured; `hopes`:
    speeds that tiers may have recovered to. Of blocks worth loading only by `hopes`, load as many
    as the engine would compute in `trial_s`. A tier without a measurement counts as fast, because
    only loads measure it; of its blocks, load as many as the engine would compute in
    `first_trial_s`. `step_s`: the engine's shortest step, which follows every load.
    """
    everything = len(tiers)
    new = next((n for n, tier in enumerate(tiers) if tier not in stores), everything)
    if prefill is None or not everything:
        return Choice(everything, Decision.LOAD_ALL, is_first=new < everything)
    recompute_s = max(prefill.seconds(start, end), step_s)

    def soonest(stores: Mapping[Tier, Store], most: int = everything) -> int:
        total_s = first_token_s(
            tiers,
            block_bytes=block_bytes,
            block_ends=block_ends,
            end=end,
            prefill=prefill,
            stores=stores,
            step_s=step_s,
        )
        if most == 0:
            return 0
        best = most - int(np.argmin(total_s[:most][::-1]))  # the last of equal ones
        # A step with more than a few tokens takes longer than its tokens say (a GPU leaves its
        # captured graphs): load all, unless computing the rest is clearly sooner.
        if total_s[most - 1] * (1.0 - MARGIN) <= total_s[best - 1]:
            best = most
        return best if total_s[best - 1] <= recompute_s * (1.0 - MARGIN) else 0

    def spared_s(blocks: int) -> float:
        return prefill.seconds(start, min(block_ends[blocks - 1], end)) if blocks else 0.0

    def grown(blocks: int, most: int, more_s: float) -> int:
        enough_s = spared_s(blocks) + more_s
        while blocks < most and spared_s(blocks) < enough_s:
            blocks += 1
        return blocks

    best = known = soonest(stores)
    if best > new:
        known = soonest(stores, new)
        best = grown(new, best, first_trial_s) if known == new else known
    elif hopes and trial_s and best < everything:
        best = grown(best, soonest(hopes), trial_s)
    if best == 0:
        return Choice(0, Decision.RECOMPUTE)
    return Choice(
        best,
        Decision.LOAD_ALL if best == everything else Decision.LOAD_PREFIX,
        spared_s(best),
        spared_s(best) - spared_s(known),
        is_first=best > new,
        after_s=max(0.0, step_s - prefill.seconds(min(block_ends[best - 1], end), end)),
    )
