"""What changed, to be marked on charts: quotas, policies, keys, spaces, versions, engine starts.

Read from the audit trail and from node sessions: nothing is stored for it. Incidents are marked by
whoever draws the chart. Times are in seconds since 1970.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from django.db.models import Q

from catalog.models import NodeSession
from catalog.nodes import host_of
from tenants.models import AuditEvent, Tenant

LETTERS: Final = {
    "quota": "Q",
    "policy": "P",
    "key": "K",
    "space": "S",
    "version": "V",
    "deploy": "D",
    "tenant": "T",
    "incident": "A",
}
# First words of an audit action → kind.
_KINDS: Final = {
    "quota": "quota",
    "retention": "policy",
    "key": "key",
    "space": "space",
    "family": "space",
    "tenant": "tenant",
}
_ACTIONS: Final = {
    "quota.set": "quota changed",
    "retention.set": "policy changed",
    "retention.rule.add": "rule added",
    "retention.rule.change": "rule changed",
    "retention.rule.remove": "rule removed",
    "key.issue": "key issued",
    "key.rotate": "key rotated",
    "key.revoke": "key revoked",
    "space.create": "new space",
    "space.remove": "space removed",
    "family.create": "new family",
    "family.remove": "family removed",
    "tenant.create": "new tenant",
    "tenant.cut_off": "cut off",
    "tenant.let_in": "let in again",
    "tenant.remove": "tenant removed",
}
MOST: Final = 100  # the newest
MOST_SESSIONS: Final = 5_000
TOGETHER_S: Final = 600  # engines that started within this time are one change
_BEFORE: Final = timedelta(days=2)  # how long a node may have been away
_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_SHOWN: Final = 3  # changed values, and nodes, of one mark


@dataclass(frozen=True)
class Change:
    """`letter`: on charts. `page`, `argument`: of the dashboard, where it is seen. `by`: who did
    it; "" for what nodes did."""

    at: datetime
    letter: str
    kind: str
    words: str
    tenant: str
    page: str
    argument: str = ""
    by: str = ""

    @property
    def at_s(self) -> float:
        return self.at.timestamp()


def changes(tenants: Collection[Tenant], start_s: float, end_s: float) -> list[Change]:
    """The newest MOST of these tenants in a time, the newest first. At most three queries."""
    slugs = {tenant.pk: tenant.slug for tenant in tenants}
    start, end = (datetime.fromtimestamp(each, UTC) for each in (start_s, end_s))
    found = [*_of_audit(slugs, start, end), *_of_sessions(slugs, start, end)]
    found.sort(key=lambda change: change.at, reverse=True)
    return found[:MOST]


def _of_audit(slugs: Mapping[int, str], start: datetime, end: datetime) -> list[Change]:
    rows = AuditEvent.unscoped.filter(
        tenant_id__in=list(slugs), at__gte=start, at__lt=end, action__in=_ACTIONS
    )
    found = []
    for row in rows.order_by("-at")[:MOST]:
        kind = _KINDS[row.action.partition(".")[0]]
        tenant = slugs[row.tenant_id] if row.tenant_id is not None else ""
        words = f"{_ACTIONS[row.action]}{_values(row.before, row.after)}"
        page, argument = ("spaces", "") if kind == "space" else ("tenant", tenant)
        found.append(
            Change(row.at, LETTERS[kind], kind, words, tenant, page, argument, row.actor_name)
        )
    return found


def _values(before: Any, after: Any) -> str:
    """What differs, as people read it: ": cold 8 TiB → 10 TiB"."""
    then = before if isinstance(before, dict) else {}
    now = after if isinstance(after, dict) else {}
    if not then or not now:
        name = (now or then).get("name")
        return f" {name}" if isinstance(name, str) else ""
    differing = sorted(name for name in now if now[name] != then.get(name))
    parts = [
        f"{name.removesuffix('_bytes').removesuffix('_s').replace('_', ' ')} "
        f"{_shown(name, then.get(name))} → {_shown(name, now[name])}"
        for name in differing[:_SHOWN]
    ]
    more = len(differing) - len(parts)
    return f": {', '.join(parts)}{f' and {more} more' if more > 0 else ''}" if parts else ""


def _shown(name: str, value: Any) -> str:
    if value is None:
        return "never" if name.endswith("_s") else "none"
    if name.endswith("_bytes") and isinstance(value, int):
        size, place = float(value), 0
        while size >= 1024 and place + 1 < len(_UNITS):
            size, place = size / 1024, place + 1
        return f"{size:.3g} {_UNITS[place]}"
    if name.endswith("_s") and isinstance(value, int):
        for length_s, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
            if value and value % length_s == 0:
                return f"{value // length_s} {unit}"
        return f"{value} s"
    return str(value)[:60]


def _of_sessions(slugs: Mapping[int, str], start: datetime, end: datetime) -> list[Change]:
    """New versions of engines, and engines that started: nodes of one time are one change."""
    of_tenants = NodeSession.unscoped.filter(tenant_id__in=list(slugs))
    opened = of_tenants.filter(opened_at__gte=start, opened_at__lt=end)
    new = opened.order_by("-opened_at").values_list(*_SEEN)[:MOST_SESSIONS]
    starts = {(row[0], host_of(row[1])) for row in new}
    if not starts:
        return []
    there = of_tenants.filter(
        Q(ended_at=None) | Q(ended_at__gte=start - _BEFORE), opened_at__lt=start
    )
    known: dict[tuple[int, str], str] = {}
    for tenant_id, node, engine, _ in there.order_by("-opened_at").values_list(*_SEEN)[
        :MOST_SESSIONS
    ]:
        known.setdefault((tenant_id, host_of(node)), _version(engine))
    groups: dict[tuple[int, str, str, int], dict[str, datetime]] = defaultdict(dict)
    started: dict[tuple[int, str], datetime] = {}
    for tenant_id, node, engine, at in reversed(list(new)):
        host, version = host_of(node), _version(engine)
        before = known.get((tenant_id, host), "")
        last = started.get((tenant_id, host))
        if last is not None and (at - last).total_seconds() < TOGETHER_S and before == version:
            continue  # another process or space of the same start
        started[tenant_id, host] = at
        known[tenant_id, host] = version
        key = (tenant_id, before, version, int(at.timestamp()) // TOGETHER_S)
        groups[key].setdefault(host, at)
    found = []
    for (tenant_id, before, version, _), hosts in groups.items():
        names = sorted(hosts)
        nodes = ", ".join(names[:_SHOWN])
        if len(names) > _SHOWN:
            nodes += f" and {len(names) - _SHOWN} more"
        is_new_version = before not in ("", version)
        kind = "version" if is_new_version else "deploy"
        words = f"{before} → {version} on {nodes}" if is_new_version else f"{version} on {nodes}"
        words += "" if is_new_version else (" started again" if before else " joined")
        slug = slugs[tenant_id]
        found.append(Change(min(hosts.values()), LETTERS[kind], kind, words, slug, "nodes"))
    return found


_SEEN: Final = ("tenant_id", "node", "engine", "opened_at")


def _version(engine: object) -> str:
    if not isinstance(engine, Mapping):
        return "engine"
    return f"{engine.get('name', '')} {engine.get('version', '')}".strip()[:80] or "engine"
