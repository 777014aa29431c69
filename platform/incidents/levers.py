"""Levers of a cause for one tenant: present value, a change to try, and its forecast.

A forecast is the tenant's newest recommendation (`planning.whatif`), of samples of its own traffic:
only while it is current and agrees with the measured hit rate.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from catalog.models import UsageRollup
from neve.errors import Misuse
from neve.planner.causes import CAUSES, SETTINGS, Lever
from neve.planner.changes import Change, size_words, span_words
from neve.planner.simulate.tiers import Setting
from planning import whatif
from retention.models import ColdFull, FlushMode, RetentionPolicy
from tenants.models import Quota
from tenants.scope import tenant_scope

_POINT = 0.001


@dataclass(frozen=True)
class Turn:
    """A lever at hand. `now`, `to`: values in words, "" if there is none. `used`: of a quota, 0…1.

    `change`: to try in What-if. `gain`, `error`: of the hit rate, as ratios; None: not simulated.
    """

    setting: str
    name: str
    now: str
    to: str = ""
    used: float | None = None
    change: dict[str, str] = field(default_factory=dict)
    gain: float | None = None
    error: float | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Present:
    """A tenant's values of today. Used bytes are None until sampled."""

    setting: Setting
    hot_bytes: int
    cold_bytes: int
    hot_used_bytes: int | None
    cold_used_bytes: int | None
    policy: RetentionPolicy


def present_of(tenant_id: int) -> Present:
    """Four statements."""
    with tenant_scope(tenant_id):
        quota, policy = Quota.objects.get(), RetentionPolicy.objects.get()
        gauges: Mapping[str, Any] = (
            UsageRollup.objects.filter(resolution_s=10, hot_used_bytes__isnull=False)
            .order_by("-bucket_ts")
            .values("hot_used_bytes", "cold_used_bytes", "cold_dead_bytes", "cold_waiting_bytes")
            .first()
        ) or {}
    today = whatif.today_of(tenant_id, block_bytes=whatif.ANY_BLOCK_BYTES)
    cold = [gauges.get(f"cold_{name}_bytes") for name in ("used", "dead", "waiting")]
    used = sum(part or 0 for part in cold) if cold[0] is not None else None
    return Present(
        today, quota.hot_bytes, quota.cold_bytes, gauges.get("hot_used_bytes"), used, policy
    )


def turns_of(cause: str, tenant_id: int) -> list[Turn]:
    """Those that apply to the tenant, the first to try first; at most three."""
    if cause not in CAUSES:
        return []
    present = present_of(tenant_id)
    outcomes = _forecasts(tenant_id)
    found = [
        turn
        for lever in CAUSES[cause].levers
        if (turn := _turn(lever, present, outcomes)) is not None
    ]
    return found[:3]


def turns_of_platform(cause: str, facts: Mapping[str, Any]) -> list[Turn]:
    """Of an incident of the platform, by its facts: nothing is simulated."""
    found = CAUSES[cause].levers if cause in CAUSES else ()
    away = ", ".join(each["name"] for each in facts.get("stores") or ())
    return [
        Turn(lever.setting, SETTINGS[lever.setting], f"{away} away" * bool(away)) for lever in found
    ]


def _turn(lever: Lever, at: Present, outcomes: list[Mapping[str, Any]]) -> Turn | None:
    """None: today it is so already."""
    policy, name = at.policy, SETTINGS[lever.setting]
    if lever.setting == "flush_mode":
        if policy.flush_mode != FlushMode.NEVER:
            return None
        return Turn("flush_mode", name, "never", "now")
    if lever.setting == "cold_full":
        if policy.cold_full != ColdFull.REFUSE:
            return None
        return Turn("cold_full", name, "refuse new blocks", "make room")
    if not lever.change:
        return Turn(lever.setting, name, "")
    best = _best(lever, outcomes)
    change = dict(best["change"]) if best else dict(lever.change)
    try:
        then = Change.of(change).apply(at.setting)
    except Misuse:
        return None
    now, to, used = _values(lever.setting, at, then)
    if lever.setting == "cold_lifetime" and (then.ttl_s or 1 << 60) == (at.setting.ttl_s or 0):
        return None
    if best is None:
        return Turn(lever.setting, name, now, to, used, change)
    gain = best["against"]["hit_rate"]
    return Turn(lever.setting, name, now, to, used, change, gain["value"], gain.get("error", 0.0))


def _values(setting: str, at: Present, then: Setting) -> tuple[str, str, float | None]:
    if setting == "hot_quota":
        used = at.hot_used_bytes / at.hot_bytes if at.hot_used_bytes and at.hot_bytes else None
        return size_words(at.hot_bytes), size_words(then.hot.capacity_bytes), used
    if setting == "cold_quota":
        used = at.cold_used_bytes / at.cold_bytes if at.cold_used_bytes and at.cold_bytes else None
        to = size_words(then.cold.capacity_bytes) if then.cold else ""
        return size_words(at.cold_bytes), to, used
    if setting == "hot_idle":
        return span_words(at.setting.hot.idle_s), span_words(then.hot.idle_s), None
    return span_words(at.setting.ttl_s), span_words(then.ttl_s), None


def _best(lever: Lever, outcomes: list[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The simulated change of the same members that gains most, if it gains beyond its error."""
    same = [each for each in outcomes if set(each["change"]) == set(lever.change)]
    gains = [
        each
        for each in same
        if each["against"]["hit_rate"]["value"]
        > max(_POINT, each["against"]["hit_rate"].get("error", 0.0))
    ]
    return max(gains, key=lambda each: float(each["against"]["hit_rate"]["value"]), default=None)


def _forecasts(tenant_id: int) -> list[Mapping[str, Any]]:
    """Outcomes of a recommendation that is current and calibrated; else none."""
    advice = whatif.advice_of(tenant_id)
    result = advice.result or {}
    if advice.is_outdated or not (result.get("calibration") or {}).get("is_good"):
        return []
    return list(result.get("changes") or [])
