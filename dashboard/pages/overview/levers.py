"""The lever beside each miss reason, its present value over the scope's tenants, and its link."""

from dataclasses import dataclass

from dashboard.formats import bytes_quantity, duration_quantity, percent_quantity
from dashboard.incidents import link_of
from dashboard.pages.nodes.selector import NodeRow
from dashboard.pages.overview.misses import MissShare
from dashboard.scope import Scope
from dashboard.storage import StorageUse
from neve.planner.causes import Cause, cause_of
from retention.models import FlushMode, RetentionPolicy

FULL = 0.9


@dataclass(frozen=True)
class MissRow:
    """`lever`: with its present value; "" where nothing is to be fixed. `url`: to try or see it."""

    share: MissShare
    url: str
    lever: str
    lever_url: str
    lever_words: str


def miss_rows(
    shares: list[MissShare],
    scope: Scope,
    uses: dict[int, StorageUse],
    whole: StorageUse,
    nodes: list[NodeRow],
    policies: list[RetentionPolicy],
) -> list[MissRow]:
    one = scope.tenants[0].slug if len(scope.tenants) == 1 else ""
    found = []
    for share in shares:
        url = link_of(
            scope,
            ("explorer", (), {"measure": "miss_blocks", "split": "reason"}),
            ("nodes", (), {}),
        )
        never = bool(policies) and all(p.flush_mode == FlushMode.NEVER for p in policies)
        cause = cause_of(share.reason, never_flushes=never)
        if cause is None or cause.is_ordinary or not cause.levers:
            hint = cause.remedy if cause else "update neve on these nodes"
            found.append(MissRow(share, url, "", "", hint))
            continue
        words = _present(cause, one, uses, whole, nodes, policies)
        found.append(MissRow(share, url, words, *_link(cause, scope, one)))
    return found


def _present(
    cause: Cause,
    one: str,
    uses: dict[int, StorageUse],
    whole: StorageUse,
    nodes: list[NodeRow],
    policies: list[RetentionPolicy],
) -> str:
    setting = cause.levers[0].setting
    if setting == "hot_quota":
        size = f" {bytes_quantity(whole.hot_quota_bytes)}" if one else "s"
        return f"hot quota{size}, {percent_quantity(whole.hot_ratio)} used"
    if setting == "cold_quota":
        if one:
            words = f"cold quota {bytes_quantity(whole.cold_quota_bytes)}"
            return f"{words}, {percent_quantity(whole.cold_ratio)} used"
        full = sum((use.cold_ratio or 0) >= FULL for use in uses.values())
        return f"cold quota of {full} tenant{'' if full == 1 else 's'} is full"
    if setting == "hot_idle":
        idle = {policy.hot_idle_s for policy in policies}
        if len(idle) == 1 and (seconds := idle.pop()) is not None:
            return f"hot idle time {duration_quantity(seconds)}"
        return "hot idle times"
    if setting == "flush_mode":
        return "flush mode never"
    if setting == "nodes":
        away = sum(row.state == "live" and row.session.breaker != "closed" for row in nodes)
        return f"breaker open on {away} node{'' if away == 1 else 's'}" if away else cause.remedy
    return cause.remedy


def _link(cause: Cause, scope: Scope, one: str) -> tuple[str, str]:
    lever = cause.levers[0]
    if lever.change and one:
        asked = ",".join(f"{name}={value}" for name, value in lever.change.items())
        return scope.link("what_if", tenant=one, change=asked), "try it"
    if lever.change:
        by_tenant = {"measure": "miss_blocks", "split": "tenant"}
        return link_of(scope, ("explorer", (), by_tenant), ("tenants", (), {})), "whose?"
    if lever.setting == "spaces":
        return link_of(scope, ("spaces", (), {})), "compare"
    if lever.setting in ("flush_mode", "cold_full"):
        return link_of(scope, ("policies", (), {}), ("tenants", (), {})), "see"
    if lever.setting in ("clocks", "s3_access"):
        return link_of(scope, ("system", (), {})), "see"
    if lever.setting == "stores":
        return link_of(scope, ("tiers", (), {})), "see"
    return link_of(scope, ("nodes", (), {})), "see"
