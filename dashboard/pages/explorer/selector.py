"""What the Explorer shows: the scope's measure, split, beside the window before."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, ClassVar

from django.utils.html import format_html
from django.utils.safestring import SafeString

from catalog import slices
from catalog.changes import Change
from catalog.measures import Measure
from catalog.slices import ALL, Key, Row, Span, Table, Where
from dashboard import formats, marks
from dashboard.lists import Column, List
from dashboard.scope import Scope
from neve.planner.causes import cause_of

MOST_LINES = 5  # beside the whole
MOST_REASONS = 6  # the others are summed
SPLIT_WORDS = {
    **{"tenant": "Tenant", "space": "Space", "node": "Node", "label": "Label"},
    **{"context": "Context", "reason": "Reason", "tier": "Tier"},
}
AGAINST_WORDS = {"before": "the window before", "yesterday": "same time yesterday"}
_SPARK_W, _SPARK_H = 96, 22
_NEXT = {"tenant": "space", "space": "node", "node": "space", "label": "context"}
_UNITS = {"percent": "percent", "tokens": "count", "blocks": "count", "bytes": "size"}


@dataclass(frozen=True)
class Explorer:
    """`both`: the time of sparklines and of "since": both windows, where they join."""

    measure: Measure
    split: str
    against: str
    where: Where
    table: Table
    both: Span
    marks: list[Change]
    now_s: float

    @property
    def span(self) -> Span:
        return self.table.span


def explorer_of(scope: Scope, measure: Measure, split: str, against: str) -> Explorer:
    """Raises Problem (malformed)."""
    window = scope.window
    end_s = min(float(window.end_ts), window.now_s)
    span, before = slices.spans_of(window.start_ts, end_s, against, now_s=window.now_s)
    where = where_of(scope)
    table = slices.table(where, measure, split, span, before, now_s=window.now_s)
    joins = before is not None and (before.end_ts, before.step_s) == (span.start_ts, span.step_s)
    both = Span(before.start_ts, span.end_ts, span.step_s) if joins and before else span
    changed = marks.marks_of(scope, span.start_ts, span.end_ts)
    return Explorer(measure, split, against, where, table, both, changed, window.now_s)


def where_of(scope: Scope) -> Where:
    return Where.of(scope.tenants, space=scope.space, node=scope.node, label=scope.label)


def split_of(scope: Scope, measure: Measure, asked: str) -> str:
    """The split that was asked for; else the coarsest that tells something in this scope."""
    if asked:
        return slices.split_named(asked)
    if measure.is_of_tenant or len(scope.tenants) > 1:
        return "tenant"
    return "node" if scope.space is not None else "space"


def text(measure: Measure, value: float | None, *, by_second: bool = False) -> str:
    """A value with its unit."""
    match measure.unit:
        case "percent":
            return str(formats.percent_quantity(value))
        case "bytes":
            found = formats.rate_quantity(value) if by_second else formats.bytes_quantity(value)
            return str(found)
        case "ms":
            return str(formats.milliseconds_quantity(value))
        case "s":
            return str(formats.duration_quantity(value))
    return str(formats.count_quantity(value, f"{measure.unit}/s" if by_second else ""))


def change_text(measure: Measure, row: Row) -> str:
    """ "▼ 4.2 pt" of a rate; of others the share of what was before, or the amount."""
    change = row.change
    if change is None:
        return formats.UNKNOWN
    if measure.unit == "percent":
        return formats.points_text(change)
    sign = "▲ " if change > 0 else "▼ " if change < 0 else ""
    if not change:
        return "no change"
    ratio = row.ratio
    if ratio is None or abs(ratio) >= 10:
        return f"{sign}{text(measure, abs(change))}"
    return f"{sign}{formats.percent_quantity(abs(ratio))}"


class ChangeList(List):
    """Rows in their own order, that of `catalog.slices.table`, until a column sorts them."""

    name = "explorer"
    search = ("name", "tenant", "space")
    search_label = "Filter"
    row_class = "tint"
    nothing = "pages/explorer/nothing.html"
    found_by: ClassVar[Explorer]

    @cached_property
    def largest(self) -> float:
        """The largest change of all rows, for the bars."""
        return max((abs(row.change or 0.0) for row in self.found_by.table.rows), default=0.0)

    def prepared(self, rows: Sequence[Any]) -> Sequence[Any]:
        """With sparklines, "since" and the worst part: a few queries a page."""
        all_of = self.found_by
        wanted: list[Row] = list(rows)
        keys = [row.key for row in wanted]
        lines = slices.series(
            all_of.where, all_of.measure, all_of.split, all_of.both, keys, now_s=all_of.now_s
        )
        slices.mark_since(wanted, lines, all_of.both)
        skipped = len(all_of.both.steps()) - len(all_of.span.steps())
        for row in wanted:
            row.points = lines.get(row.key, [])[skipped:]
            row.tint = "is-worst" if row.is_worse and row.since_ts else ""
        if all_of.measure.name == "hit_rate":
            slices.mark_worst(all_of.where, wanted, all_of.split, all_of.span, all_of.table.before)
        return wanted


def list_class(found: Explorer) -> type[ChangeList]:
    """The list of this measure and split."""
    measure, split = found.measure, found.split
    columns: list[Column] = [
        Column("name", SPLIT_WORDS[split], link=lambda row, scope: row_link(found, row, scope))
    ]
    if split in ("space", "node", "label", "context") and len(found.where.tenants) > 1:
        columns.append(Column("tenant", "Tenant", link=_tenant_link))
    if split == "context" and found.where.space_number is None:
        columns.append(Column("space", "Space"))
    columns += [
        _value_column("value", measure.words, measure),
        Column(
            "change",
            "Change",
            kind="html",
            template="pages/explorer/change.html",
            hint="against the time below; without an order the largest come first",
        ),
        _value_column("before", "Before", measure, shown=False),
    ]
    if measure.kind in ("ratio", "latency", "count"):
        label = "Share of tokens" if measure.kind != "count" else "Share"
        columns.append(Column("share", label, kind="percent"))
    if measure.kind == "ratio":
        columns += [
            Column("hit_tokens", "From cache", kind="count", shown=False),
            Column("tokens", "Prompt tokens", kind="count"),
        ]
    if measure.kind == "latency":
        columns += [
            Column("p1", "p1 (fast tail)", kind="ms", path="latency.p1.milliseconds"),
            Column("p50", "p50", kind="ms", path="latency.p50.milliseconds"),
            Column("p99", "p99 (slow tail)", kind="ms", path="latency.p99.milliseconds"),
            Column("beyond", "Over 5 s", kind="percent", path="latency.beyond"),
            Column("loads", "Loads", kind="count", path="latency.loads"),
        ]
    if measure.kind in ("ratio", "count") and split in ("tenant", "space", "node"):
        columns.append(
            Column("main_reason", "Main reason", kind="html", template="pages/explorer/reason.html")
        )
    if measure.name == "hit_rate" and split in ("tenant", "space", "node"):
        columns.append(Column("worst", "Worst part", order=""))
    columns += [
        Column("since", "Since", kind="html", template="pages/explorer/since.html", order=""),
        Column(
            "course",
            "Course",
            kind="html",
            value=lambda row: "",
            template="pages/explorer/spark.html",
            order="",
            in_csv=False,
            is_head_silent=True,
        ),
    ]
    return type("Changes", (ChangeList,), {"columns": tuple(columns), "found_by": found})


def _value_column(name: str, label: str, measure: Measure, *, shown: bool = True) -> Column:
    kind = {"ms": "ms", "s": "duration"}.get(measure.unit) or _UNITS[measure.unit]
    return Column(name, label, kind=kind, shown=shown)


def _tenant_link(row: Row, scope: Scope) -> str:
    return scope.link("explorer", tenant=row.tenant, space=None)


def row_link(found: Explorer, row: Row, scope: Scope) -> str | None:
    """The Explorer, scoped to the part, split by what it consists of."""
    key, split = row.key, found.split
    if key.is_rest or split == "tier" or (split == "label" and not key.name):
        return None
    if split == "reason":
        if "tenant" in found.measure.splits and len(found.where.tenants) > 1:
            return scope.here(split="tenant", page=None, sort=None, cols=None, q=None)
        return None
    if split == "context":
        return scope.link("contexts", tenant=row.tenant, q=key.name, label=None)
    changes: dict[str, object] = {"tenant": row.tenant}
    if split == "space":
        changes["space"] = key.space_number
    if split == "node":
        changes["node"] = key.name
    if split == "label":
        changes["label"] = key.name
    then = _NEXT[split]
    if then not in found.measure.splits or (split == "node" and scope.space is not None):
        then = split
    return scope.here(split=then, page=None, sort=None, cols=None, q=None, **changes)


def chart_of(found: Explorer, scope: Scope) -> dict[str, Any]:
    """The numbers of both charts, for the page's script. At most 1 + MOST_LINES lines."""
    measure, span = found.measure, found.span
    rows = [row for row in found.table.rows if not row.key.is_rest][:MOST_LINES]
    lines: list[dict[str, Any]] = []
    if not found.table.why_not:
        whole = slices.series(found.where, measure, found.split, span, None, now_s=found.now_s).get(
            ALL, []
        )
        if found.split not in ("reason", "tier") or measure.kind != "count":
            lines.append({"name": "all", "values": whole, "is_whole": True})
        keys: list[Key] = [row.key for row in rows]
        parts = slices.series(found.where, measure, found.split, span, keys, now_s=found.now_s)
        for row in rows:
            url = row_link(found, row, scope)
            values = parts.get(row.key, [])
            lines.append({"name": row.name, "values": values, "url": url, "is_worse": row.is_worse})
    return {
        "ts": list(span.steps()),
        "start": span.start_ts,
        "end": min(span.end_ts, int(found.now_s)),
        "step": span.step_s,
        "unit": measure.unit,
        "is_rate": measure.is_rate,
        "lines": lines,
        "reasons": _reasons(found),
        "marks": marks.drawn(found.marks),
    }


def _reasons(found: Explorer) -> list[dict[str, Any]]:
    by_reason = slices.reasons(found.where, "misses", found.span, now_s=found.now_s)
    drawn: list[dict[str, Any]] = []
    rest: list[float | None] = []
    for place, (reason, values) in enumerate(by_reason.items()):
        if place < MOST_REASONS:
            cause = cause_of(reason)
            label, group = (cause.label, cause.group) if cause else (reason, "lost")
            drawn.append({"name": label, "group": group, "values": values, "reason": reason})
        elif not rest:
            rest = list(values)
        else:
            rest = [_plus(a, b) for a, b in zip(rest, values, strict=True)]
    if rest:
        drawn.append({"name": "other reasons", "group": "lost", "values": rest, "reason": ""})
    return drawn


def _plus(one: float | None, other: float | None) -> float | None:
    return other if one is None else one if other is None else one + other


def twin_rows(chart: dict[str, Any], measure: Measure) -> list[tuple[datetime, list[str]]]:
    """The numbers of both charts, the newest first."""
    columns = [(line["values"], measure) for line in chart["lines"]]
    blocks = slices.measure_named("miss_blocks")
    columns += [(each["values"], blocks) for each in chart["reasons"]]
    found = []
    for place, ts in enumerate(chart["ts"]):
        cells = [
            text(of, values[place] if place < len(values) else None, by_second=of.is_rate)
            for values, of in columns
        ]
        found.append((datetime.fromtimestamp(ts, UTC), cells))
    return found[::-1]


def spark(row: Row) -> SafeString:
    """The course in the window. Gaps are left out; a flat line lies in the middle."""
    points = [(place, value) for place, value in enumerate(row.points) if value is not None]
    if len(points) < 2:
        return SafeString("")
    low, high = min(v for _, v in points), max(v for _, v in points)
    width, height = max(1, len(row.points) - 1), (high - low) or 1.0
    places = [
        (
            place * _SPARK_W / width,
            _SPARK_H / 2 if high == low else _SPARK_H - 2 - (value - low) / height * (_SPARK_H - 4),
        )
        for place, value in points
    ]
    path = "M" + " ".join(f"{x:.1f} {y:.1f}" for x, y in places)
    x, y = places[-1]
    return format_html(
        '<svg class="spark{}" viewBox="0 0 {} {}" aria-hidden="true"><path d="{}"></path>'
        '<circle cx="{}" cy="{}" r="2.2"></circle></svg>',
        " bad" if row.is_worse and row.since_ts else "",
        _SPARK_W,
        _SPARK_H,
        path,
        f"{x:.1f}",
        f"{y:.1f}",
    )


def change_bar(row: Row, largest: float) -> tuple[float, float]:
    """Left edge and width, in units of 92, of a bar that leaves the middle either way."""
    if row.change is None or not largest:
        return 46.0, 0.0
    width = min(46.0, abs(row.change) / largest * 46.0)
    return (46.0 - width if row.change < 0 else 47.0), width
