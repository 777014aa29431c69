"""Usage roll-ups: a heartbeat's deltas go into a 10 s, a 60 s and a 3,600 s bucket at once.

Times are the control plane's own clock. Rows are locked in the order of `RESOLUTIONS_S`, so that
concurrent heartbeats wait for each other and lose nothing.

A tenant's numbers must not break a page or a sum over tenants: each is bounded by `MOST_COUNT` when
written and, for rows that have more, when read; only known names are read.
"""

import operator
from collections import Counter, defaultdict
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import lru_cache, reduce
from typing import Any

from django.core.exceptions import EmptyResultSet
from django.db import connection, transaction
from django.db.models import F, FloatField, Func, Max, Q, QuerySet, Sum
from django.utils import timezone

from catalog.models import GAUGES, RESOLUTIONS_S, TIER_COUNTERS, UsageRollup
from catalog.windows import Period
from neve.errors import MissReason
from neve.node.stats import COUNTERS, LOAD_NAMES, MOST_COUNT
from tenants.scope import tenant_scope

# Objects of counts in a roll-up, and the names that they may have.
BY_NAME: dict[str, Collection[str]] = {
    "misses": frozenset(MissReason),
    "load_ms": LOAD_NAMES,
    "drops": frozenset(MissReason),
}
_SUMMED = [n for n in (*COUNTERS, *TIER_COUNTERS, *GAUGES) if n != "dirty_oldest_s"]
# How long buckets of a resolution are kept; the coarsest stay.
KEPT = {10: timedelta(hours=6), 60: timedelta(days=14)}


def add(total: Mapping[str, int], delta: Mapping[str, int]) -> dict[str, int]:
    """Sums by name."""
    return {name: bounded(total.get(name, 0) + delta.get(name, 0)) for name in {**total, **delta}}


def add_by_name(stored: object, more: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, int]]:
    """Sums of objects of counts: those of BY_NAME in a JSON column, with `more`."""
    found = known_by_name(stored)
    sums = {name: add(found[name], more.get(name, {})) for name in BY_NAME}
    return {name: counts for name, counts in sums.items() if counts}


def known_by_name(stored: object) -> dict[str, dict[str, int]]:
    """Every object of BY_NAME in a JSON column, with its known names."""
    there = stored if isinstance(stored, Mapping) else {}
    return {name: known(there.get(name), names) for name, names in BY_NAME.items()}


def bounded(count: int) -> int:
    return max(0, min(count, MOST_COUNT))


def known(stored: object, names: Iterable[str]) -> dict[str, int]:
    """Counts of a JSON column under these names; other values are left out. Reads as many names as
    were stored: pages call it for thousands of rows."""
    if not isinstance(stored, Mapping):
        return {}
    name_of = _name_of(tuple(names)) if not isinstance(names, Hashable) else _name_of(names)
    return {
        name_of[name]: count if 0 <= count <= MOST_COUNT else bounded(count)
        for name, count in stored.items()
        if type(count) is int and name in name_of
    }


@lru_cache(maxsize=32)  # more than there are tables of names
def _name_of(names: Iterable[str]) -> dict[str, str]:
    return {str(name): name for name in names}


class _Bounded(Func):
    """A count as a float between 0 and MOST_COUNT; NULL stays. One expression: pages have dozens,
    and Django takes longer to build a query of many than SQLite to answer it."""

    output_field = FloatField()
    template = (
        f"CAST(CASE WHEN %(expressions)s > {MOST_COUNT} THEN {MOST_COUNT} "
        "WHEN %(expressions)s < 0 THEN 0 ELSE %(expressions)s END AS double precision)"
    )


def bounded_sum(*names: str, **options: Any) -> Sum:
    """Sums columns of counts over rows, as a float: sums of integers overflow, and then raise."""
    return Sum(reduce(operator.add, (_Bounded(F(name)) for name in names)), **options)


_PARTS = {
    "sqlite": """
        json_each(CASE json_type(found.{0}) WHEN 'object' THEN found.{0} ELSE '{{}}' END) AS part
        WHERE part.type = 'integer'""",
    "postgresql": """
        jsonb_each(CASE jsonb_typeof(found.{0}) WHEN 'object' THEN found.{0} ELSE '{{}}' END)
        AS part
        WHERE jsonb_typeof(part.value) = 'number' AND part.value::text !~ '[.]'""",
}
_NUMBER = {"sqlite": "part.value", "postgresql": "(part.value #>> '{}')::numeric"}


def sums_by_name(
    rows: QuerySet[Any], columns: Sequence[str], *keys: str
) -> dict[str, defaultdict[tuple[Any, ...], Counter[str]]]:
    """Objects of counts in columns of BY_NAME, each summed over rows by the columns `keys`: what
    `known` finds in each row, added up. One query; the database reads the objects, since pages sum
    thousands."""
    sums: dict[str, defaultdict[tuple[Any, ...], Counter[str]]]
    sums = {column: defaultdict(Counter) for column in columns}
    try:
        inner, parameters = rows.order_by().values(*keys, *columns).query.sql_with_params()
    except EmptyResultSet:  # of no tenant
        return sums
    by = "".join(f"found.{connection.ops.quote_name(key)}, " for key in keys)
    count = _Bounded.template % {"expressions": _NUMBER[connection.vendor]}
    parts = " UNION ALL ".join(
        f"SELECT '{column}', {by}part.key, SUM({count}) FROM found, "  # noqa: S608 (our names)
        f"{_PARTS[connection.vendor].format(connection.ops.quote_name(column))} "
        f"GROUP BY {by}part.key"
        for column in columns
    )
    if parts:
        with connection.cursor() as cursor:
            cursor.execute(f"WITH found AS ({inner}) {parts}", parameters)
            for column, *values, name, total in cursor.fetchall():
                if (known_name := _name_of(frozenset(BY_NAME[column])).get(name)) is not None:
                    sums[column][tuple(values)][known_name] = int(total)
    return sums


@transaction.atomic(savepoint=False)  # an error ends the heartbeat as a whole
def record_deltas(
    *,
    tenant_id: int,
    at: datetime,
    counters: Mapping[str, int],
    misses: Mapping[str, int],
    load_ms: Mapping[str, int],
    drops: Mapping[str, int] | None = None,
) -> None:
    """Counters are names of COUNTERS; `load_ms` is a histogram, upper bound → loads; `misses` and
    `drops` are in blocks by MissReason."""
    counted = {name: delta for name, delta in counters.items() if delta}
    by_name = {"misses": misses, "load_ms": load_ms, "drops": drops or {}}
    by_name = {name: more for name, more in by_name.items() if any(more.values())}
    changed = [*counted, *by_name]
    if not changed:
        return
    for row in _locked_buckets(tenant_id, at, changed):
        for name, delta in counted.items():
            setattr(row, name, bounded(getattr(row, name) + delta))
        for name, more in by_name.items():
            setattr(row, name, add(known(getattr(row, name), BY_NAME[name]), more))
        with tenant_scope(tenant_id):
            row.save(update_fields=changed)


@transaction.atomic
def record_gauges(*, tenant_id: int, at: datetime, gauges: Mapping[str, int]) -> None:
    """Gauges of a tenant (names of GAUGES): a bucket keeps its last sample."""
    for row in _locked_buckets(tenant_id, at, GAUGES):
        for name in GAUGES:
            gauge = gauges.get(name)
            setattr(row, name, None if gauge is None else bounded(gauge))
        with tenant_scope(tenant_id):
            row.save(update_fields=list(GAUGES))


@transaction.atomic
def record_tier_totals(*, tenant_id: int, at: datetime, totals: Mapping[str, int]) -> None:
    """Counts of the tiers (TIER_COUNTERS) since the last sample. `totals` count since the hot
    server's start: smaller ones than before began anew from 0."""
    rows = _locked_buckets(tenant_id, at, [*TIER_COUNTERS, "tier_totals"])
    with tenant_scope(tenant_id):
        sampled = UsageRollup.objects.filter(
            resolution_s=RESOLUTIONS_S[-1], tier_totals__isnull=False
        )
        newest = sampled.order_by("-bucket_ts").values_list("tier_totals", flat=True).first()
        last, now = known(newest, TIER_COUNTERS), known(totals, TIER_COUNTERS)
        for row in rows:
            for name, total in now.items():
                before = last.get(name, 0)
                delta = total - before if total >= before else total
                setattr(row, name, bounded(getattr(row, name) + delta))
            if row.resolution_s == RESOLUTIONS_S[-1]:
                row.tier_totals = now
            row.save(update_fields=[*TIER_COUNTERS, "tier_totals"])


def _locked_buckets(tenant_id: int, at: datetime, columns: Iterable[str]) -> list[UsageRollup]:
    """The bucket of each resolution, finest first, with these columns of counts."""
    second = int(at.timestamp())
    places = [(each, second - second % each) for each in RESOLUTIONS_S]
    wanted = reduce(operator.or_, (Q(resolution_s=r, bucket_ts=ts) for r, ts in places))
    with tenant_scope(tenant_id):
        rows = UsageRollup.objects.filter(wanted).order_by("resolution_s")
        locked = rows.only("tenant_id", "resolution_s", *columns).select_for_update()
        found = list(locked)
        if len(found) < len(places):
            new = (
                UsageRollup(tenant_id=tenant_id, resolution_s=r, bucket_ts=ts) for r, ts in places
            )
            UsageRollup.objects.bulk_create(new, ignore_conflicts=True)
            found = list(locked.all())
        return found


def series(
    *, tenant_ids: Collection[int] | None, resolution_s: int, since_ts: int
) -> list[dict[str, Any]]:
    """One point a bucket from `since_ts` on, oldest first, summed over the tenants (None: all).

    Buckets without traffic are absent. A gauge that no tenant has is None.
    """
    rows = UsageRollup.unscoped.filter(resolution_s=resolution_s, bucket_ts__gte=since_ts)
    if tenant_ids is not None:
        rows = rows.filter(tenant_id__in=tenant_ids)
    return list(_sums(rows, "bucket_ts").values())


def rows_of(tenant_ids: Collection[int] | None, period: Period) -> QuerySet[UsageRollup]:
    """Roll-ups of a period, of these tenants or (None) of all."""
    rows = UsageRollup.unscoped.filter(
        resolution_s=period.resolution_s,
        bucket_ts__gte=period.start_ts,
        bucket_ts__lt=period.end_ts,
    )
    return rows if tenant_ids is None else rows.filter(tenant_id__in=tenant_ids)


def series_of(*, tenant_ids: Collection[int] | None, period: Period) -> list[dict[str, Any]]:
    """As `series`, between two moments; a point a bucket of the period's resolution."""
    return list(_sums(rows_of(tenant_ids, period), "bucket_ts").values())


def counted_since(*, tenant_ids: Collection[int], since_ts: int) -> dict[int, dict[str, Any]]:
    """Counts of each tenant in whole hours from `since_ts` on, including the current hour.

    By tenant: COUNTERS and TIER_COUNTERS by name (0 without usage), objects of BY_NAME. Grows only,
    as long as `since_ts` stays. Two queries.
    """
    rows = UsageRollup.unscoped.filter(
        resolution_s=RESOLUTIONS_S[-1], bucket_ts__gte=since_ts, tenant_id__in=tenant_ids
    )
    found = _sums(rows, "tenant_id")
    names = (*COUNTERS, *TIER_COUNTERS)
    return {
        id_: {name: found.get(id_, {}).get(name) or 0 for name in names}
        | {name: found.get(id_, {}).get(name, {}) for name in BY_NAME}
        for id_ in tenant_ids
    }


def _sums(rows: Any, key: str) -> dict[int, dict[str, Any]]:
    """Roll-ups summed by the column `key`, in its order. Two queries."""
    points: dict[int, dict[str, Any]] = {}
    for sums in (
        rows.order_by(key)
        .values(key)
        .annotate(**{f"sum_{name}": bounded_sum(name) for name in _SUMMED})
        .annotate(dirty_oldest_s=Max("dirty_oldest_s"))
    ):
        point = {key: sums[key], "dirty_oldest_s": sums["dirty_oldest_s"]}
        for name in _SUMMED:
            total = sums[f"sum_{name}"]
            point[name] = None if total is None else int(total)
        points[sums[key]] = {**point, **{name: {} for name in BY_NAME}}
    for name, sums_of in sums_by_name(rows, tuple(BY_NAME), key).items():
        for (place,), counts in sums_of.items():
            if place in points:  # else the first of its kind, written since
                points[place][name] = {each: bounded(count) for each, count in counts.items()}
    return points


def prune() -> int:
    """Deletes fine buckets that are past their time. Returns how many. For the worker `sample`."""
    now = timezone.now()
    return sum(
        UsageRollup.unscoped.filter(
            resolution_s=resolution_s, bucket_ts__lt=int((now - kept).timestamp())
        ).delete()[0]
        for resolution_s, kept in KEPT.items()
    )
