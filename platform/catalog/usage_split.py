"""Usage split by tenant, tier, space or node, for REST.

Roll-ups are of a tenant, so a split by tenant or tier has a series. Of spaces and nodes only the
sums of whole sessions are stored: a session that was open in the period counts from its beginning.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from base.problems import Problem
from catalog import usage
from catalog.models import GAUGES, NodeSession, Segment
from catalog.sessions import host_of
from catalog.windows import Period
from neve.node.stats import COUNTERS

Counts = dict[str, int | None]

MOST_GROUPS = 100  # the largest ones
MOST_ROWS = 200_000  # roll-ups that one request reads
MOST_SESSIONS = 20_000  # the last ones heard of
_SUMS = {
    "requested_tokens": ("requested_tokens",),
    "hit_tokens": ("hit_hot_tokens", "hit_cold_tokens", "hit_local_tokens"),
    "requested_blocks": ("requested_blocks",),
    "hit_blocks": ("hit_hot_blocks", "hit_cold_blocks", "hit_local_blocks"),
    "read_bytes": ("hot_read_bytes", "cold_read_bytes", "local_read_bytes"),
    "written_bytes": ("hot_write_bytes",),
    "stored_blocks": ("put_blocks",),
    "used_bytes": ("hot_used_bytes", "cold_used_bytes"),
}
_HOT = {"requested_tokens": (), "requested_blocks": ()} | {
    name: tuple(each for each in columns if "cold" not in each and "local" not in each)
    for name, columns in _SUMS.items()
    if not name.startswith("requested")
}
_COLD = {name: tuple(each for each in columns if "cold" in each) for name, columns in _SUMS.items()}
_LOCAL = {
    name: tuple(each for each in columns if "local" in each) for name, columns in _SUMS.items()
} | {"written_bytes": ("local_write_bytes",)}
COUNTS = tuple(_SUMS)
_TIERS = {"hot": _HOT, "cold": _COLD, "local": _LOCAL}
_COLUMNS = tuple(dict.fromkeys(column for columns in _SUMS.values() for column in columns))
_GAUGES = ("used_bytes",)


@dataclass
class Group:
    """`points` by their step's first second. None in counts: not counted for this split."""

    id: str
    name: str
    tenant: str | None
    totals: Counts = field(default_factory=dict)
    points: dict[int, Counts] = field(default_factory=dict)


def merged(points: Iterable[dict[str, Any]], step_s: int) -> list[dict[str, Any]]:
    """Points of `usage.series` put together by step: counts add up, a gauge keeps its last value,
    the age of the oldest dirty block its greatest."""
    steps: dict[int, dict[str, Any]] = {}
    for point in points:
        ts = point["bucket_ts"] - point["bucket_ts"] % step_s
        into = steps.get(ts)
        if into is None:
            steps[ts] = {**point, "bucket_ts": ts}
            continue
        for name, value in point.items():
            if name == "bucket_ts" or value is None:
                continue
            if isinstance(value, dict):
                into[name] = usage.add(into[name], value)
            elif name == "dirty_oldest_s":
                into[name] = max(into[name] or 0, value)
            elif name in GAUGES:
                into[name] = value
            else:
                into[name] = usage.bounded((into[name] or 0) + value)
    return list(steps.values())


def cold_writes(tenant_ids: Collection[int] | None, period: Period) -> dict[int, int]:
    """Bytes of segments that flushes and merges wrote, by first second of the step. One query."""
    first, last = (datetime.fromtimestamp(ts, UTC) for ts in (period.start_ts, period.end_ts))
    rows = Segment.unscoped.filter(created_at__gte=first, created_at__lt=last)
    if tenant_ids is not None:
        rows = rows.filter(tenant_id__in=tenant_ids)
    found: defaultdict[int, int] = defaultdict(int)
    for created_at, size_bytes in rows.order_by().values_list("created_at", "size_bytes"):
        ts = int(created_at.timestamp())
        found[ts - ts % period.step_s] += size_bytes
    return found


def by_tier(points: Iterable[dict[str, Any]], cold_writes: Mapping[int, int]) -> list[Group]:
    """Of points of `merged`, and what `cold_writes` answers."""
    found = list(points)
    groups = []
    for tier, columns in _TIERS.items():
        group = Group(tier, tier, None)
        for point in found:
            group.points[point["bucket_ts"]] = _counts(point.get, columns)
        for ts, written in cold_writes.items() if tier == "cold" else ():
            there = group.points.setdefault(ts, dict.fromkeys(_SUMS))
            there["written_bytes"] = usage.bounded(written)
        groups.append(_with_totals(group))
    return groups


def by_tenant(tenant_ids: Collection[int] | None, period: Period) -> list[Group]:
    """Tenants with usage in the period, most requested tokens first. Two queries.

    Raises Problem (malformed) if that are too many rows.
    """
    rows = usage.rows_of(tenant_ids, period)
    if rows.count() > MOST_ROWS:
        raise Problem("malformed", "step: name a longer one, or a tenant.", field="step")
    columns = ("tenant_id", "tenant__slug", "tenant__name", "bucket_ts", *_COLUMNS)
    groups: dict[int, Group] = {}
    found = rows.order_by("tenant_id", "bucket_ts").values_list(*columns)
    for tenant_id, slug, name, bucket_ts, *values in found.iterator(chunk_size=2000):
        group = groups.setdefault(tenant_id, Group(slug, name, slug))
        counts = _counts(dict(zip(_COLUMNS, values, strict=True)).get, _SUMS)
        ts = bucket_ts - bucket_ts % period.step_s
        there = group.points.get(ts)
        group.points[ts] = counts if there is None else _add(there, counts)
    return _largest(map(_with_totals, groups.values()))


def by_session(
    tenant_ids: Collection[int] | None, period: Period, *, of_spaces: bool
) -> list[Group]:
    """Spaces, or nodes (hosts), with a session in the period; without points. One query."""
    start, end = (datetime.fromtimestamp(ts, UTC) for ts in (period.start_ts, period.end_ts))
    rows = NodeSession.unscoped.filter(last_heartbeat_at__gte=start, opened_at__lt=end)
    if tenant_ids is not None:
        rows = rows.filter(tenant_id__in=tenant_ids)
    groups: dict[tuple[int, str], Group] = {}
    sums: defaultdict[tuple[int, str], dict[str, int]] = defaultdict(dict)
    found = rows.order_by("-last_heartbeat_at").values_list(
        "tenant_id", "tenant__slug", "space_id", "space__name", "node", "totals"
    )
    for tenant_id, slug, space_id, space, node, totals in found[:MOST_SESSIONS]:
        host = host_of(node)
        id_, name = (str(space_id), space) if of_spaces else (host, host)
        groups.setdefault((tenant_id, id_), Group(id_, name, slug))
        sums[tenant_id, id_] = usage.add(sums[tenant_id, id_], usage.known(totals, COUNTERS))
    columns = {name: () if name in _GAUGES else each for name, each in _SUMS.items()}
    for key, group in groups.items():
        group.totals = _counts((dict.fromkeys(_COLUMNS, 0) | sums[key]).get, columns)
    return _largest(groups.values())


def _counts(read: Callable[[str], Any], columns: dict[str, tuple[str, ...]]) -> Counts:
    """A count without columns, or without any known value, is None."""
    found: Counts = {}
    for name in _SUMS:
        values = [value for each in columns[name] if (value := read(each)) is not None]
        found[name] = usage.bounded(sum(map(usage.bounded, values))) if values else None
    return found


def _add(there: Counts, more: Counts) -> Counts:
    total: Counts = {}
    for name, value in more.items():
        before = there[name]
        if name in _GAUGES:
            total[name] = before if value is None else value
        elif value is None:
            total[name] = before
        else:
            total[name] = usage.bounded((before or 0) + value)
    return total


def _with_totals(group: Group) -> Group:
    for _, counts in sorted(group.points.items()):
        group.totals = _add(group.totals, counts) if group.totals else dict(counts)
    return group


def _largest(groups: Iterable[Group]) -> list[Group]:
    size = sorted(groups, key=lambda group: -(group.totals["requested_tokens"] or 0))
    return size[:MOST_GROUPS]
