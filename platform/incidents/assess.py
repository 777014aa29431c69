"""Which rules hold for a tenant, by its figures. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from incidents import kinds
from incidents.fall import Counted, Followed, Mark, measure
from incidents.figures import LEAST_PUTS, Figures, Memory, StoreAway
from neve.planner.causes import CAUSES, ORDINARY

# A hit rate that fell is over at half of its threshold: it does not flap around one value.
OVER: Final = 0.5
# New prompts and blocks that ended by rule lower a hit rate, too: only a long fall is worth a look.
ORDINARY_FOR_S: Final = 900
MOST_NAMES: Final = 20  # of nodes or stores in an incident


@dataclass(frozen=True)
class Finding:
    """What a rule says. `holds` None: unknown, without traffic. `value`, `before`: as those of
    `incidents.models.Incident`. `lost_per_s`: prompt tokens a second that would be hits. `mark`: of
    a fall, for its next assessment; `is_confirmed`: traffic since the last one is as bad."""

    holds: bool | None
    value: float | None = None
    before: float | None = None
    cause: str = ""
    began_ts: float | None = None
    for_s: int | None = None
    mark: Mark | None = None
    is_confirmed: bool = False
    lost_per_s: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Threshold:
    threshold: float
    for_s: int
    is_on: bool = True
    source: str = "default"


def main_cause(now: Counted, before: Counted, *, never_flushes: bool = False) -> str:
    """The reason whose misses rose most, per block asked for; "" if none rose."""
    rises = {r: now.miss_rate(r) - before.miss_rate(r) for r in now.misses}
    reason = max(rises, key=lambda each: (rises[each], each), default="")
    if not reason or rises[reason] <= 0:
        return ""
    if reason == "evicted" and never_flushes:
        return "not_flushed"
    return reason


def assess(
    kind: str,
    of: Figures,
    rule: Threshold,
    *,
    followed: Followed | None = None,
    never_flushes: bool = False,
) -> Finding:
    """`followed`: a fall that an incident of this kind follows, open or not yet."""
    if kind == kinds.HIT_RATE.name:
        return _hit_rate(of, rule, followed, never_flushes=never_flushes)
    found: Finding = _ASSESS[kind](of, rule.threshold)
    return found


def assess_memory(memory: Memory | None, rule: Threshold) -> Finding:
    if memory is None:
        return Finding(None)
    value = 100 * memory.used
    facts = {"promised": memory.promised}
    return Finding(memory.promised > 1 and value >= rule.threshold, value, facts=facts)


def assess_stores(away: Sequence[StoreAway], rule: Threshold) -> Finding:
    facts = {"stores": [vars(each) for each in away[:MOST_NAMES]]}
    holds = len(away) >= rule.threshold
    cause = CAUSES["store_away"].name if holds else ""
    began_ts = min((each.since_ts for each in away), default=None)
    return Finding(holds, float(len(away)), cause=cause, began_ts=began_ts, facts=facts)


def _hit_rate(
    of: Figures, rule: Threshold, followed: Followed | None, *, never_flushes: bool
) -> Finding:
    least = rule.threshold / 100
    found = measure(of.buckets, of.older, of.now_s, least_fall=least, followed=followed)
    if found is None or (rate := found.now.hit_ratio) is None:
        return Finding(None)
    now, base = found.now, found.base
    frozen = followed.before if followed else None
    before = frozen if frozen is not None else base.hit_ratio if base else None
    if before is None:
        return Finding(None, rate)
    fall = before - rate
    cause = main_cause(now, base, never_flushes=never_flushes) if base else ""
    is_open, fresh = followed is not None and followed.is_open, found.fresh_ratio
    has_recovered = not is_open and fresh is not None and before - fresh < least * OVER
    named = followed.cause if followed and followed.cause is not None else cause
    return Finding(
        fall >= (least * OVER if is_open else least) and not has_recovered,
        rate,
        before,
        cause,
        found.began_ts,
        max(rule.for_s, ORDINARY_FOR_S) if named in {"", *ORDINARY} else None,
        found.mark,
        fresh is not None and not has_recovered,
        max(0.0, fall) * now.prompt_tokens / now.seconds,
        {
            "misses": _rates(now),
            "misses_before": _rates(base) if base else {},
            "refused_blocks": of.recent.counts["cold_refused_blocks"],
            "lost_blocks": of.recent.counts["lost_blocks"],
        },
    )


def _rates(counted: Counted) -> dict[str, float]:
    return {reason: round(counted.miss_rate(reason), 4) for reason in sorted(counted.misses)}


def _refused(of: Figures, threshold: float) -> Finding:
    counts = of.recent.counts
    hot, cold = counts["put_refused"], counts["cold_refused_blocks"]
    puts = counts["put_blocks"] + hot
    if puts < LEAST_PUTS:
        return Finding(None)
    share = min(100.0, 100 * (hot + cold) / puts)
    cause = CAUSES["unflushed"] if cold >= hot else CAUSES["quota"]
    facts = {"refused_blocks": cold, "put_refused": hot, "lost_blocks": counts["lost_blocks"]}
    return Finding(share >= threshold, share, cause=cause.name, facts=facts)


def _dropped(of: Figures, threshold: float) -> Finding:
    counts = of.recent.counts
    puts = counts["put_blocks"] + counts["dropped"]
    if puts < LEAST_PUTS:
        return Finding(None)
    share = 100 * counts["dropped"] / puts
    return Finding(share >= threshold, share, facts={"dropped_blocks": counts["dropped"]})


def _load_p99(of: Figures, threshold: float) -> Finding:
    if of.load_p99_ms is None:
        return Finding(None)
    return Finding(of.load_p99_ms >= threshold, of.load_p99_ms, cause="timeout")


def _dirty_age(of: Figures, threshold: float) -> Finding:
    if of.dirty_oldest_s is None:
        return Finding(None)
    return Finding(of.dirty_oldest_s >= threshold, float(of.dirty_oldest_s))


def _breaker(of: Figures, threshold: float) -> Finding:
    return _nodes(of.open_breakers, threshold, "breaker")


def _silent(of: Figures, threshold: float) -> Finding:
    return _nodes(of.silent, threshold, "silent")


def _nodes(names: list[str], threshold: float, cause: str) -> Finding:
    facts = {"nodes": names[:MOST_NAMES], "more_nodes": max(0, len(names) - MOST_NAMES)}
    return Finding(len(names) >= threshold, float(len(names)), cause=cause, facts=facts)


def _jobs(of: Figures, threshold: float) -> Finding:
    failed = sum(of.failed_jobs.values())
    return Finding(failed >= threshold, float(failed), facts={"kinds": of.failed_jobs})


def _clock(of: Figures, threshold: float) -> Finding:
    missed = of.recent.misses.get("clock", 0)
    return Finding(missed >= threshold, float(missed), cause="clock")


_ASSESS: Final[Mapping[str, Any]] = {
    "refused": _refused,
    "dropped": _dropped,
    "load_p99": _load_p99,
    "dirty_age": _dirty_age,
    "breaker": _breaker,
    "silent_node": _silent,
    "job_failures": _jobs,
    "clock_skew": _clock,
}
