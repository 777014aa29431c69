"""Reads slices: a measure over time, and a table of its parts with the window before.

All figures are of one source (`catalog.slicing`), so that parts add up to their whole. Times are in
seconds since 1970. A reader gives the tenants that they may see; parts of others do not exist.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from django.db.models import FloatField, Max, Q, QuerySet, Sum
from django.db.models.functions import Cast

from base.problems import Problem
from catalog.measures import MEASURES, SPLITS, Latency, Measure, Sums, latency_of, value_of
from catalog.models import Context, Slice, Space
from catalog.slicing import COUNTED, GAUGES, KEPT, labels_of
from catalog.usage import sums_by_name
from tenants.models import Tenant

AGAINST: Final = ("before", "yesterday")
MOST_POINTS: Final = 181  # of a line
MOST_PARTS: Final = 5_000  # in a table; the others are summed
DAY_S: Final = 86_400
NOTABLE: Final = 0.02  # of a hit rate: a smaller change has no "since"
_KINDS: Final = {
    "space": Slice.Kind.PLACE,
    "node": Slice.Kind.PLACE,
    "label": Slice.Kind.LABEL,
    "context": Slice.Kind.CONTEXT,
    "place": Slice.Kind.PLACE,  # a node in a space: only inside this module
}
_BASE: Final = ("prompt_tokens", "hit_tokens")


@dataclass(frozen=True)
class Where:
    """What is counted: parts of these tenants (id → slug), of one space, node or label."""

    tenants: Mapping[int, str]
    space_number: int | None = None
    node: str = ""
    label: str = ""

    @staticmethod
    def of(
        tenants: Iterable[Tenant], *, space: Space | None = None, node: str = "", label: str = ""
    ) -> "Where":
        slugs = {tenant.pk: tenant.slug for tenant in tenants}
        return Where(slugs, None if space is None else space.pk, node, label)


@dataclass(frozen=True)
class Span:
    """Whole buckets: `start_ts` inclusive, `end_ts` exclusive."""

    start_ts: int
    end_ts: int
    step_s: int

    def steps(self) -> range:
        return range(self.start_ts, self.end_ts, self.step_s)

    def elapsed_s(self, now_s: float) -> float:
        return max(1.0, min(self.end_ts, now_s) - self.start_ts)


@dataclass(frozen=True)
class Key:
    """A part. `space_number` 0 and `name` "" where the split does not name them. `is_rest`: the sum
    of what had no row of its own."""

    tenant_id: int
    space_number: int = 0
    name: str = ""
    is_rest: bool = False


ALL: Final = Key(0)


@dataclass
class Row:
    """One part in the window and the one before. Counts `before` are scaled to the window's length.

    `main_reason`: of misses; the one that grew most, if the value got worse.
    `change`: `value` - `before`; None without both. `share`: of the scope's prompt tokens, for a
    ratio or latency; else of the measure. `tokens`: prompt tokens, the hit rate's denominator.
    """

    key: Key
    name: str
    tenant: str
    space: str
    value: float | None
    before: float | None
    share: float | None
    tokens: int
    hit_tokens: int
    main_reason: str | None
    latency: Latency | None
    better: int
    points: list[float | None] = field(default_factory=list)
    since_ts: int | None = None
    worst: str = ""
    tint: str = ""  # its class on a page

    @property
    def change(self) -> float | None:
        return None if self.value is None or self.before is None else self.value - self.before

    @property
    def ratio(self) -> float | None:
        """The change as a share of what was before."""
        return self.change / self.before if self.change is not None and self.before else None

    @property
    def is_worse(self) -> bool:
        return self.change is not None and self.change * self.better < 0


@dataclass(frozen=True)
class Table:
    """`rows`: what changed most first. `total`: the whole scope. `why_not`: why there are no rows.
    `before` None: not kept so long. `left_out`: parts beyond MOST_PARTS."""

    measure: Measure
    split: str
    span: Span
    before: Span | None
    rows: list[Row]
    total: Row
    why_not: str = ""
    left_out: int = 0


def measure_named(name: str) -> Measure:
    """Raises Problem (malformed) that lists the names."""
    if name not in MEASURES:
        raise Problem("malformed", f"measure: need one of {', '.join(MEASURES)}.", field="measure")
    return MEASURES[name]


def split_named(name: str) -> str:
    """Raises Problem (malformed) that lists the names."""
    if name not in SPLITS:
        raise Problem("malformed", f"split: need one of {', '.join(SPLITS)}.", field="split")
    return name


def spans_of(
    start_s: float, end_s: float, against: str, *, now_s: float
) -> tuple[Span, Span | None]:
    """The window in whole buckets, the finest that are kept and make at most MOST_POINTS; and the
    window to compare with. Ends now at the latest; what is longer than slices are kept begins later
    than asked for, so that no window has more points. Raises Problem (malformed)."""
    end_s = min(end_s, now_s)
    start_s = max(start_s, end_s - max(KEPT.values()).total_seconds(), 0.0)
    if start_s >= end_s:
        raise Problem("malformed", "from: needs to lie before to and before now.", field="from")
    if against not in AGAINST:
        raise Problem("malformed", f"against: need one of {', '.join(AGAINST)}.", field="against")
    is_before = against == "before"
    reach_s = start_s - (end_s - start_s) if is_before else start_s
    span = _span(start_s, end_s, reach_s, now_s)
    length_s = span.end_ts - span.start_ts
    if is_before:
        before = Span(span.start_ts - length_s, span.start_ts, span.step_s)
    else:
        first, last = span.start_ts - DAY_S, span.end_ts - DAY_S
        rough = _span(first, last, first, now_s)
        end_ts = max(last - last % rough.step_s, rough.start_ts + rough.step_s)
        before = Span(rough.start_ts, end_ts, rough.step_s)
    oldest_s = now_s - max(kept.total_seconds() for kept in KEPT.values())
    return span, before if before.start_ts >= oldest_s - before.step_s else None


def _span(start_s: float, end_s: float, reach_s: float, now_s: float) -> Span:
    step_s = next(
        (
            each
            for each, kept in sorted(KEPT.items())
            if reach_s >= now_s - kept.total_seconds() - each
            and (end_s - start_s) / each <= MOST_POINTS - 1
        ),
        max(KEPT),
    )
    first, last = int(start_s // step_s), -int(-end_s // step_s)
    return Span(first * step_s, last * step_s, step_s)


def why_not(where: Where, measure: Measure, split: str) -> str:
    """Why a measure is not counted by this split in this scope; "" if it is."""
    if split not in measure.splits:
        return f"{measure.words} is not counted by {split}."
    by_reports = split in ("label", "context") or where.label
    if by_reports and not measure.is_of_reports:
        return f"{measure.words} is not counted by label or context, only hits are."
    if where.node and by_reports:
        return "Hits of contexts and labels are not counted by node."
    if where.label and split == "tier":
        return "Hits of labels are not counted by tier."
    if measure.is_of_tenant and (where.space_number is not None or where.node or where.label):
        return f"{measure.words} is sampled for whole tenants only."
    return ""


def table(
    where: Where, measure: Measure, split: str, span: Span, before: Span | None, *, now_s: float
) -> Table:
    """What changed most first: by the absolute change; parts without one last, larger first."""
    refusal = why_not(where, measure, split)
    base = Row(ALL, "all", "", "", None, None, None, 0, 0, None, None, measure.better)
    if refusal:
        return Table(measure, split, span, before, [], base, refusal)
    now = _sums(where, measure, split, span)
    then = {} if before is None else _sums(where, measure, split, before)
    scale = 1.0
    if measure.is_rate and before is not None:
        scale = span.elapsed_s(now_s) / (before.end_ts - before.start_ts)
    whole, whole_then = _whole(now.values(), measure, split), _whole(then.values(), measure, split)
    if split in ("label", "context"):  # contexts without a name or with several labels
        whole = _all(where, measure, span)
        whole_then = Sums() if before is None else _all(where, measure, before)
    has = {"has_now": bool(now), "has_then": bool(then)}
    total_value = value_of(measure, whole)
    names = _space_names(key.space_number for key in (*now, *then))
    rows = []
    for key in now.keys() | then.keys():
        sums = now.get(key)
        row = _row(key, split, where, names, measure, sums, then.get(key), scale, **has)
        is_share_of_tokens = measure.kind in ("ratio", "latency") and split != "tier"
        if is_share_of_tokens:
            row.share = row.tokens / whole.prompt_tokens if whole.prompt_tokens else None
        elif measure.kind == "count" and row.value is not None and total_value:
            row.share = row.value / total_value
        rows.append(row)
    rows.sort(key=_changed_most)
    total = _row(ALL, split, where, {}, measure, whole, whole_then, scale, **has)
    total.name = "all"
    return Table(
        measure, split, span, before, rows[:MOST_PARTS], total, "", max(0, len(rows) - MOST_PARTS)
    )


def series(
    where: Where,
    measure: Measure,
    split: str,
    span: Span,
    keys: Collection[Key] | None,
    *,
    now_s: float,
) -> dict[Key, list[float | None]]:
    """One value a step of the span; None where nobody counted. Counts are by second.

    `keys` None: one line, ALL, of the whole scope.
    """
    if why_not(where, measure, split):
        return {}
    found = _steps(where, measure, split, span, keys)
    wanted = (ALL,) if keys is None else keys
    return {key: _line(measure, span, found.get(key, {}), now_s) for key in wanted}


def reasons(where: Where, name: str, span: Span, *, now_s: float) -> dict[str, list[float | None]]:
    """Blocks a second by MissReason, the one with the highest step first. `name`: misses or drops.
    None for a step in which nobody counted."""
    measure = MEASURES["miss_blocks" if name == "misses" else "dropped"]
    if why_not(where, measure, "reason"):
        return {}
    steps = _steps(where, measure, "tenant", span, None).get(ALL, {})
    found: dict[str, list[float | None]] = {}
    for reason in {each for sums in steps.values() for each in getattr(sums, name)}:
        found[reason] = [
            getattr(steps[ts], name)[reason] / _elapsed_s(span, ts, now_s) if ts in steps else None
            for ts in span.steps()
        ]
    return dict(sorted(found.items(), key=lambda item: (-max(v or 0.0 for v in item[1]), item[0])))


def mark_since(rows: Iterable[Row], lines: Mapping[Key, list[float | None]], span: Span) -> None:
    """Sets `since_ts` of rows whose value changed notably: the first step from which on all values
    lie on the new side of the middle. `lines`: over `span`, which holds both windows."""
    for row in rows:
        change, values = row.change, lines.get(row.key, [])
        if change is None or row.before is None or row.value is None:
            continue
        if abs(change) < NOTABLE * max(1.0, abs(row.before)):
            continue
        last = next((value for value in reversed(values) if value is not None), None)
        if last is None:
            continue
        known_values = [
            (ts, v) for ts, v in zip(span.steps(), values, strict=False) if v is not None
        ]
        middle = (known_values[0][1] + last) / 2
        is_up = last > known_values[0][1]
        since = None
        for ts, value in reversed(known_values):
            if (value > middle) != is_up:
                break
            since = ts
        row.since_ts = since


def mark_worst(
    where: Where, rows: Iterable[Row], split: str, span: Span, before: Span | None
) -> None:
    """Sets `worst` of rows whose hit rate fell notably: the space that lost most tokens against the
    rate before, and how many of its nodes did; of a space its node, of a node its space."""
    fallen = {row.key: row for row in rows if row.is_worse and abs(row.change or 0) >= NOTABLE}
    if split not in ("tenant", "space", "node") or not fallen or before is None:
        return
    rate = MEASURES["hit_rate"]
    now, then = (
        {
            place: sums
            for (place, _), sums in _read(
                where, rate, "place", each, list(fallen), has_reasons=False, kept=split
            ).items()
        }
        for each in (span, before)
    )
    lost: dict[Key, Counter[tuple[int, str]]] = defaultdict(Counter)
    for place, sums in now.items():
        value, had = value_of(rate, sums), value_of(rate, then.get(place))
        key = _under(split, place)
        if value is not None and had is not None and key in fallen and had > value:
            tokens = int((had - value) * sums.prompt_tokens)
            lost[key][place.space_number, place.name] += tokens
    names = _space_names(number for each in lost.values() for number, _ in each)
    for key, places in lost.items():
        fallen[key].worst = _worst_words(split, places, names)


def _under(split: str, place: Key) -> Key:
    """The part of a split to which a node in a space belongs."""
    if split == "space":
        return Key(place.tenant_id, place.space_number, is_rest=place.is_rest)
    if split == "node":
        return Key(place.tenant_id, 0, place.name, is_rest=place.is_rest)
    return Key(place.tenant_id)


def _worst_words(split: str, places: Counter[tuple[int, str]], names: Mapping[int, str]) -> str:
    if split == "space":
        name, more = places.most_common(1)[0][0][1] or "other nodes", len(places) - 1
        return f"{name} and {more} more" if more else name
    spaces: Counter[int] = Counter()
    for (number, _), tokens in places.items():
        spaces[number] += tokens
    worst = spaces.most_common(1)[0][0]
    name = names.get(worst, "other")
    nodes = sum(number == worst for number, _ in places)
    return name if split == "node" else f"{name} · {nodes} node{'s' if nodes > 1 else ''}"


# ---- how rows become sums


def _kind(where: Where, split: str) -> str:
    if where.label and split != "context":
        return Slice.Kind.LABEL
    if split in _KINDS:
        return _KINDS[split]
    if where.node or where.space_number is not None:
        return Slice.Kind.PLACE
    return Slice.Kind.TENANT


def _slices(where: Where, split: str, span: Span) -> QuerySet[Slice]:
    rows = Slice.unscoped.filter(
        kind=_kind(where, split),
        resolution_s=span.step_s,
        bucket_ts__gte=span.start_ts,
        bucket_ts__lt=span.end_ts,
        tenant_id__in=list(where.tenants),
    )
    if where.space_number is not None:
        rows = rows.filter(space_number=where.space_number)
    if where.node:
        rows = rows.filter(name=where.node)
    if where.label:
        if split == "context":
            return rows.filter(_contexts_of(where))
        rows = rows.filter(name=where.label)
    return rows.order_by()


def _contexts_of(where: Where) -> Q:
    """Rows of contexts that have the label now."""
    rows = Context.unscoped.filter(tenant_id__in=list(where.tenants), prompt_tokens__gt=0)
    found = rows.order_by("-last_used_at").values_list("space_id", "name", "label", "labels")
    names = defaultdict(list)
    for space_id, name, label, labels in found[:MOST_PARTS]:
        if where.label in labels_of(label, labels):
            names[space_id].append(name)
    query = Q(pk=None)
    for space_id, each in names.items():
        query |= Q(space_number=space_id, name__in=each)
    return query


def _columns(split: str) -> tuple[str, ...]:
    return {
        "tenant": ("tenant_id",),
        "space": ("tenant_id", "space_number"),
        "node": ("tenant_id", "name"),
        "place": ("tenant_id", "space_number", "name"),
        "label": ("tenant_id", "space_number", "name"),
        "context": ("tenant_id", "space_number", "name"),
    }.get(split, ())


def _key(split: str, columns: Sequence[Any]) -> Key:
    match split:
        case "tenant":
            return Key(columns[0])
        case "space":
            return Key(columns[0], columns[1], is_rest=not columns[1])
        case "node":
            return Key(columns[0], 0, columns[1], is_rest=not columns[1])
        case "label":  # the same label of several spaces is one
            return Key(columns[0], 0, columns[2], is_rest=not columns[1])
        case "context" | "place":
            return Key(columns[0], columns[1], columns[2], is_rest=not columns[1])
    return ALL


def _sums(where: Where, measure: Measure, split: str, span: Span) -> dict[Key, Sums]:
    """Sums over a span, with misses for the main reason."""
    found: dict[Key, Sums] = {}
    for (key, _), sums in _read(where, measure, split, span, None, has_reasons=True).items():
        found.setdefault(key, Sums()).add(sums)
    if measure.kind == "gauge":
        found = _gauges(where, measure, split, span)
    if split in ("reason", "tier"):
        return _parts(measure, split, found.get(ALL, Sums()))
    return found


def _all(where: Where, measure: Measure, span: Span) -> Sums:
    """The sum of a scope, whatever the split."""
    found = _read(where, measure, "", span, None, has_reasons=True, place="tenant")
    return found.get((ALL, 0), Sums())


def _parts(measure: Measure, split: str, sums: Sums) -> dict[Key, Sums]:
    """One sum taken apart by reason or tier."""
    if split == "reason":
        counts: Counter[str] = getattr(sums, measure.by_name)
        return {
            Key(0, 0, reason): Sums({}, **{measure.by_name: Counter({reason: count})})
            for reason, count in counts.items()
        }
    hits_of = {tier: sums.counts.get(f"hit_{tier}_tokens", 0) for tier in ("cold", "local")}
    hits_of["hot"] = sums.counts.get("hit_tokens", 0) - sum(hits_of.values())
    tiers = {}
    for tier in ("hot", "cold", "local"):
        columns: tuple[str, ...] = getattr(measure, tier)
        counts_of = {name: sums.counts.get(name, 0) for name in columns}
        if "hit_tokens" in measure.columns:
            counts_of = {"hit_tokens": hits_of[tier], "prompt_tokens": sums.prompt_tokens}
        tiers[Key(0, 0, tier)] = Sums(counts_of)
    return tiers


def _steps(
    where: Where, measure: Measure, split: str, span: Span, keys: Collection[Key] | None
) -> dict[Key, dict[int, Sums]]:
    by = "" if keys is None else split
    place = "tenant" if keys is None else split
    steps: dict[Key, dict[int, Sums]] = defaultdict(dict)
    found = _read(where, measure, by, span, keys, has_reasons=False, by_step=True, place=place)
    for (key, ts), sums in found.items():
        if keys is not None and split in ("reason", "tier"):
            for part, each in _parts(measure, split, sums).items():
                steps[part][ts] = each
        elif ts in steps[key]:
            steps[key][ts].add(sums)
        else:
            steps[key][ts] = sums
    return steps


def _read(
    where: Where,
    measure: Measure,
    split: str,
    span: Span,
    keys: Collection[Key] | None,
    *,
    has_reasons: bool,
    by_step: bool = False,
    place: str | None = None,
    kept: str | None = None,
) -> dict[tuple[Key, int], Sums]:
    """By key and step (0 without steps). At most two queries. `keys`: of the split `kept`."""
    rows = _slices(where, place or split, span)
    if keys is not None and split not in ("reason", "tier"):
        rows = _only(rows, kept or split, keys)
    columns = _columns(split)
    by = (*columns, *(("bucket_ts",) if by_step else ()))
    found: dict[tuple[Key, int], Sums] = defaultdict(Sums)

    def place_of(values: Sequence[Any]) -> tuple[Key, int]:
        return _key(split, values), values[len(columns)] if by_step else 0

    summed = dict.fromkeys((*_BASE, "hit_cold_tokens", "hit_local_tokens", *measure.columns))
    counted = [name for name in summed if name in COUNTED]
    gauges = [name for name in measure.columns if name in GAUGES]
    aggregates: dict[str, Any] = {f"sum_{n}": Sum(Cast(n, FloatField())) for n in counted}
    aggregates |= {
        f"sum_{n}": (Max if n == "dirty_oldest_s" else Sum)(n) for n in gauges if by_step
    }
    names = [name.removeprefix("sum_") for name in aggregates]
    # Without a column to group by, one row comes also of no rows: steps tell that apart.
    grouped = rows.values(*by) if by else rows.values("kind")
    for values in grouped.annotate(**aggregates).values_list(*by, *aggregates):
        sums = found[place_of(values)]
        for name, count in zip(names, values[len(by) :], strict=True):
            if count is not None:
                sums.counts[name] = sums.counts.get(name, 0) + int(count)
    wanted = [measure.by_name] if measure.by_name else []
    if has_reasons and "misses" not in wanted and measure.kind in ("ratio", "count"):
        wanted.append("misses")
    for name, sums_of in sums_by_name(rows, wanted, *by).items():
        for values, counts in sums_of.items():
            getattr(found[place_of(values)], name).update(counts)
    return found


def _only(rows: QuerySet[Slice], split: str, keys: Collection[Key]) -> QuerySet[Slice]:
    """Rows that may belong to one of the keys; a few others are left to the caller."""
    rows = rows.filter(tenant_id__in={key.tenant_id for key in keys})
    if split in ("space", "context"):
        rows = rows.filter(space_number__in={key.space_number for key in keys})
    if split in ("node", "label", "context"):
        rows = rows.filter(name__in={key.name for key in keys})
    return rows


def _gauges(where: Where, measure: Measure, split: str, span: Span) -> dict[Key, Sums]:
    """Gauges of each tenant: the last one; of ages the largest."""
    (name,) = measure.columns
    found: dict[Key, Sums] = {}
    rows = _slices(where, split, span).filter(**{f"{name}__isnull": False})
    for tenant_id, value in rows.order_by("bucket_ts").values_list("tenant_id", name):
        sums = found.setdefault(Key(tenant_id), Sums())
        is_age = name == "dirty_oldest_s"
        sums.counts[name] = max(sums.counts.get(name, 0), value) if is_age else value
    return found


def _whole(found: Iterable[Sums], measure: Measure, split: str) -> Sums:
    whole = Sums()
    for sums in found:
        if measure.unit == "s":
            (name,) = measure.columns
            whole.counts[name] = max(whole.counts.get(name, 0), sums.counts.get(name, 0))
            continue
        prompt_tokens = whole.prompt_tokens
        whole.add(sums)
        if split == "tier":  # each tier has the same denominator
            whole.counts["prompt_tokens"] = max(prompt_tokens, sums.prompt_tokens)
    return whole


def _row(
    key: Key,
    split: str,
    where: Where,
    names: Mapping[int, str],
    measure: Measure,
    sums: Sums | None,
    then: Sums | None,
    scale: float,
    *,
    has_now: bool,
    has_then: bool,
) -> Row:
    value, before = value_of(measure, sums), value_of(measure, then)
    if measure.is_rate:  # none counted is 0, if anything was counted in that time
        value = 0.0 if value is None and has_now else value
        before = 0.0 if before is None and has_then else before
    space = names.get(key.space_number, "") if key.space_number else ""
    is_worse = value is not None and before is not None and (value - before) * measure.better < 0
    grown = (
        {name: count * scale for name, count in then.misses.items()} if then and is_worse else {}
    )
    return Row(
        key=key,
        name=_name(key, split, where, space),
        tenant=where.tenants.get(key.tenant_id, ""),
        space=space,
        value=value,
        before=None if before is None else before * scale,
        share=None,
        tokens=0 if sums is None else sums.prompt_tokens,
        hit_tokens=0 if sums is None else sums.counts.get("hit_tokens", 0),
        main_reason=None if sums is None else sums.main_reason(grown),
        latency=None if sums is None else latency_of(sums.load_ms),
        better=measure.better,
    )


def _name(key: Key, split: str, where: Where, space: str) -> str:
    if key.is_rest:
        return "other"
    if split == "label" and not key.name:
        return "no label"
    if key.name:
        return key.name
    if key.space_number:
        return space
    return where.tenants.get(key.tenant_id, "")


def _space_names(numbers: Iterable[int]) -> dict[int, str]:
    """A space that was removed keeps its number."""
    wanted = {number for number in numbers if number}
    if not wanted:
        return {}
    found = dict(Space.unscoped.filter(pk__in=wanted).values_list("pk", "name"))
    return {number: found.get(number, f"removed space {number}") for number in wanted}


def _changed_most(row: Row) -> tuple[bool, float, float, str, str, str]:
    change = row.change
    size = -abs(change) if change is not None else 0.0
    return change is None, size, -(row.value or 0.0), row.tenant, row.space, row.name


def _line(
    measure: Measure, span: Span, steps: Mapping[int, Sums], now_s: float
) -> list[float | None]:
    line = []
    for ts in span.steps():
        value = value_of(measure, steps.get(ts))
        if value is not None and measure.is_rate:
            value /= _elapsed_s(span, ts, now_s)
        line.append(value)
    return line


def _elapsed_s(span: Span, ts: int, now_s: float) -> float:
    return max(1.0, min(float(span.step_s), now_s - ts))
