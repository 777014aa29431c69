"""What happened, folded: failures one by one, refusals by tenant, the rest by kind.

A refused flush did its work and stored nothing: it is no success. Each group says how many jobs it
stands for and leads to the list of them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from django.db.models import Count, Max, Min, Q, QuerySet, Sum
from django.db.models.functions import TruncHour, TruncMinute

from catalog.models import Job
from dashboard.scope import Scope

MOST_FAILED = 20  # shown one by one; the list has all
MOST_RUNNING = 20
MOST_BARS = 60
REFUSED = Q(state=Job.State.DONE, detail__refused_blocks__gt=0)
# Not `~REFUSED`: of a row without the member, SQL knows neither.
_TOOK_ALL = Q(detail__refused_blocks__isnull=True) | Q(detail__refused_blocks__lte=0)
SUCCEEDED = Q(state=Job.State.DONE) & _TOOK_ALL
WORDS = {
    "flush": ("flush", "flushes"),
    "compact": ("compaction", "compactions"),
    "expire": ("expiry", "expiries"),
    "warm": ("warm-up", "warm-ups"),
    "reconcile": ("reconcile round", "reconcile rounds"),
    "sweep": ("sweep", "sweeps"),
    "retain": ("new terms for stored blocks", "rounds of new terms"),
    "expire_contexts": ("expiry of contexts", "expiries of contexts"),
    "check_contexts": ("check of contexts", "checks of contexts"),
    "promote": ("promotion", "promotions"),
    "bulk": ("action on many contexts", "actions on many contexts"),
    "remove_tenant": ("removal of a tenant", "removals of tenants"),
    "remove_space": ("removal of a space", "removals of spaces"),
    "rebuild_tenant": ("rebuild of a tenant's index", "rebuilds of a tenant's index"),
    "rebuild_index": ("rebuild of the index", "rebuilds of the index"),
    "end_access": ("end of access", "ends of access"),
    "store_samples": ("storing of samples", "storings of samples"),
    "prune": ("deletion of old rows", "deletions of old rows"),
    "what_if": ("what-if", "what-ifs"),
    "recommend": ("recommendation", "recommendations"),
}


def words_of(kind: str, count: int = 1) -> str:
    one, many = WORDS.get(kind, (f"{kind} job", f"{kind} jobs"))
    return one if count == 1 else many


@dataclass(frozen=True)
class Group:
    """Jobs of one kind and state. `what`: of the filter `what` of the list."""

    what: str
    kind: str
    jobs: int
    tenants: int = 0
    blocks: int = 0
    bytes_: int = 0
    began: datetime | None = None
    ended: datetime | None = None
    tenant: str = ""  # slug, of a group of one tenant

    @property
    def words(self) -> str:
        return words_of(self.kind, self.jobs)


@dataclass(frozen=True)
class Bar:
    """Jobs that ended in one step of time, of a chart that is 100 high."""

    at: datetime
    done: int
    refused: int
    failed: int

    @property
    def total(self) -> int:
        return self.done + self.refused + self.failed


@dataclass(frozen=True)
class Throughput:
    step_s: int
    bars: list[Bar] = field(default_factory=list)

    @property
    def most(self) -> int:
        return max((bar.total for bar in self.bars), default=0)

    @property
    def drawn(self) -> list[tuple[Bar, list[tuple[str, float, float, float, float]]]]:
        """Each bar with its rectangles: class, x, y, width, height of a chart 600 wide, 60 high."""
        width = 600 / max(len(self.bars), 1)
        found = []
        for place, bar in enumerate(self.bars):
            top, parts = 60.0, []
            for name, count in (("done", bar.done), ("refused", bar.refused), ("bad", bar.failed)):
                height = 60.0 * count / max(self.most, 1)
                top -= height
                if count:
                    parts.append((name, place * width, top, max(width - 1.5, 1.0), height))
            found.append((bar, parts))
        return found


def jobs_of(scope: Scope) -> QuerySet[Job]:
    """Of the scope's tenants; for operators who look at all, the platform's own too."""
    rows = scope.person.rows(Job)
    if scope.tenant != "all" or scope.space is not None:
        rows = rows.filter(tenant__in=scope.tenants)
    return rows


def ended_in(rows: QuerySet[Job], scope: Scope) -> QuerySet[Job]:
    return rows.filter(finished_at__gte=scope.start, finished_at__lt=_end(scope))


def open_(rows: QuerySet[Job]) -> QuerySet[Job]:
    return rows.filter(state__in=(Job.State.QUEUED, Job.State.RUNNING))


def apply_what(rows: QuerySet[Job], what: str) -> QuerySet[Job]:
    """The filter of tiles and groups: a state, or `refused`, which are no successes."""
    if what == "refused":
        return rows.filter(REFUSED)
    if what == Job.State.DONE:
        return rows.filter(SUCCEEDED)
    return rows.filter(state=what)


def counts(rows: QuerySet[Job], scope: Scope) -> dict[str, Any]:
    """One query for what ended in the window, one for what is open."""
    ended = ended_in(rows, scope).aggregate(
        failed=Count("pk", filter=Q(state=Job.State.FAILED)),
        cancelled=Count("pk", filter=Q(state=Job.State.CANCELLED)),
        refused=Count("pk", filter=REFUSED),
        all_done=Count("pk", filter=Q(state=Job.State.DONE)),
        bytes=Sum("bytes", filter=Q(state=Job.State.DONE)),
        next_retry=Min("retry_at", filter=Q(state=Job.State.FAILED)),
    )
    now = open_(rows).aggregate(
        queued=Count("pk", filter=Q(state=Job.State.QUEUED)),
        running=Count("pk", filter=Q(state=Job.State.RUNNING)),
        oldest=Min("created_at", filter=Q(state=Job.State.QUEUED)),
    )
    return {**ended, **now, "done": ended["all_done"] - ended["refused"]}


def groups(rows: QuerySet[Job], scope: Scope) -> list[Group]:
    """Refusals by tenant, queued by kind, then what was done by kind, the newest first."""
    ended = ended_in(rows, scope).order_by()
    refused = ended.filter(REFUSED).values("kind", "tenant__slug")
    waiting = rows.filter(state=Job.State.QUEUED).order_by().values("kind")
    done = ended.filter(SUCCEEDED).values("kind")
    return [
        *_groups("refused", refused.annotate(**_SUMS)),
        *_groups("queued", waiting.annotate(**_SUMS)),
        *_groups("done", done.annotate(**_SUMS)),
        *_groups(
            "cancelled", ended.filter(state=Job.State.CANCELLED).values("kind").annotate(**_SUMS)
        ),
    ]


_SUMS: dict[str, Any] = {
    "jobs": Count("pk"),
    "tenants": Count("tenant", distinct=True),
    "all_blocks": Sum("blocks"),
    "all_bytes": Sum("bytes"),
    "began": Min("started_at"),
    "ended": Max("finished_at"),
    "first": Min("created_at"),
}


def _groups(what: str, rows: Iterable[Any]) -> list[Group]:
    found = [
        Group(
            what=what,
            kind=row["kind"],
            jobs=row["jobs"],
            tenants=row["tenants"],
            blocks=row["all_blocks"] or 0,
            bytes_=row["all_bytes"] or 0,
            began=row["began"] or row["first"],
            ended=row["ended"],
            tenant=row.get("tenant__slug") or "",
        )
        for row in rows
    ]
    return sorted(found, key=lambda group: (group.ended or group.began, group.kind), reverse=True)


def throughput(rows: QuerySet[Job], scope: Scope) -> Throughput:
    """Jobs that ended, by steps of whole minutes or hours."""
    length_s = max(int((_end(scope) - scope.start).total_seconds()), 60)
    is_long = length_s > 2 * 86_400
    unit_s = 3600 if is_long else 60
    step_s = unit_s * max(-(-length_s // (unit_s * MOST_BARS)), 1)
    unit = TruncHour("finished_at") if is_long else TruncMinute("finished_at")
    found = (
        ended_in(rows, scope)
        .order_by()
        .annotate(unit=unit)
        .values("unit")
        .annotate(
            all_done=Count("pk", filter=Q(state=Job.State.DONE)),
            refused=Count("pk", filter=REFUSED),
            failed=Count("pk", filter=Q(state=Job.State.FAILED)),
        )
    )
    steps: dict[int, list[int]] = {}
    for row in found:
        at_s = int(row["unit"].timestamp()) // step_s * step_s
        sums = steps.setdefault(at_s, [0, 0, 0])
        sums[0] += row["all_done"] - row["refused"]
        sums[1] += row["refused"]
        sums[2] += row["failed"]
    first = int(scope.start.timestamp()) // step_s * step_s
    last = int(_end(scope).timestamp())
    bars = [
        Bar(datetime.fromtimestamp(at_s, scope.zone), *steps.get(at_s, (0, 0, 0)))
        for at_s in range(first, last, step_s)
    ]
    return Throughput(step_s, bars)


def _end(scope: Scope) -> datetime:
    """Of a live window: now and later, since workers' clocks differ a little."""
    return datetime.fromtimestamp(scope.window.end_ts + 1, scope.zone)


def failed(rows: QuerySet[Job], scope: Scope) -> Sequence[Job]:
    found = ended_in(rows, scope).filter(state=Job.State.FAILED).select_related("tenant")
    return list(found.order_by("-finished_at")[:MOST_FAILED])


def running(rows: QuerySet[Job]) -> Sequence[Job]:
    found = rows.filter(state=Job.State.RUNNING).select_related("tenant")
    return list(found.order_by("-started_at")[:MOST_RUNNING])
