"""Incidents as pages show them: what, cause, worst slice and levers, the same everywhere."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db.models import QuerySet
from django.urls import NoReverseMatch
from django.utils import timezone

from catalog.models import UsageRollup
from dashboard.formats import count_quantity, duration_quantity, percent_quantity, points_text
from dashboard.scope import Scope
from incidents import words
from incidents.kinds import HIT_RATE, KINDS
from incidents.models import Incident
from neve.planner.causes import CAUSES
from tenants.principal import Principal

MOST_OPEN = 50
Target = tuple[str, tuple[Any, ...], dict[str, Any]]
SPARK_STEPS = 16
SPARK_S = 3600


@dataclass(frozen=True)
class ShownLever:
    """`now`: the present value in words. `gain`: of the hit rate; "" if nothing was simulated."""

    name: str
    now: str
    to: str
    used: str
    gain: str
    error: str
    try_url: str
    page_url: str
    page_words: str

    @property
    def words(self) -> str:
        return f"{self.name} {self.to}" if self.to else self.name


@dataclass(frozen=True)
class ShownIncident:
    row: Incident
    tenant: str
    url: str
    title: str
    figures: str
    tag: str
    is_bad: bool
    cause: str
    reason: str
    facts: list[str]
    slice_words: str
    slice_more: str
    slice_url: str
    levers: list[ShownLever]
    may_change: bool
    muted_until: datetime | None  # for who looks

    @property
    def lever(self) -> ShownLever | None:
        return self.levers[0] if self.levers else None


def open_incidents(scope: Scope) -> QuerySet[Incident]:
    """Of the scope's tenants, for operators also the platform's; those that cost most first."""
    person = scope.person
    rows = person.rows(Incident).filter(opened_at__isnull=False, ended_at=None)
    if scope.tenant != "all" or scope.space is not None:
        rows = rows.filter(tenant__in=scope.tenants)
    order = ("-lost_tokens", "opened_at")
    return rows.select_related("tenant").order_by(*order)[:MOST_OPEN]


def shown(row: Incident, scope: Scope) -> ShownIncident:
    person = scope.person
    tenant = row.tenant.slug if row.tenant else ""
    cause = CAUSES.get(row.cause)
    slice_words, slice_more = _slice(row)
    return ShownIncident(
        row=row,
        tenant=tenant,
        url=scope.link("incident", row.pk),
        title=f"{tenant or 'platform'}: {row.words or KINDS[row.kind].label}",
        figures=_figures(row),
        tag=cause.label if cause else KINDS[row.kind].label,
        is_bad=row.kind in ("hit_rate", "refused", "memory_promise", "store_away"),
        cause=cause.label if cause else "",
        reason=words.reason(row.kind, row.cause, row.facts),
        facts=_facts(row),
        slice_words=slice_words,
        slice_more=slice_more,
        slice_url=_slice_url(row, scope, tenant),
        levers=[_lever(each, row, scope, tenant) for each in row.levers],
        may_change=_may_change(person, row),
        muted_until=row.muted_until_of(is_operator=person.is_operator),
    )


def link_of(scope: Scope, *choices: Target) -> str:
    """The address of the first of these pages that there is: (name, arguments, parameters)."""
    for name, arguments, changes in choices:
        try:
            return scope.link(name, *arguments, **changes)
        except NoReverseMatch:
            continue
    return scope.link("overview")


def spark(values: Iterable[float | None], width: int = 74, height: int = 26) -> str:
    """The path of a sparkline; "" with fewer than two values."""
    found = list(values)
    known = [(place, value) for place, value in enumerate(found) if value is not None]
    if len(known) < 2:
        return ""
    low, high = min(v for _, v in known), max(v for _, v in known)
    step, scale = width / max(1, len(found) - 1), (height - 4) / ((high - low) or 1)
    points = (f"{place * step:.1f} {height - 2 - (v - low) * scale:.1f}" for place, v in known)
    return f"M{' '.join(points)}"


def hit_line(row: Incident) -> list[tuple[int, float | None]]:
    """Hit rates by minute from half an hour before an incident to its end, or now: 60 at most."""
    since = row.since - timedelta(minutes=30)
    end = min(row.ended_at or timezone.now(), row.since + timedelta(hours=24))
    start_ts, end_ts = int(since.timestamp()) // 60 * 60, int(end.timestamp())
    step_s = max(60, (end_ts - start_ts) // 60 // 60 * 60)
    rows = UsageRollup.objects.filter(
        resolution_s=60, bucket_ts__gte=start_ts, bucket_ts__lte=end_ts
    ).order_by("bucket_ts")
    sums: dict[int, list[int]] = {}
    columns = (
        "requested_tokens",
        "tail_tokens",
        "hit_hot_tokens",
        "hit_cold_tokens",
        "hit_local_tokens",
    )
    for ts, asked, tail, *hits in rows.values_list("bucket_ts", *columns):
        into = sums.setdefault((ts - start_ts) // step_s, [0, 0])
        into[0] += asked + tail
        into[1] += sum(hits)
    return [
        (start_ts + place * step_s, hit / asked if asked else None)
        for place, (asked, hit) in sorted(sums.items())
    ]


def _figures(row: Incident) -> str:
    if row.kind != HIT_RATE.name or row.before is None or row.value is None:
        return ""
    return f"{100 * row.before:.0f} → {100 * row.value:.0f} %"


def _facts(row: Incident) -> list[str]:
    facts = row.facts
    found = []
    if refused := (facts.get("refused_blocks") or 0) + (facts.get("put_refused") or 0):
        found.append(f"{count_quantity(refused)} blocks refused in 5 min")
    if lost := facts.get("lost_blocks"):
        found.append(f"{count_quantity(lost)} lost as they left hot")
    if row.lost_tokens:
        found.append(f"≈ {count_quantity(row.lost_tokens)} tokens computed again")
    return found


def _slice(row: Incident) -> tuple[str, str]:
    part = row.slice
    split = part.get("split")
    if not split:
        return "", ""
    if split == "all":
        nodes, spaces = part.get("nodes", 0), part.get("spaces", 0)
        alike = f"{nodes} node{'' if nodes == 1 else 's'} in {spaces} space"
        return f"{alike}{'' if spaces == 1 else 's'}", "No part fell more than the others."
    more = part.get("more") or 0
    name = f"{split} {part.get('name', '')}" + (f" and {more} more" if more > 0 else "")
    if part.get("before") is None or part.get("now") is None:
        return name, ""
    return name, f"{100 * part['before']:.0f} → {100 * part['now']:.0f} %, most of the lost hits."


def _slice_url(row: Incident, scope: Scope, tenant: str) -> str:
    split = row.slice.get("split") or "node"
    if row.kind in ("breaker", "silent_node"):
        return link_of(scope, ("nodes", (), {"tenant": tenant}))
    # Explorer compares with as long a time before: better hours in the window would hide a fall.
    chosen: dict[str, Any] = {"tenant": tenant or None, "range": None}
    chosen["from_"] = int(row.since.timestamp()) // 60 * 60
    chosen["to"] = None if row.ended_at is None else int(row.ended_at.timestamp())
    if row.slice.get("key") and split in ("node", "space", "label"):
        chosen[split] = row.slice["key"]
    measure = {
        "hit_rate": "hit_rate",
        "load_p99": "load_p99",
        "dirty_age": "dirty_age",
        "dropped": "dropped",
        "refused": "refused",
    }.get(row.kind, "miss_blocks")
    by = "reason" if measure == "miss_blocks" else "node" if split == "all" else split
    return link_of(
        scope, ("explorer", (), {**chosen, "measure": measure, "split": by}), ("nodes", (), chosen)
    )


def _lever(lever: dict[str, Any], row: Incident, scope: Scope, tenant: str) -> ShownLever:
    setting, change = lever.get("setting", ""), lever.get("change") or {}
    gain, used = lever.get("gain"), lever.get("used")
    asked = ",".join(f"{name}={value}" for name, value in sorted(change.items()))
    try_url = scope.link("what_if", tenant=tenant, change=asked) if asked and tenant else ""
    page_url, page_words = _page_of(setting, scope, tenant)
    return ShownLever(
        name=lever.get("name", ""),
        now=lever.get("now", ""),
        to=lever.get("to", ""),
        used="" if used is None else f"{percent_quantity(min(used, 1.0))} used",
        gain="" if gain is None else points_text(gain).replace("▲", "+"),
        error="" if not lever.get("error") else f"± {100 * lever['error']:.1f} pt",
        try_url=try_url,
        page_url=page_url,
        page_words=page_words,
    )


def _page_of(setting: str, scope: Scope, tenant: str) -> tuple[str, str]:
    """Where a lever is turned, and the words of its link."""
    own = {"tenant": tenant or None}
    if setting in ("hot_quota", "cold_quota"):
        of_tenant: Target = ("tenant", (tenant,), {})
        return link_of(scope, of_tenant, ("tenants", (), own)), "Change the quota"
    if setting in ("hot_idle", "cold_lifetime", "flush_mode", "cold_full"):
        of_tenant = ("tenant", (tenant,), {"tab": "policy"})
        return link_of(scope, of_tenant, ("policies", (), own), ("tenants", (), own)), (
            "Change the policy"
        )
    if setting == "spaces":
        return link_of(scope, ("spaces", (), own)), "Compare the spaces"
    if setting in ("clocks", "s3_access"):
        return link_of(scope, ("system", (), {})), "See the system"
    if setting == "stores":
        return link_of(scope, ("tiers", (), {})), "See the stores"
    return link_of(scope, ("nodes", (), own)), "See the nodes"


def _may_change(person: Principal, row: Incident) -> bool:
    return person.is_operator if row.tenant_id is None else person.may_write(row.tenant_id)


def duration_words(row: Incident) -> str:
    """How long it lasts, or lasted."""
    end = row.ended_at or timezone.now()
    return str(duration_quantity((end - row.since).total_seconds()))
