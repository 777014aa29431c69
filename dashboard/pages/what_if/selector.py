"""A what-if result in the units of the page. Estimates keep their error everywhere."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from django.urls import reverse
from django.utils.http import urlencode

from catalog.models import Job
from dashboard.formats import UNKNOWN, bytes_quantity, count_quantity, duration_quantity, signed
from neve.errors import Misuse
from neve.planner.changes import Change
from neve.planner.simulate.tiers import Promote, Setting
from neve.typed import time_typed
from planning.whatif import Advice
from retention.models import EvictionPolicy
from tenants.models import Tenant

GIB = 1 << 30
Figures = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Line:
    """One part of the money: today's amount a month, and the difference with its error."""

    name: str
    amount: str
    difference: str
    is_sum: bool = False


@dataclass(frozen=True)
class Move:
    """A change that was tried, or today. `points`: of hit rate against today, as a ratio."""

    words: str
    place: int
    hit: float
    hit_error: float
    points: float
    points_error: float
    net: str
    net_error: str
    is_gain: bool
    lines: list[Line]
    notes: list[str]
    held: str
    hot_bytes: float | None
    setting: Mapping[str, Any]
    changed: frozenset[str]  # names of `neve.planner.changes.Change`


@dataclass(frozen=True)
class Field:
    """An input of the form. `options`: of a select. `most`: of a slider beside a number; `empty`:
    the number that an empty input stands for, `most` if empty."""

    name: str
    label: str
    value: str
    now: str
    unit: str = ""
    most: str = ""
    empty: str = ""
    options: tuple[tuple[str, str], ...] = ()


def fields_of(today: Setting) -> list[Field]:
    """The form, with today's values. Sizes in GiB, lifetime in days, idle time in hours."""
    hot, cold = today.hot.capacity_bytes or 0, today.cold.capacity_bytes if today.cold else 0
    local = today.local.capacity_bytes if today.local else None
    codec = today.cold.codec_ratio if today.cold else today.hot.codec_ratio
    return [
        Field("hot", "Hot quota", _number(hot / GIB), f"now {_size(hot)}", "GiB",
              _number(max(1.0, 4 * hot / GIB))),
        Field("cold", "Cold quota", "" if cold is None else _number(cold / GIB),
              f"now {_size(cold)}; empty: unlimited", "GiB",
              _number(max(1.0, 4 * (cold or 0) / GIB))),
        Field("cold_lifetime", "Keep for", _span(today.ttl_s, 86400),
              f"now {_time(today.ttl_s)}; empty: for ever", "days", "365"),
        Field("hot_idle", "Keep in hot when idle for", _span(today.hot.idle_s, 3600),
              f"now {_time(today.hot.idle_s)}; empty: no limit", "hours", "168"),
        Field("local", "Local disk, a tier more", "" if local is None else _number(local / GIB),
              "now none", "GiB", "4096", "0"),
        Field("eviction", "Eviction", today.hot.policy,
              f"now {dict(_EVICTIONS)[today.hot.policy]}", options=_EVICTIONS),
        Field("promote", "Promotion of cold blocks", str(today.promote.value),
              f"now {_PROMOTE[today.promote]}",
              options=tuple((each.value, words) for each, words in _PROMOTE.items())),
        Field("codec", "Codec: bytes before ÷ after", "" if codec == 1 else _number(codec),
              "now none; the ratio is yours to know", "×", "8", "1"),
    ]  # fmt: skip


def fields_with(today: Setting, given: Mapping[str, str], job: Job | None) -> list[Field]:
    """As `fields_of`, with what was typed (`given`), else with what `job` tries."""
    tried = today
    if job is not None:
        with suppress(Misuse):  # quota or policy changed since
            tried = Change.of(job.arguments["changes"][0]).apply(today)
    values = {**{field.name: field.value for field in fields_of(tried)}, **given}
    return [replace(field, value=values[field.name]) for field in fields_of(today)]


_EVICTIONS = tuple((each.value, str(each.label).partition(":")[0]) for each in EvictionPolicy)
_PROMOTE = {
    Promote.SECOND_READ: "at the second read",
    Promote.EVERY_READ: "at every read",
    Promote.NEVER: "never",
}
_UNITS = {"hot": "GiB", "cold": "GiB", "local": "GiB", "cold_lifetime": "d", "hot_idle": "h"}
_SECONDS = {"d": 86400, "h": 3600}


def change_asked(given: Mapping[str, str], today: Setting) -> dict[str, str]:
    """Members of a change: those inputs that differ from today's. Raises ValueError with words."""
    change = {}
    for field in fields_of(today):
        text = given.get(field.name, field.value).strip()
        if text == field.value:
            continue
        unit = _UNITS.get(field.name, "")
        if not text:
            if field.name not in ("cold", "cold_lifetime", "hot_idle"):
                raise ValueError(f"{field.label}: give a number.")
            change[field.name] = "unlimited"
        elif unit in _SECONDS:
            try:
                change[field.name] = f"{float(text) * _SECONDS[unit]:.0f}s"
            except (ValueError, OverflowError):
                raise ValueError(f"{field.label}: give a number of {field.unit}.") from None
        else:
            change[field.name] = f"{text}{unit}"
    return change


def move_of(outcome: Mapping[str, Any], currency: str, place: int = -1) -> Move:
    figures, against = outcome["figures"], outcome["against"]
    net, points = against["money.net"], against["hit_rate"]
    return Move(
        words=outcome["words"],
        place=place,
        hit=figures["hit_rate"]["value"],
        hit_error=figures["hit_rate"]["error"],
        points=points["value"],
        points_error=points["error"],
        net=f"{signed(net['value'])} {currency}",
        net_error=f"{net['error']:,.2f}",
        is_gain=net["value"] > net["error"],
        lines=_lines(figures, against, currency),
        notes=outcome["notes"],
        held=_held(figures),
        hot_bytes=outcome["setting"]["hot"]["capacity_bytes"],
        setting=outcome["setting"],
        changed=frozenset(outcome["change"] or ()),
    )


def apply_links(tenant: Tenant, move: Move | None) -> list[tuple[str, str]]:
    """Words and address of where a person turns the move's levers: the policy with the values typed
    in, as a draft with its dry run, and the quota. Others are options of nodes."""
    if move is None:
        return []
    then = move.setting
    values = {
        "cold_lifetime": ("cold_ttl_s", time_typed(then["ttl_s"])),
        "hot_idle": ("hot_idle_s", time_typed(then["hot"]["idle_s"])),
        "eviction": ("eviction", then["hot"]["policy"]),
    }
    draft = dict(values[name] for name in values if name in move.changed)
    page = reverse("dashboard:tenant", args=[tenant.slug])
    found = []
    if draft or "promote" in move.changed:
        url = f"{page}?{urlencode({'tab': 'policy', **draft})}"
        found.append(("Apply to the policy…", url))
    if move.changed & {"hot", "cold"}:
        found.append(("Apply to the quota…", f"{page}?tab=use"))
    return found


def moves_of(result: Mapping[str, Any]) -> list[Move]:
    """All changes of a result, the largest net gain first."""
    currency = result["economics"]["prices"]["currency"]
    moves = [move_of(each, currency, place) for place, each in enumerate(result["changes"])]
    order = {
        place: -each["against"]["money.net"]["value"]
        for place, each in enumerate(result["changes"])
    }
    return sorted(moves, key=lambda move: order[move.place])


def _lines(figures: Figures, against: Figures, currency: str) -> list[Line]:
    gpu_h = figures["gpu_s"]["value"] / 3600
    parts = (
        ("prefill", f"Prefill not paid, {count_quantity(gpu_h)} GPU-h", 1),
        ("loads", "Waiting for loads", -1),
        ("hot", "Hot memory, the quota", -1),
        ("cold", "Cold storage", -1),
        ("requests", "Requests to S3", -1),
        ("egress", "Bytes out of S3", -1),
    )
    lines = [
        Line(words, _money(figures, name, sign), _money_difference(against, name, sign))
        for name, words, sign in parts
        if figures[f"money.{name}"]["value"] or against[f"money.{name}"]["value"]
    ]
    net = Line(
        f"Net, {currency} a month",
        _money(figures, "net", 1),
        _money_difference(against, "net", 1),
        is_sum=True,
    )
    return [*lines, net]


def _money(figures: Figures, name: str, sign: int) -> str:
    return signed(sign * figures[f"money.{name}"]["value"])


def _money_difference(against: Figures, name: str, sign: int) -> str:
    found = against[f"money.{name}"]
    return f"{signed(sign * found['value'])} ± {found['error']:,.2f}"


def _held(figures: Figures) -> str:
    held = [
        f"{bytes_quantity(figures[f'held_bytes.{tier}']['value'])} {tier}"
        for tier in ("local", "hot", "cold")
        if f"held_bytes.{tier}" in figures
    ]
    return ", ".join(held)


def chart_of(result: Mapping[str, Any], then: Move | None) -> dict[str, Any]:
    """The curve in percent over GiB of hot quota, the present point, and one if applied."""
    points = [
        {
            "gib": point["hot_bytes"] / GIB,
            "hit": 100 * point["hit_rate"]["value"],
            "error": 100 * point["hit_rate"]["error"],
            "hot": 100 * point["hit_rate.hot"]["value"],
        }
        for point in result.get("curve", ())
    ]
    today = result["today"]
    now = {
        "gib": (today["setting"]["hot"]["capacity_bytes"] or 0) / GIB,
        "hit": 100 * today["figures"]["hit_rate"]["value"],
    }
    return {
        "points": sorted(points, key=lambda point: point["gib"]),
        "now": now,
        "then": None
        if then is None or then.hot_bytes is None
        else {"gib": then.hot_bytes / GIB, "hit": 100 * then.hit},
    }


@dataclass(frozen=True)
class Basis:
    """What an answer stands on."""

    window: str
    warm_up: str
    reads: str
    blocks: str
    one_in: str
    prefill_us: float | None
    loads: list[tuple[str, float]]
    prices: Mapping[str, str]
    words: str


def basis_of(result: Mapping[str, Any]) -> Basis:
    window, samples, economics = result["window"], result["samples"], result["economics"]
    prefill = economics["prefill_gpu_s_per_token"]
    return Basis(
        window=str(duration_quantity(window["to_s"] - window["from_s"])),
        warm_up=str(duration_quantity(window["warm_up_s"])),
        reads=str(count_quantity(samples["reads"])),
        blocks=str(count_quantity(samples["blocks"])),
        one_in=f"{1 / samples['rate']:,.0f}",
        prefill_us=None if prefill is None else prefill * 1e6,
        loads=[(tier, value * 1e6) for tier, value in economics["load_gpu_s_per_token"].items()],
        prices=economics["prices"],
        words=economics["basis"],
    )


@dataclass(frozen=True)
class Shown:
    """What the page shows: the result of `job` if it is done, else that of `advice`."""

    tenant: Tenant
    advice: Advice
    job: Job | None
    result: Mapping[str, Any] | None
    chosen: Move | None
    moves: list[Move]


def shown(tenant: Tenant, advice: Advice, job: Job | None, move: int | None) -> Shown:
    result, chosen, moves = advice.result, None, []
    if result is not None:
        moves = moves_of(result)
        chosen = next((each for each in moves if each.place == move), None) or _advised(
            moves, result
        )
    if job is not None and job.state == Job.State.DONE and "today" in job.detail:
        last = job.detail["changes"][-1]
        chosen = move_of(last, job.detail["economics"]["prices"]["currency"])
        result = {"curve": (result or {}).get("curve", ()), **_but_curve(job.detail)}
    return Shown(tenant, advice, job, result, chosen, moves)


def _but_curve(detail: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in detail.items() if name != "curve"}


def _advised(moves: list[Move], result: Mapping[str, Any]) -> Move | None:
    place = (result.get("recommendation") or {}).get("change")
    return next((each for each in moves if each.place == place), moves[0] if moves else None)


def _number(value: float) -> str:
    return f"{value:.3f}".rstrip("0").rstrip(".")


def _span(seconds: int | None, unit_s: int) -> str:
    return "" if seconds is None else _number(seconds / unit_s)


def _size(size_bytes: int | None) -> str:
    return "unlimited" if size_bytes is None else str(bytes_quantity(size_bytes))


def _time(seconds: int | None) -> str:
    return "no limit" if seconds is None else str(duration_quantity(seconds)) or UNKNOWN
