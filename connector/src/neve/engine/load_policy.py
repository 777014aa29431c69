"""Load or recompute: decides how much of each found prefix to load, from speeds measured here.

Workers measure how long a step takes: the scheduler can't, because steps are launched ahead. A
load's time is what its request waits: from its plan to the engine's report that it ended, with
staging, queueing and the steps in between.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from neve.engine.step import LoadPlan
from neve.engine.telemetry import Telemetry
from neve.index.tier import Location, Tier
from neve.planner.choice import Choice, Decision, choose
from neve.planner.measured import PrefillMeter, StoreMeter

# A load may take this many times as long as computing its tokens; then the engine computes them.
PATIENCE: Final = 1.0
# The steps in between alone would miss a shorter deadline.
LEAST_DEADLINE_S: Final = 0.1
# Share of the computing time that may be spent on trying tiers that were too slow before.
TRIAL: Final = 0.03
# `load: both` for prefixes of so many tokens, and tiers that are so much slower or faster than
# computing: the gain is Tc × Tl ÷ (Tc + Tl), at most half of the time where both are equal.
LEAST_BOTH_TOKENS: Final = 2048
MOST_UNEQUAL: Final = 3.0
LEAST_GAIN: Final = 0.1
# A jump copies from host memory while no request is computed. Assumed: 16 lanes of PCIe 4 or more.
COPY_BYTES_PER_S: Final = 20e9
# What is here is heard of a step later, the request jumps behind the next one, and a last step
# computes the tail. Source: benchmarks/both.py, 2.3 to 2.7 steps beyond the ideal time.
JUMP_STEPS: Final = 2.5
_SLOWNESS: Final = (Tier.LOCAL, Tier.HOT, Tier.COLD)


@dataclass
class _TimedLoad:
    """`ahead_bytes`: by tier, bytes that were under way when the load began."""

    blocks: int
    size_bytes: dict[Tier, int]
    ahead_bytes: dict[Tier, int]
    deadline_s: float
    begun: float


class LoadPolicy:
    """Belongs to the scheduler's thread. `always`: load every found prefix, within the deadline."""

    def __init__(
        self, telemetry: Telemetry, *, load_deadline_s: float, always: bool = False
    ) -> None:
        self._telemetry = telemetry
        self._load_deadline_s = load_deadline_s
        self._always = always
        self._steps = PrefillMeter()
        self._stores = {tier: StoreMeter() for tier in Tier}
        self._loads: dict[str, _TimedLoad] = {}
        self._trials_left_s = 0.0
        self._is_remeasured = False

    def choose(
        self,
        found: Sequence[tuple[Location, ...]],
        *,
        first_chunk: int,
        chunk_tokens: int,
        local_tokens: int,
        prompt_tokens: int,
        whole: bool = False,
        both: bool = False,
    ) -> Choice:
        """How many of the `found` chunks (from `first_chunk` on) are worth loading.

        `whole`: all of them or none. `both`: they may be loaded and computed at once.
        """
        if self._always or not found:
            return Choice(len(found), Decision.LOAD_ALL)
        now = time.monotonic()
        stores = {tier: meter.measured() for tier, meter in self._stores.items()}
        hopes = {tier: meter.store(now) for tier, meter in self._stores.items()}
        prefill = self._steps.prefill()
        recompute_s = prefill.seconds(local_tokens, prompt_tokens) if prefill else 0.0
        trial_s = max(LEAST_DEADLINE_S, TRIAL * recompute_s)
        ends = [(first_chunk + n) * chunk_tokens for n in range(1, len(found) + 1)]
        if whole:  # as one block of the slower tier: tiers are read side by side
            every = [location for locations in found for location in locations]
            slower = max((location.nearest for location in every), key=_SLOWNESS.index)
            tiers, ends = [slower], ends[-1:]
            block_bytes = sum(at.size_bytes for at in every if at.nearest is slower)
        else:
            tiers = [locations[0].nearest for locations in found]
            block_bytes = sum(location.size_bytes for location in found[0])
        if prefill is None and (stores[Tier.COLD] is not None or Tier.COLD not in tiers):
            return Choice(len(found), Decision.LOAD_ALL)
        if prefill is None and (hot := tiers.index(Tier.COLD)):
            # Nothing is known: hot blocks come soon or their breaker opens, cold ones may crawl.
            return Choice(hot, Decision.LOAD_PREFIX)
        choice = choose(
            tiers,
            block_bytes=block_bytes,
            block_ends=ends,
            start=local_tokens,
            end=prompt_tokens,
            prefill=prefill,
            stores={tier: store for tier, store in stores.items() if store is not None},
            hopes={tier: store for tier, store in hopes.items() if store is not None},
            trial_s=trial_s if trial_s <= self._trials_left_s else 0.0,
            first_trial_s=LEAST_DEADLINE_S,
            step_s=self._steps.step_s,
        )
        if both and self._gains_by_both(tiers, block_bytes, local_tokens, ends[-1]):
            return Choice(len(found), Decision.BOTH)
        return replace(choice, blocks=choice.blocks * len(found)) if whole else choice

    def _gains_by_both(self, tiers: Sequence[Tier], block_bytes: int, start: int, end: int) -> bool:
        """Whether computing tokens `start` to `end` from the front, while they are loaded from the
        rear, is clearly sooner than either, with the price of the jump."""
        prefill, step_s = self._steps.prefill(), self._steps.step_s
        stores = {tier: self._stores[tier].measured() for tier in set(tiers)}
        times = [
            store.seconds(tiers.count(tier) * block_bytes)
            for tier, store in stores.items()
            if store is not None
        ]
        if prefill is None or len(times) < len(stores) or end - start < LEAST_BOTH_TOKENS:
            return False
        compute_s, load_s = prefill.seconds(start, end), max(times)
        if not 0 < compute_s / MOST_UNEQUAL < load_s < compute_s * MOST_UNEQUAL:
            return False
        copy_s = len(tiers) * block_bytes / COPY_BYTES_PER_S
        jump_s = copy_s + JUMP_STEPS * prefill.seconds(0, self._steps.most_tokens)
        both_s = compute_s * load_s / (compute_s + load_s) + jump_s
        return both_s < (1 - LEAST_GAIN) * min(compute_s, load_s + step_s)

    def deadline_s(self, choice: Choice) -> float:
        """Deadline of the chosen load: at most `load_deadline_s`, and no longer than computing the
        same tokens, if prefill was measured. A tier's first loads get `LEAST_DEADLINE_S` beyond
        what is known to be worth it."""
        if choice.spared_s == 0 and not choice.is_first:
            return self._load_deadline_s
        spared_s = choice.spared_s - (choice.tried_s if choice.is_first else 0.0)
        worth_s = PATIENCE * spared_s - choice.after_s
        return min(self._load_deadline_s, max(LEAST_DEADLINE_S, worth_s))

    def patience_s(self, start: int, end: int) -> float:
        """How long waiting for tokens `start` to `end` beats computing them; inf if unknown."""
        prefill = None if self._always else self._steps.prefill()
        if prefill is None:
            return float("inf")
        return max(LEAST_DEADLINE_S, PATIENCE * prefill.seconds(start, end))

    def note_decision(self, choice: Choice) -> None:
        self._telemetry.count("decisions", 1, choice.decision)
        if choice.tried_s and not choice.is_first:
            self._trials_left_s -= max(LEAST_DEADLINE_S, choice.tried_s)

    def begin_load(self, plan: LoadPlan) -> None:
        size_bytes = dict.fromkeys(Tier, 0)
        for block in plan.blocks:
            nearest, *rest = block.locations
            size_bytes[nearest.nearest] += nearest.size_bytes
            for at in rest:
                size_bytes[nearest.nearest] += at.size_bytes
        ahead = {tier: meter.begin(size_bytes[tier]) for tier, meter in self._stores.items()}
        self._loads[plan.request_id] = _TimedLoad(
            len(plan.blocks), size_bytes, ahead, plan.deadline_s, time.monotonic()
        )
        self._telemetry.gauge("loads_in_flight", len(self._loads))

    def prefill_s(self, start: int, end: int) -> float | None:
        """Seconds to compute tokens `start` to `end`, by the speed now; None before the first."""
        prefill = self._steps.prefill()
        return None if prefill is None else prefill.seconds(start, end)

    def after_load_s(self, loaded_end: int, end: int) -> float:
        """How much longer than computing tokens `loaded_end` to `end` the step after a load takes.

        Part of a load's cost: a step that computes few tokens takes about as long as its launch."""
        prefill = self._steps.prefill()
        tail_s = prefill.seconds(loaded_end, end) if prefill is not None else 0.0
        return max(0.0, self._steps.step_s - tail_s)

    def end_load(self, request_id: str, loaded: int | None) -> float:
        """Every rank ended the load and filled its first `loaded` blocks; None: unknown.

        Returns how long the request waited, in seconds."""
        load = self._loads.pop(request_id, None)
        if load is None:
            return 0.0
        self._is_remeasured = True
        now = time.monotonic()
        took_s = now - load.begun
        # Use a failed load as a speed sample only if it timed out; assume at least one block
        # arrived. A load from several tiers is a sample of the slowest only.
        timed_out = took_s >= load.deadline_s
        is_sample = loaded is not None and (loaded == load.blocks or timed_out)
        came = max(1, loaded or 0) / load.blocks
        slower = max((t for t in Tier if load.size_bytes[t]), key=_SLOWNESS.index, default=None)
        for tier, meter in self._stores.items():
            sample_s = took_s if is_sample and tier is slower else 0.0
            meter.end(load.size_bytes[tier], load.ahead_bytes[tier], sample_s, now, came)
        self._telemetry.sample("load_seconds", took_s)
        self._telemetry.gauge("loads_in_flight", len(self._loads))
        return took_s

    def take_speeds(self) -> dict[str, float] | None:
        """The speeds, by names of `neve.node.stats.SPEEDS`; None: as at the last call."""
        if not self._is_remeasured:
            return None
        self._is_remeasured, found = False, {}
        if prefill := self._steps.prefill():
            found["prefill_s_per_token"] = prefill.s_per_token
            found["prefill_s_per_pair"] = prefill.s_per_pair
        for tier, meter in self._stores.items():
            if store := meter.measured():
                found[f"{tier.value}_bytes_per_s"] = store.bytes_per_s
                found[f"{tier.value}_round_trip_s"] = store.round_trip_s
        return found

    def begin_step(self, step: int, chunks: Iterable[tuple[int, int]]) -> bool:
        """See `PrefillMeter.begin`."""
        return self._steps.begin(step, chunks)

    def end_step(self, step: int, took_s: float) -> None:
        """See `PrefillMeter.end`."""
        if self._steps.end(step, took_s):
            self._trials_left_s += TRIAL * took_s
            self._is_remeasured = True
